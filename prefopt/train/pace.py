"""How fast a run goes and how much memory it takes, over the steps between two logs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prefopt.models.plan.machine import find_machine


class Pace:
    """A stopwatch that stands still while something other than training goes on."""

    def __init__(self) -> None:
        self._tokens = 0
        self._flops = 0.0
        self._seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Let it run, if it stands."""
        if self._since is None:
            self._since = time.monotonic()

    def add(self, tokens: int, flops: float = 0.0) -> None:
        """Count what a step computed."""
        self._tokens += tokens
        self._flops += flops

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

    def take(self, peak: float | None = None) -> dict[str, float]:
        """Return the rates since the last time, if there were any tokens, and begin anew.

        Args:
            peak: FLOP/s of this device at most; with it, and where FLOPs were counted, `flops_share` is the share.
        """
        running = self._since is not None
        self._stop()
        rates: dict[str, float] = {}
        if self._tokens and self._seconds:
            rates["tokens_per_second"] = self._tokens / self._seconds
            if self._flops and peak:
                rates["flops_share"] = self._flops / self._seconds / peak
        self._tokens, self._flops, self._seconds = 0, 0.0, 0.0
        if running:
            self.start()
        return rates

    def _stop(self) -> None:
        if self._since is not None:
            self._seconds += time.monotonic() - self._since
            self._since = None


def peak_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the FLOP/s that matrix products reach at most: of a GPU by its data sheet, in bfloat16; of a CPU measured.

    None where no data sheet is known.
    """
    rates = find_machine(dtype=dtype, cpu=device.type == "cpu").rates
    return None if rates is None else rates.teraflops * 1e12


def peak_memory(device: torch.device) -> int:
    """Return the most memory that was taken so far, bytes: the device's for a GPU, else the process's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
