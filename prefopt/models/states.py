"""What a model's next-token distributions are made from, and what losses ask of them, without any of the logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from prefopt.errors import ModelError
from prefopt.kernels import Head, reduce_segments, sequence_logprobs, token_divergences, token_statistics
from prefopt.records import Pack

Reduction = Literal["sum", "mean", "none"]


@dataclass(frozen=True, eq=False)
class States:
    """Hidden states that predict N tokens, and the head that turns them into logits."""

    hidden: Tensor
    """(N, H) in the head's dtype; wider by its rank where the head has a LoRA adapter."""
    head: Head
    """Its weight is as wide as `hidden`."""

    def logprobs(self, target: Tensor, segment: Tensor, num_segments: int, reduction: Reduction = "sum") -> Tensor:
        """Return what `kernels.sequence_logprobs` does for these states."""
        return sequence_logprobs(
            self.hidden,
            self.head.weight,
            target,
            segment,
            num_segments,
            bias=self.head.bias,
            softcap=self.head.softcap,
            logit_scale=self.head.scale,
            reduction=reduction,
        )

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> States:
        """Return the same on a device, in its own dtype where none is given."""
        weight, bias = self.head.weight, self.head.bias
        moved = replace(
            self.head,
            weight=weight.to(device, dtype or weight.dtype),
            bias=None if bias is None else bias.to(device, dtype or bias.dtype),
        )
        return States(self.hidden.to(device, dtype or self.hidden.dtype), moved)

    @torch.no_grad()
    def log_sum_p2(self, pack: Pack) -> Tensor:
        """Return the sum of log sum_v p(v)^2 over each completion's tokens, (S,) float32, nats, without gradient."""
        found = token_statistics(
            self.hidden,
            self.head.weight,
            pack.target,
            bias=self.head.bias,
            softcap=self.head.softcap,
            logit_scale=self.head.scale,
        ).log_sum_p2
        return reduce_segments(found, pack.segment, pack.num_sequences).to(found.dtype)

    def divergence(self, reference: States, pack: Pack) -> Tensor:
        """Return the sum of KL(reference || self) over each completion's tokens, (S,) float32, nats.

        Differentiable in `self.hidden`; no gradient reaches the reference.

        Raises:
            ModelError: the head asks for a gradient, which this has none for.
        """
        parts = [part for part in (self.head.weight, self.head.bias) if part is not None]
        if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
            raise ModelError("a divergence has no gradient for a head that trains: freeze it, or train LoRA.")
        other = reference.to(self.hidden.device, self.hidden.dtype)
        found = token_divergences(self.hidden, other.hidden, self.head, "reference_policy", reference_head=other.head)
        return reduce_segments(found, pack.segment, pack.num_sequences).to(found.dtype)
