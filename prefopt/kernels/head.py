"""The linear head that turns hidden states into logits, and what a backend computes with it.

Letters: N scored tokens, H hidden, V vocabulary. `z_t = scale * h_t W^T + bias`, then `c tanh(z_t / c)` where a
softcap `c` is set. "The others" of a token are all vocabulary entries except its target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Head:
    """A linear head: weight, and what is done to its logits."""

    weight: Tensor
    """(V, H)."""
    bias: Tensor | None = None
    """(V,), in the weight's dtype; not multiplied by `scale`."""
    scale: float = 1.0
    """Multiplies `h W^T`."""
    softcap: float | None = None
    """`c` of `c tanh(z / c)`; None for no cap."""


class TokenScores(NamedTuple):
    """What one sweep over the vocabulary finds for every token. All (N,), in the accumulation dtype.

    The target is kept out of `top` and `total`, so that `miss` has full relative precision on confident tokens and
    `logprob = log(1 - miss)` can't become positive.
    """

    logprob: Tensor
    """`log p(target)`, nats, <= 0."""
    miss: Tensor
    """`1 - p(target)`."""
    top: Tensor
    """What the exponentials are relative to: 0, or a logit of the others near their largest."""
    total: Tensor
    """`sum of exp(z - top)` over the others."""


class BothScores(NamedTuple):
    """What one sweep finds for the same targets from two models' hidden states."""

    scores: TokenScores
    """Of the policy."""
    direction: Tensor | None
    """The policy's `d logprob_t / d h_t`, (N, H) in the accumulation dtype; None where it was not asked."""
    reference: Tensor
    """The reference's log-probs, (N,) in the accumulation dtype."""


class TokenSums(NamedTuple):
    """What statistics of a token's whole distribution are made from, over the others. All (N,), accumulation dtype."""

    top: Tensor
    """What the exponentials below are relative to."""
    total: Tensor
    """`sum of exp(z - top)`."""
    weighted: Tensor
    """`sum of exp(z - top) (z - top)`."""
    squares: Tensor
    """`sum of exp(2 (z - top))`."""
    highest: Tensor
    """The largest logit; the lowest finite number when there are no others."""


class HeadGradients(NamedTuple):
    """Gradients in their tensors' dtypes; None where none was asked."""

    hidden: Tensor | None
    """(N, H)."""
    weight: Tensor | None
    """(V, H)."""
    bias: Tensor | None
    """(V,)."""


class Backend(Protocol):
    """How log-probs and their gradients are computed; called by `ops` and `logprobs` alone."""

    def score(self, hidden: Tensor, target: Tensor, head: Head) -> TokenScores:
        """Score `target` (N,) int64 from `hidden` (N, H) without any gradient: 2NHV flops, no N x H buffer."""

    def score_with_direction(self, hidden: Tensor, target: Tensor, head: Head) -> tuple[TokenScores, Tensor]:
        """Return also `d logprob_t / d h_t`, (N, H) in the accumulation dtype: 4NHV flops. Same scores, same bits."""

    def score_both(
        self, policy: Tensor, reference: Tensor, target: Tensor, head: Head, *, with_direction: bool
    ) -> BothScores:
        """Score two models' hidden states, (N, H) each, by products over both, so that the weight is read once."""

    def sums(self, hidden: Tensor, target: Tensor, head: Head) -> TokenSums:
        """Return what `statistics` needs, without any gradient: 2NHV flops."""

    def gradients(
        self, hidden: Tensor, target: Tensor, head: Head, scores: TokenScores, upstream: Tensor, needs: tuple[bool, ...]
    ) -> HeadGradients:
        """Carry `upstream` (N,) to those of (hidden, weight, bias) that `needs` names, recomputing the logits."""

    def scale_rows(self, rows: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return each of `rows` (N, H), in the accumulation dtype, times its `factor` (N,), in `dtype`."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64 and float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
