"""How fast a run goes and how much memory it takes, over the steps between two logs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Pace:
    """A stopwatch that stands still while something other than training goes on."""

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Let it run, if it stands."""
        if self._since is None:
            self._since = time.monotonic()

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still inside."""
        running = self._since is not None
        self._stop()
        try:
            yield
        finally:
            if running:
                self.start()

    def take(self) -> dict[str, float]:
        """Return `tokens_per_second` since the last time, if there were any tokens, and begin anew."""
        running = self._since is not None
        self._stop()
        rate = {"tokens_per_second": self._tokens / self._seconds} if self._tokens and self._seconds else {}
        self._tokens, self._seconds = 0, 0.0
        if running:
            self.start()
        return rate

    def _stop(self) -> None:
        if self._since is not None:
            self._seconds += time.monotonic() - self._since
            self._since = None


def peak_memory(device: torch.device) -> int:
    """Return the most memory that was taken so far, bytes: the device's for a GPU, else the process's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
