"""What happened to a run and when: starts, resumes, stages. Nothing of it decides what a run computes."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefopt.errors import RunError
from prefopt.train.callbacks import read_metrics

FILE = "events.jsonl"
_LOCK = ".lock"
OF_A_START = frozenset({_LOCK})
"""What a start leaves behind that was ended before its first event."""


class Events:
    """Appends to a file of JSON Lines; without a path it says nothing anywhere."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def add(self, event: str, **about: Any) -> None:
        """Append one event with time, host and process."""
        if self.path is None:
            return
        record = {"time": round(time.time(), 3), "host": platform.node(), "process": os.getpid(), "event": event}
        try:
            with self.path.open("ab") as file:
                torn = file.tell() > 0 and not self._ends_a_line()
                file.write(b"\n" * torn + json.dumps(record | about).encode() + b"\n")
        except OSError as error:
            raise RunError(
                f"{self.path} can't be written: {error.strerror}; free the disk, then start again."
            ) from error

    @contextmanager
    def timed(self, stage: str, **about: Any) -> Iterator[None]:
        """Note that a stage begins and, if nothing fails, that it ended and after how many seconds."""
        self.add("begin", stage=stage, **about)
        began = time.monotonic()
        yield
        self.add("end", stage=stage, **about, seconds=round(time.monotonic() - began, 3))

    def _ends_a_line(self) -> bool:
        """Whether the last line is whole: one that a kill tore must not swallow the next."""
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def read_events(run: Path) -> list[dict[str, Any]]:
    """Return the events of a run; a line that a kill tore is left out."""
    return read_metrics(run / FILE)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from working on the same run; the lock ends with the process, however that ends.

    Raises:
        RunError: another process has it, or the directory can't be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / _LOCK).open("a")
    except OSError as error:
        raise RunError(
            f"train.output_dir {run} can't be written: {error.strerror}; name a directory you may write to."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"another process works on {run}; wait for it or end it, or name another train.output_dir."
            ) from None
        yield
