"""The order of an epoch: a shuffle over prompts, cut into steps that keep the examples of a prompt together."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

SHARE = 4
"""Prompts that a step has at least, where the data has as many: one alone would be all that its update knows."""
WAITING = 32
"""Prompts that may wait for a step with room for all of their examples, before one of them is cut."""


def shuffled(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the permutation that sorts random `keys` (n,): (n,) int64."""
    return np.argsort(keys, kind="stable").astype(np.int64)


def together(keys: NDArray[np.uint64], prompts: NDArray[np.int64], per_step: int) -> NDArray[np.int64]:
    """Return a permutation in which examples of one prompt stand in one step where they fit.

    Prompts are shuffled, each by the key of its first example, so that one with many examples is no more likely to
    come early; where every example has a prompt of its own this is `shuffled`. The examples of a prompt that don't fit
    into what is left of a step wait for the next one, and the prompts behind them go first. A prompt with more than
    1 / `SHARE` of a step's examples goes in pieces of that size, each as if it had a prompt of its own.

    Args:
        keys: (n,) random numbers.
        prompts: (n,) which prompt each example has.
        per_step: examples of a step.
    """
    _, first, prompt = np.unique(_pieces(keys, prompts, per_step), return_index=True, return_inverse=True)
    rank = np.empty(first.size, dtype=np.int64)
    rank[shuffled(keys[first])] = np.arange(first.size)
    order = np.lexsort((keys, rank[prompt]))
    ends = np.cumsum(np.bincount(rank[prompt])).tolist()
    runs = deque(order[start:end].tolist() for start, end in zip([0, *ends[:-1]], ends, strict=True))
    return np.array(_filled(runs, per_step), dtype=np.int64)


def _pieces(keys: NDArray[np.uint64], prompts: NDArray[np.int64], per_step: int) -> NDArray[np.int64]:
    """Return `prompts` with those of too many examples cut up, the examples of a piece drawn by their keys."""
    most = max(1, per_step // SHARE)
    order = np.lexsort((keys, prompts))
    counts = np.bincount(prompts)
    place = np.arange(prompts.size) - np.repeat(np.cumsum(counts) - counts, counts)
    pieces = np.empty_like(prompts)
    pieces[order] = prompts[order] * (prompts.size + 1) + place // most
    return pieces


def _filled(runs: deque[list[int]], per_step: int) -> list[int]:
    """Lay runs end to end so that as few as possible of them cross a multiple of `per_step`."""
    placed: list[int] = []
    waiting: list[list[int]] = []
    room = per_step
    while runs or waiting:
        fitting = next((i for i, run in enumerate(waiting) if len(run) <= room), None)
        if fitting is not None:
            run = waiting.pop(fitting)
        elif runs and len(waiting) < WAITING:
            run = runs.popleft()
            if room < len(run) <= per_step:
                waiting.append(run)
                continue
        else:
            run = waiting.pop(0)
        if len(run) > room:
            waiting.insert(0, run[room:])
            run = run[:room]
        placed += run
        room = room - len(run) or per_step
    return placed
