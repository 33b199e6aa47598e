"""Divergences between two models' next-token distributions, from two hidden states, without either's logits.

Letters: N tokens, H hidden, V vocabulary; p is the policy's distribution and r the reference's, z their logits.

    KL(r || p) = sum r (z_r - z_p) - lse_r + lse_p      d/dz_p = p - r
    KL(p || r) = sum p (z_p - z_r) - lse_p + lse_r      d/dz_p = p (log p - log r - KL)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor

from prefopt.errors import nearest
from prefopt.kernels import backends, oracle
from prefopt.kernels.backends import BackendName
from prefopt.kernels.checks import check_device, check_head, dtype_name
from prefopt.kernels.divergence_tiles import Direction, TorchPair
from prefopt.kernels.head import Head, accumulation_dtype
from prefopt.kernels.workspace import slices

Pair = Callable[[Tensor, Tensor, Head, Head, Direction], TorchPair]
"""What makes the operations on both models' tiles from (policy, reference, head, reference_head, direction)."""


def token_divergences(
    policy: Tensor,
    reference: Tensor,
    head: Head,
    direction: Direction,
    *,
    reference_head: Head | None = None,
    backend: BackendName = "auto",
) -> Tensor:
    """Return a divergence a token, (N,) float32 (float64 for float64 input), nats, differentiable once in `policy`.

    Args:
        policy: (N, H) hidden states of the policy, bfloat16, float16, float32 or float64.
        reference: (N, H) those of the reference at the same tokens, in the same dtype; no gradient reaches them.
        head: turns both into logits; no gradient reaches its weight or bias.
        direction: "reference_policy" is KL(r || p), "policy_reference" KL(p || r).
        reference_head: the reference's own head, with the same vocabulary, where it has one.
        backend: as for `sequence_logprobs`, without "fused", which gives scores alone.

    Raises:
        ValueError: shapes, dtypes or devices that don't go together, an unknown direction, or a backend that can't.

    """
    other = reference_head or head
    _check(policy, reference, head, other, direction)
    backends.check(backend, policy.device, policy.dtype)
    if backend == "fused":
        raise backends.scores_alone("divergences")
    with torch.autocast(policy.device.type, enabled=False), torch.cuda.device_of(policy):
        if backend == "oracle":
            found = oracle.token_divergences(policy, reference, head, other, direction)
            return found.to(accumulation_dtype(policy.dtype))
        pair = _pair(backends.resolve(backend, policy.device, policy.dtype))
        return Divergence.apply(policy, reference.detach(), head, other, direction, pair)


class Divergence(torch.autograd.Function):
    """One sweep over the vocabulary forward, 4NHV flops; one more backward, which knows both sums, 6NHV."""

    @staticmethod
    def forward(
        ctx: Any, policy: Tensor, reference: Tensor, head: Head, other: Head, direction: Direction, make: Pair
    ) -> Tensor:
        """Sweep once and keep both sums."""
        dtype = accumulation_dtype(policy.dtype)
        lse_p, lse_r, mean = policy.new_empty(3, policy.shape[0], dtype=torch.float64)
        pair = make(policy, reference, head, other, direction)
        for rows in slices(policy.shape[0], pair.tiles.rows):
            # A few numbers a token: in float64 none of the differences below rounds.
            top_p, total_p, top_r, total_r, gaps = (x.double() for x in pair.sums(policy[rows], reference[rows]))
            lse_p[rows] = total_p.log() + top_p
            lse_r[rows] = total_r.log() + top_r
            mean[rows] = gaps / (total_r if direction == "reference_policy" else total_p)
        apart = lse_p - lse_r if direction == "reference_policy" else lse_r - lse_p
        value = (mean + apart).clamp(min=0).to(dtype)  # rounding may leave less than nothing of two equal distributions
        # The heads' tensors too: autograd then sees when one was changed in between.
        heads = (head.weight, head.bias, other.weight, other.bias)
        ctx.save_for_backward(policy, reference, lse_p.to(dtype), lse_r.to(dtype), value, *heads)
        # Not the heads themselves: what is saved goes with the graph, and they are large.
        ctx.options = ((head.scale, head.softcap), (other.scale, other.softcap), direction, make)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Sweep again; what comes from the loss is one number a token, which multiplies its row at the end."""
        if torch.is_grad_enabled():
            raise RuntimeError("token_divergences can be differentiated once, and create_graph=True asks for more.")
        policy, reference, *kept, weight, bias, other_weight, other_bias = ctx.saved_tensors
        scales, other_scales, direction, make = ctx.options
        head, other = Head(weight, bias, *scales), Head(other_weight, other_bias, *other_scales)
        gradient = torch.empty_like(policy)
        factor = (upstream * head.scale).unsqueeze(1)
        with torch.autocast(policy.device.type, enabled=False), torch.cuda.device_of(policy):
            pair = make(policy, reference, head, other, direction)
            for rows in slices(policy.shape[0], pair.tiles.rows):
                direct = pair.gradient(policy[rows], reference[rows], *(x[rows] for x in kept))
                gradient[rows] = direct.mul_(factor[rows])
        return gradient, None, None, None, None, None


def _pair(backend: str) -> Pair:
    if backend == "triton":
        from prefopt.kernels.triton_divergence import TritonPair

        return TritonPair
    return TorchPair


def _check(policy: Tensor, reference: Tensor, head: Head, other: Head, direction: str) -> None:
    if direction not in get_args(Direction):
        raise ValueError(
            f"direction is {direction!r}; it must be 'reference_policy' or 'policy_reference'"
            f"{nearest(direction, get_args(Direction))}."
        )
    if policy.dim() != 2 or reference.dim() != 2 or policy.shape[0] != reference.shape[0]:
        raise ValueError(
            f"policy has shape {tuple(policy.shape)} and reference {tuple(reference.shape)}; both must be (N, H) with "
            "the same N."
        )
    if reference.dtype != policy.dtype:
        raise ValueError(
            f"reference has dtype {dtype_name(reference)} but policy has {dtype_name(policy)}; cast one to the other."
        )
    check_device("reference", reference, "policy", policy)
    check_head(policy, head.weight, head.bias, ("policy", "head.weight", "head.bias"))
    names = ("reference", "reference_head.weight", "reference_head.bias") if other is not head else None
    check_head(reference, other.weight, other.bias, names or ("reference", "head.weight", "head.bias"))
    if head.weight.shape[0] != other.weight.shape[0]:
        raise ValueError(
            f"the heads have {head.weight.shape[0]} and {other.weight.shape[0]} tokens; both models must have the same "
            "vocabulary."
        )
