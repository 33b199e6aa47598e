"""Work in another process: what goes wrong there costs one call."""

import os
import signal
import subprocess
import sys
import time
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


def test_work_is_done_in_one_other_process_whatever_it_prints_and_reads() -> None:
    isolated = Isolated(WORK, 60)
    first = isolated({"do": "nothing"})["process"]
    assert isolated({"do": "print"}) == {"process": first, "read": ""}
    assert len(isolated({"do": "much"})["much"]) == 300_000
    assert isolated({"do": "nothing"})["process"] == first != os.getpid()


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
    """Whether a process runs; one that ended and that nobody asked for since doesn't."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


PARENT = """
from prefopt.rewards.isolated import Isolated

isolated = Isolated("tests.rewards.work:act", 600)
print(isolated({"do": "nothing"})["process"], flush=True)
isolated({"do": "compute"})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
def test_a_process_that_is_busy_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        time.sleep(0.2)  # it computes
        assert alive(process)
        parent.kill()
        parent.wait()
    until = time.monotonic() + 30
    while alive(process) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(process)


def test_a_process_that_something_ended_is_started_again() -> None:
    isolated = Isolated(WORK, 60)
    first = isolated({"do": "nothing"})["process"]
    os.kill(first, signal.SIGKILL)
    while alive(first):
        time.sleep(0.01)
    assert isolated({"do": "nothing"})["process"] != first


def test_the_process_ends_with_what_started_it() -> None:
    isolated: Callable[..., dict[str, int]] | None = Isolated(WORK, 60)
    assert isolated is not None
    process = isolated({"do": "nothing"})["process"]
    assert alive(process)
    isolated = None
    assert not alive(process)
