"""What torch code keeps in memory and computes, counted operation by operation while it runs.

It runs on real tensors or on imagined ones, which have a shape and no data: the counts are the same, since both take
the same way through the code.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Transient = Callable[[Any, tuple[Any, ...]], tuple[int, float]]
"""From (operator, arguments) to the bytes that it takes inside beside its results, and its flops."""

_LOOKUPS = ("embedding", "index_select", "index", "gather")
"""Operators that read as much of their input as they write."""


class Trace(TorchDispatchMode):
    """Within, counts the bytes of every tensor made there while it lives, and the work done.

    Args:
        transient: what is inside of operators that are seen from outside alone.
    """

    def __init__(self, transient: Transient | None = None) -> None:
        super().__init__()
        self.live = 0
        """Bytes of what was made inside and is still there."""
        self.peak = 0
        """The most there was at once since the start or `restart`."""
        self.work: Counter[tuple[float, float]] = Counter()
        """(flops, bytes read and written) of an operator -> how often."""
        self._transient = transient
        self._alive: dict[int, weakref.ref[Any]] = {}

    def restart(self) -> None:
        """Let the peak start from what lives now."""
        self.peak = self.live

    @property
    def flops(self) -> float:
        return sum(flops * times for (flops, _), times in self.work.items())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        before = {id(x.untyped_storage()) for x in given}  # such as weights: made outside, or counted already
        new = [x for x in made if id(x.untyped_storage()) not in before]
        for tensor in new:
            self._watch(tensor)
        inside, flops = self._transient(func, args) if self._transient else (0, 0.0)
        self.peak = max(self.peak, self.live + inside)
        if new or func._schema.is_mutable:  # all others are views
            self._count(func, args, kwargs, out, given, made, flops)
        return out

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._alive or tensor.device.type == "meta":
            return

        def gone(_: Any) -> None:
            self._alive.pop(key, None)
            self.live -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _count(
        self, func: Any, args: Any, kwargs: Any, out: Any, given: list[Tensor], made: list[Tensor], flops: float
    ) -> None:
        name = func._schema.name.partition("::")[2]
        if name.startswith(("empty", "new_empty")):
            return
        written = sum(map(_bytes, made))
        read = written if name in _LOOKUPS else sum(map(_bytes, given))
        plain = getattr(torch.ops.aten, name.rstrip("_"), None)
        if not flops and plain in flop_registry:
            flops = float(flop_registry[plain](*args, **kwargs, out_val=out))
        self.work[flops, float(read + written)] += 1


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize
