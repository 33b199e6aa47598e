"""SIGKILL at the N-th time that a process reaches a point.

A kill that is aimed from outside hits where the clock lets it; this one hits where it is meant to, and is as final:
nothing of the process runs after it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prefopt.models.references.store import Store, Value

POINTS: dict[str, tuple[Any, str]] = {
    "backward": (torch.Tensor, "backward"),
    "optimizer step": (torch.optim.AdamW, "step"),
    "saving a file": (torch, "save"),
    "sync": (os, "fsync"),
    "rename": (Path, "rename"),
    "storing log-probs": (Store, "write"),
    "storing half of them": (Value, "checksum"),
}
"""What can be reached -> the function that is entered there. Files are those of a checkpoint, log-probs a reference's;
half of them are stored when the transaction has begun."""


def killed_at(
    call: int, function: Callable[..., Any], counts: Callable[..., bool] = lambda *args, **kwargs: True
) -> Callable[..., Any]:
    """Return `function`, whose call of this number, of those that count, ends the process before it does anything."""
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += counts(*args, **kwargs)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return counted


def arm(point: str, number: int) -> None:
    """Let this process end the number-th time that it reaches the point."""
    owner, name = POINTS[point]
    # Pickling a tensor for another process saves it too, but to no file.
    counts = {"counts": lambda what, to, **kwargs: isinstance(to, str | Path)} if owner is torch else {}
    setattr(owner, name, killed_at(number, getattr(owner, name), **counts))


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.argv = ["prefopt", *sys.argv[3:]]
    from prefopt.cli import main

    main()
