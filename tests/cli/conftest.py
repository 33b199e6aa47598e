"""The command line in this process, a recipe that would run, and a run that did."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt import cli
from tests.cli.processes import Ended, process
from tests.toys import pair_rows

PAIRS = '{"prompt": "Is it good?", "chosen": " It is.", "rejected": " No."}\n'
RECIPE = """\
model: {name: MODEL, dtype: float32}
data: {train: pairs.jsonl}
train: {output_dir: OUT, max_steps: 1}
"""


@pytest.fixture
def prefopt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command line in this process."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["prefopt", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    """A recipe that would run."""
    (tmp_path / "pairs.jsonl").write_text(PAIRS * 4)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("MODEL", str(tiny_model)).replace("OUT", str(tmp_path / "run")))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Ended, Path]:
    """A run that a process trained, and what the process said."""
    folder = tmp_path_factory.mktemp("finished")
    for name, count in (("pairs.jsonl", 16), ("held_out.jsonl", 8)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in pair_rows(count)))
    (folder / "recipe.yaml").write_text(
        f"model: {{name: {tiny_model}, dtype: float32}}\ndata: {{train: pairs.jsonl, eval: held_out.jsonl}}\n"
        f"train: {{output_dir: {folder}/run, max_steps: 2, examples_per_step: 8, learning_rate: 1e-2}}\n"
        "eval: {samples: 1, max_new_tokens: 4, resamples: 100}\n"
    )
    return process("train", str(folder / "recipe.yaml")), folder / "run"
