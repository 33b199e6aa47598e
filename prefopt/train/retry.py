"""A step that doesn't fit into memory is computed again in smaller packs: the same loss and the same gradients.

How a step is cut into packs never changes it, so the whole step starts anew: what a failed backward pass has added to
some gradients already is thrown away with the rest, and nothing counts twice. Later steps keep to the smaller packs.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from prefopt.data.halve import cost, cut, units
from prefopt.errors import RunError
from prefopt.records import Pack
from prefopt.train.ranks import ALONE, BeginAgainError, Ranks

Result = TypeVar("Result")
_log = logging.getLogger(__name__)
_ALLOCATOR = ("DefaultCPUAllocator", "can't allocate memory", "CUDA out of memory", "MPS backend out of memory")
"""What allocators say that raise a plain RuntimeError."""


class PackLimit:
    """How large packs may be, as far as running out of memory has taught."""

    def __init__(self) -> None:
        self.tokens: int | None = None
        """A pack's tokens at most; None before any was too large."""

    def run(
        self,
        packs: Sequence[Pack],
        step: Callable[[Sequence[Pack]], Result],
        parameters: Iterable[nn.Parameter],
        ranks: Ranks = ALONE,
    ) -> Result:
        """Return what `step` makes of the packs, cut smaller where they don't fit.

        Of several ranks all begin the step anew when one runs out of memory, which it tells them in the place of what
        it would have exchanged next. Where weights lie in parts it can't: the others wait for its part in the middle
        of a layer, and running out of memory ends the run with a sentence.

        Args:
            packs: of one optimizer step.
            step: computes them, and adds to the gradients of `parameters`; anything else that it changes it sets
                back when it is called again.
            parameters: what trains; gradients that are there before stay, whatever fails.
            ranks: the processes that compute the step together.

        Raises:
            RunError: a pack of a single example doesn't fit, or one of several ranks that hold weights in parts ran
                out of memory.
        """
        if ranks.sharded:
            return _whole(step, packs)
        owners = [p for p in parameters if p.requires_grad]
        before = [None if p.grad is None else p.grad.clone() for p in owners]
        cut_ = self._cut(packs)
        while True:
            result = _tried(step, cut_)
            if not isinstance(result, _Failed):
                return result
            # Only now nothing holds what the failed passes had made.
            _forget(owners, before)
            if (told := result.told) is None:
                told = ranks.begin_again(self._shrink(cut_))
            self.tokens = min(told, self.tokens or told)
            cut_ = self._cut(cut_)

    def _cut(self, packs: Sequence[Pack]) -> Sequence[Pack]:
        if self.tokens is None:
            return packs
        return [part for pack in packs for part in cut(pack, self.tokens)]

    def _shrink(self, packs: Sequence[Pack]) -> int:
        """Return half of the largest pack that can be cut, and say so; raise where there is none."""
        several = [pack for pack in packs if len(units(pack)) > 1]
        if not several:
            largest = max(packs, key=cost)
            raise RunError(
                f"The device ran out of memory with a single example in it: {_described(largest)}. Lower "
                "data.max_length, so that examples like this are left out, or take less memory: write "
                "train.activation_checkpointing: true, or see what `prefopt plan` advises."
            )
        tokens = max(map(cost, several))
        half = max(1, tokens // 2)
        _log.warning(
            "A pack of %d tokens doesn't fit into memory, so packs are cut to %d tokens from here on; the result is "
            "the same. Write train.token_budget: %d to begin with that.",
            tokens,
            half,
            half,
        )
        return half


def _described(pack: Pack) -> str:
    lengths = ", ".join(map(str, pack.length.tolist()))
    prompt = f"a prompt of {cost(pack) - int(pack.length.sum())} tokens and " if pack.layout is not None else ""
    return f"{prompt}completions of {lengths} tokens, {cost(pack)} in one pack"


def _whole(step: Callable[[Sequence[Pack]], Result], packs: Sequence[Pack]) -> Result:
    try:
        return step(packs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"The device ran out of memory with packs of up to {max(map(cost, packs))} tokens, and processes that hold "
            "weights in parts (train.shard_weights) can't compute a step again in smaller ones. Lower "
            "train.token_budget, which changes no result, and go on from the last checkpoint by --resume."
        ) from error


class _Failed(NamedTuple):
    """Memory ran out, here or on another rank."""

    told: int | None = None
    """What another rank limits packs to."""


def _tried(step: Callable[[Sequence[Pack]], Result], packs: Sequence[Pack]) -> Result | _Failed:
    """Return the result, or that memory ran out. The error dies here: it holds the tensors of its frames."""
    try:
        return step(packs)
    except BeginAgainError as other:
        return _Failed(other.tokens)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return _Failed()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator raised this."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATOR)


def _forget(owners: Sequence[nn.Parameter], before: Sequence[Tensor | None]) -> None:
    """Put gradients back as they were, and give back what the failed passes took."""
    for parameter, gradient in zip(owners, before, strict=True):
        parameter.grad = None if gradient is None else gradient.clone()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
