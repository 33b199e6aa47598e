"""Checkpoints are whole or absent."""

import warnings
from pathlib import Path

import pytest

from prefopt.errors import RunError
from prefopt.train.checkpoint import checkpoints, last_whole_checkpoint, missing_parts, rotate, staged


def write(run: Path, step: int, content: str = "weights") -> Path:
    final = run / f"checkpoint-{step}"
    with staged(final) as folder:
        (folder / "model.safetensors").write_text(content)
        (folder / "nested").mkdir()
        (folder / "nested" / "config.json").write_text("{}")
    return final


def test_a_staged_checkpoint_is_whole_and_leaves_nothing_aside(tmp_path: Path) -> None:
    final = write(tmp_path, 5)
    assert missing_parts(final) == []
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-5"]


def test_an_exception_while_writing_leaves_the_old_checkpoint_as_it_was(tmp_path: Path) -> None:
    final = write(tmp_path, 5, "old")
    with pytest.raises(ValueError, match="boom"), staged(final) as folder:
        (folder / "model.safetensors").write_text("new")
        raise ValueError("boom")
    assert (final / "model.safetensors").read_text() == "old"
    assert missing_parts(final) == []
    assert last_whole_checkpoint(tmp_path) == final


def test_a_disk_that_refuses_is_a_sentence(tmp_path: Path) -> None:
    final = write(tmp_path, 5, "old")
    with pytest.raises(RunError, match="No space left on device"), staged(tmp_path / "checkpoint-6"):
        raise OSError(28, "No space left on device")
    assert checkpoints(tmp_path) == [final]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: (p / "model.safetensors").write_text("w"), "has 1 bytes of 7"),
        (lambda p: (p / "nested" / "config.json").unlink(), "nested/config.json is missing"),
        (lambda p: (p / "checkpoint.json").write_text('{"files'), "checkpoint.json is missing or unreadable"),
    ],
)
def test_a_torn_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, damage, said: str) -> None:
    whole, torn = write(tmp_path, 9), write(tmp_path, 10)
    damage(torn)
    with pytest.warns(UserWarning, match=said):
        assert last_whole_checkpoint(tmp_path) == whole


def test_checkpoints_are_ordered_by_step_and_not_by_name(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        write(tmp_path, step)
    (tmp_path / ".writing-checkpoint-11").mkdir()
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert last_whole_checkpoint(tmp_path).name == "checkpoint-10"


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    paths = [write(tmp_path, step) for step in (1, 2, 3, 4)]
    rotate(tmp_path, None, None)
    assert checkpoints(tmp_path) == paths
    rotate(tmp_path, 1, best=paths[1])
    assert checkpoints(tmp_path) == [paths[1], paths[3]]
