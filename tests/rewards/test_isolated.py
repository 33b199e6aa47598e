"""Work in another process: what goes wrong there costs one call."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.rewards.isolated import Isolated, TookTooLongError

WORK = "tests.rewards.work:act"


@pytest.fixture(autouse=True)
def _this_project_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process imports nothing from where it happens to start."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_secrets_of_the_environment_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    monkeypatch.setenv("HF_TOKEN", "hf-1")
    seen = Isolated(WORK, 60)({"do": "environment"})["names"]
    assert "PYTHONPATH" in seen
    assert not {"JUDGE_KEY", "HF_TOKEN"} & set(seen)


def test_work_is_done_in_one_other_process_whatever_it_prints() -> None:
    isolated = Isolated(WORK, 60)
    first = isolated({"do": "nothing"})["process"]
    assert isolated({"do": "print"})["process"] == first != os.getpid()


@pytest.mark.parametrize(
    ("do", "error", "told"),
    [
        ("raise", RuntimeError, "ValueError: no sense"),
        ("exit", RuntimeError, "the process that does it ended"),
        ("fill", RuntimeError, "MemoryError"),
    ],
)
def test_what_goes_wrong_is_raised_and_the_next_call_works(do: str, error: type[Exception], told: str) -> None:
    isolated = Isolated(WORK, 60)
    with pytest.raises(error, match=told):
        isolated({"do": do})
    assert "process" in isolated({"do": "nothing"})


@pytest.mark.parametrize("do", ["sleep", "compute"])
def test_what_takes_too_long_is_ended_with_its_process(do: str) -> None:
    isolated = Isolated(WORK, 0.5)
    with pytest.raises(TookTooLongError, match=r"took longer than 0\.5 seconds"):
        isolated({"do": do})


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_process_ends_with_what_started_it() -> None:
    isolated: Callable[..., dict[str, int]] | None = Isolated(WORK, 60)
    assert isolated is not None
    process = isolated({"do": "nothing"})["process"]
    assert alive(process)
    isolated = None
    assert not alive(process)
