"""A step of DeepSpeed's engine (ZeRO): gradients are added up over the ranks once, and each updates its part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from prefopt.errors import RunError
from prefopt.train.ranks import Ranks

_STAY = "_coalesce_grad_reduction"
"""What tells the engine's optimizer to leave gradients where a backward pass put them."""


@contextmanager
def gradients_stay(engine: Any) -> Iterator[None]:
    """Within, backward passes add to the gradients of this rank alone, as they do without DeepSpeed.

    By itself the engine averages over the ranks in every backward pass, in which then all of them must take part.
    `engine.coalesce_grad_reduction` prevents that too, but exchanges gradients at its end whatever has happened: ranks
    that failed or found a gradient that is no number have nothing to exchange.

    Raises:
        RunError: the optimizer knows nothing of that.
    """
    optimizer = engine.optimizer
    if not hasattr(optimizer, _STAY):
        raise RunError(
            f"DeepSpeed's {type(optimizer).__name__} can't leave gradients where they are; install the version of "
            "DeepSpeed that constraints.txt names."
        )
    setattr(optimizer, _STAY, True)
    try:
        yield
    finally:
        setattr(optimizer, _STAY, False)


def backward(ranks: Ranks, value: Tensor) -> None:
    """Add the gradients of `value` to those that are there, for an engine that will divide them by the ranks."""
    (value * ranks.size).backward()


def step(engine: Any, ranks: Ranks) -> float:
    """Add the gradients of all ranks up, clip them and update the weights; without any gradient do nothing.

    Returns the norm of the gradients before they were clipped.

    Raises:
        RunError: the sum over the ranks is no number; the weights are as before.
    """
    if not ranks.used_by_any(engine.module.parameters()):
        return 0.0
    with engine.coalesce_grad_reduction():
        pass
    engine.set_gradient_accumulation_boundary(True)
    engine.step()
    if not engine.was_step_applied():
        raise RunError(
            "the sum of the gradients over all processes is NaN or infinite, though each process' own is not; the "
            "weights are those of the step before. Lower train.learning_rate, or compute in model.dtype=float32."
        )
    return float(engine.get_global_grad_norm())


def forget_launch() -> None:
    """Take back what accelerate tells its next launch by the environment: the run after this one is another."""
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
