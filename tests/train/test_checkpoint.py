"""Checkpoints are whole or absent."""

import os
import warnings
from pathlib import Path

import pytest

from prefopt.errors import RunError
from prefopt.train.checkpoint import checkpoints, last_whole_checkpoint, missing_parts, rotate, staged, staged_by_all
from prefopt.train.ranks import Ranks


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


@pytest.mark.parametrize(("owner", "name"), [(Path, "write_text"), (os, "fsync"), (Path, "rename")])
def test_wherever_the_disk_refuses_a_whole_checkpoint_is_there(tmp_path: Path, monkeypatch, owner, name: str) -> None:
    final = write(tmp_path, 5, "old")
    function, calls = getattr(owner, name), 0

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    write(tmp_path, 5, "old")
    for refused in range(calls):  # the call of this number, counted from 0
        left = iter([*[function] * refused, full])
        monkeypatch.setattr(owner, name, lambda *args, left=left, **kwargs: next(left, function)(*args, **kwargs))
        with pytest.raises(RunError, match="No space left on device"):
            write(tmp_path, 5, "new")
        assert missing_parts(final) == []
        # Only the very last flush fails after the new one took the place of the old.
        assert (final / "model.safetensors").read_text() == (
            "new" if (name, refused) == ("fsync", calls - 1) else "old"
        )
    assert calls


@pytest.mark.parametrize(
    "said", ["basic_ios::clear: iostream error", "Error while serializing: I/O error: os error 28"]
)
def test_what_torch_and_safetensors_say_of_a_full_disk_is_a_sentence_too(tmp_path: Path, said: str) -> None:
    with pytest.raises(RunError, match="takes no more"), staged(tmp_path / "checkpoint-6"):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="a defect"), staged(tmp_path / "checkpoint-6"):
        raise RuntimeError("a defect")
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_share_no_file_system_are_told_so(tmp_path: Path) -> None:
    class Elsewhere(Ranks):
        def of_main(self, make):
            return tmp_path / "on another machine"

    with (
        pytest.raises(RunError, match="all machines of the run share"),
        staged_by_all(tmp_path / "c-1", Elsewhere(1, 2)),
    ):
        pass


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
