"""`prefopt train`: what it prints, where it refuses to write, and how it ends when it is stopped."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.processes import Ended


def test_an_output_directory_in_use_or_not_writable_is_refused(prefopt: Callable[..., Ended], recipe: Path) -> None:
    run = recipe.parent / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    code, _, err = prefopt("train", str(recipe))
    assert code == 2
    assert "not empty" in err
    code, _, err = prefopt("train", str(recipe), f"train.output_dir={recipe}")
    assert code == 2
    assert "is a file" in err
    code, _, err = prefopt("train", str(recipe), "train.output_dir=/proc/run")
    assert code == 2
    assert "can't be written" in err


def test_an_interrupted_training_says_how_to_go_on(
    prefopt: Callable[..., Ended], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prefopt.workflow.train_run", interrupted)
    code, out, err = prefopt("train", str(recipe), "loss=ipo", "train.run_name=two words")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == f"  prefopt train {recipe} loss=ipo 'train.run_name=two words' --resume"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_a_failed_run_ends_with_1_and_a_sentence(
    prefopt: Callable[..., Ended], recipe: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("prefopt.workflow.train_run", failing)
    code, _, err = prefopt("train", str(recipe))
    assert code == 1
    assert err.startswith("error: The run failed: ")
    assert "Traceback" not in err


def test_train_prints_the_run_directory_and_nothing_else_on_stdout(finished: tuple[Ended, Path]) -> None:
    (code, out, err), run = finished
    assert code == 0, err
    assert out == f"{run}\n"
    assert f"report: {run}/report.html" in err
    assert (run / "report.html").is_file()
    assert (run / "adapter/adapter_model.safetensors").is_file()
    for name in ("before", "after"):
        assert json.loads((run / f"eval/{name}.json").read_text())["source"] == [str(run.parent / "held_out.jsonl")]
