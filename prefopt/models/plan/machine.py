"""The device that a plan is for: what it holds, what it takes for itself, and how fast it computes."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from prefopt import environment
from prefopt.errors import PrefoptError, nearest
from prefopt.kernels.roofline import GPUS, VENDOR, Gpu

GIB = 1 << 30
CUDA_CONTEXT = 700 << 20
"""Bytes that a CUDA context with the vendor's libraries and their workspaces takes: an assumption."""
CPU_CONTEXT = 90 << 20
"""Bytes that a process grows by between its imports and its first step, beside tensors: code that is paged in, and
oneDNN's compiled products: an assumption, which `benchmarks/plan.py` puts beside what runs take."""
CUDA_SLACK = 0.06
"""Share of a GPU's memory that is left free for what its allocator can't use: an assumption."""
CPU_SLACK = 0.05
_STREAM = 0.8
"""Share of a memory's bandwidth that elementwise kernels reach."""
_LAUNCH = 5e-6
"""Seconds that an operator takes at least on a GPU, since it is launched."""


@dataclass(frozen=True)
class Machine:
    """A GPU or this machine's CPU."""

    name: str
    gpu: bool
    memory: int | None
    """Bytes that a process may take; None where that is unknown."""
    rates: Gpu | None = None
    """None where time can't be predicted."""
    product: float = VENDOR
    """Share of the peak that products reach."""

    @property
    def context(self) -> int:
        """Bytes that are taken before any tensor."""
        return CUDA_CONTEXT if self.gpu else CPU_CONTEXT

    @property
    def room(self) -> float:
        """Bytes that weights and passes may take, slack aside."""
        if self.memory is None:
            return float("inf")
        return self.memory * (1 - (CUDA_SLACK if self.gpu else CPU_SLACK)) - self.context

    def seconds(self, work: Mapping[tuple[float, float], float], attention: float = 0.0) -> float | None:
        """Return how long the operators of `work` take one after the other, each the longer of its floors.

        `attention` flops are added at the rate of products.
        """
        if self.rates is None:
            return None
        rate, stream = self.product * self.rates.teraflops * 1e12, _STREAM * self.rates.bandwidth * 1e9
        least = _LAUNCH if self.gpu else 0.0
        total = sum(max(flops / rate, moved / stream, least) * times for (flops, moved), times in work.items())
        return total + attention / (0.5 * rate)


def find_machine(gpu: str | None = None, memory: str | None = None, *, dtype: torch.dtype, cpu: bool) -> Machine:
    """Return the machine that `--gpu` or `--memory` names, or else this one.

    Args:
        gpu: a key of `roofline.GPUS`.
        memory: such as "24GB" (as cards are sold: GiB) of some GPU, or over the named one's own.
        dtype: what this machine's CPU is measured in.
        cpu: whether a run would use this machine's CPU.

    Raises:
        PrefoptError: no such GPU, or no amount of memory.
    """
    size = None if memory is None else parse_memory(memory)
    if gpu is not None:
        key = gpu.lower().removeprefix("rtx").strip(" -_")
        if key not in GPUS:
            raise PrefoptError(f"--gpu is {gpu!r}; it must be one of {', '.join(GPUS)}{nearest(key, GPUS)}.")
        return Machine(GPUS[key].name, True, size or GPUS[key].memory * GIB, GPUS[key])
    if size is not None:
        return Machine(f"a GPU with {size / GIB:.4g} GiB", True, size)
    if not cpu and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        size = torch.cuda.get_device_properties().total_memory
        return Machine(name, True, size, known_rates(name, size))
    return Machine("this machine's CPU", False, environment.available_memory(), measured(dtype), 1.0)


def parse_memory(text: str) -> int:
    """Return the bytes that a text such as "24GB", "24" or "11.5GiB" says; GB counts as GiB, as cards are sold."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(g|gb|gib|m|mb|mib)?\s*", text.lower())
    if not found or not float(found[1]):
        raise PrefoptError(f"--memory is {text!r}; write an amount such as 24GB.")
    return int(float(found[1]) * ((1 << 20) if (found[2] or "g").startswith("m") else GIB))


def known_rates(name: str, memory: int) -> Gpu | None:
    """Return what a data sheet says of the GPU that calls itself `name` and has so many bytes; None for others.

    A board of another speed may have the same number in its name, such as a laptop's, a Ti or one for PCIe.
    """
    words = name.lower().replace("-", " ").split()
    if {"laptop", "pcie", "ti", "super", "max", "nvl", "mobile", "ada"} & set(words) or "mig" in words:
        return None
    found = [gpu for key, gpu in GPUS.items() if key.partition("-")[0] in words]
    # What a driver reports is somewhat less than what a card is sold with, or somewhat more: 80 GB are 79.1 GiB.
    near = [gpu for gpu in found if abs(memory / GIB - gpu.memory) < 0.12 * gpu.memory]
    return min(near, key=lambda gpu: abs(memory / GIB - gpu.memory), default=None)


def measured(dtype: torch.dtype) -> Gpu:
    """Measure this CPU for a moment: its products, and its memory."""
    side = 1024
    a, b = torch.ones(side, side, dtype=dtype), torch.ones(side, side, dtype=dtype)
    large, other = torch.ones(1 << 24), torch.ones(1 << 24)
    with torch.no_grad():
        products = 2 * side**3 / _best(lambda: a @ b)
        stream = 2 * large.numel() * large.itemsize / _best(lambda: other.copy_(large))
    return Gpu("CPU", products / 1e12, stream / 1e9, "measured now")


def _best(work: object) -> float:
    assert callable(work)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
