"""Divergences between two models' next-token distributions, from two hidden states, without either's logits.

Letters: N tokens, H hidden, V vocabulary; p is the policy's distribution and r the reference's, z their logits.

    KL(r || p) = sum r (z_r - z_p) - lse_r + lse_p      d/dz_p = p - r
    KL(p || r) = sum p (z_p - z_r) - lse_p + lse_r      d/dz_p = p (log p - log r - KL)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from prefopt.kernels.head import Head, accumulation_dtype
from prefopt.kernels.workspace import Tiles, finish_logits, slices

Direction = Literal["reference_policy", "policy_reference"]


def token_divergences(
    policy: Tensor, reference: Tensor, head: Head, direction: Direction, *, reference_head: Head | None = None
) -> Tensor:
    """Return a divergence a token, (N,) float32 (float64 for float64 input), nats, differentiable once in `policy`.

    Args:
        policy: (N, H) hidden states of the policy, bfloat16, float16, float32 or float64.
        reference: (N, H) those of the reference at the same tokens, in the same dtype; no gradient reaches them.
        head: turns both into logits; no gradient reaches its weight or bias.
        direction: "reference_policy" is KL(r || p), "policy_reference" KL(p || r).
        reference_head: the reference's own head, with the same vocabulary, where it has one.

    Raises:
        ValueError: shapes, dtypes or devices that don't go together, or an unknown direction.

    """
    other = reference_head or head
    _check(policy, reference, head, other, direction)
    with torch.autocast(policy.device.type, enabled=False), torch.cuda.device_of(policy):
        return _Divergence.apply(policy, reference.detach(), head, other, direction)


class _Divergence(torch.autograd.Function):
    """One sweep over the vocabulary forward, 4NHV flops; one more backward, which knows both sums, 6NHV."""

    @staticmethod
    def forward(ctx: Any, policy: Tensor, reference: Tensor, head: Head, other: Head, direction: Direction) -> Tensor:
        count, dtype = policy.shape[0], accumulation_dtype(policy.dtype)
        lse_p, lse_r, mean = (policy.new_zeros(count, 1, dtype=torch.float64) for _ in range(3))
        for rows in slices(count, _tiles(policy).rows):
            n = policy[rows].shape[0]
            top_p, top_r = policy.new_full((2, n, 1), torch.finfo(dtype).min, dtype=dtype)
            sum_p, sum_r, gaps = policy.new_zeros((3, n, 1), dtype=dtype)
            for block, _, x, y, _ in _blocks(policy[rows], reference[rows], head, other):
                e_p, shrunk_p = _exponentials(x, top_p[block])
                e_r, shrunk_r = _exponentials(y, top_r[block])
                sum_p[block] = sum_p[block] * shrunk_p + e_p.sum(1, keepdim=True)
                sum_r[block] = sum_r[block] * shrunk_r + e_r.sum(1, keepdim=True)
                first, ahead, behind, shrunk = (
                    (e_r, y, x, shrunk_r) if direction == "reference_policy" else (e_p, x, y, shrunk_p)
                )
                # Where both logits are -inf (a padded vocabulary) their difference is no number: it counts for nothing.
                terms = torch.where(first > 0, first * (ahead - behind), 0.0)
                gaps[block] = gaps[block] * shrunk + terms.sum(1, keepdim=True)
            lse_p[rows] = sum_p.double().log() + top_p.double()
            lse_r[rows] = sum_r.double().log() + top_r.double()
            mean[rows] = gaps.double() / (sum_r if direction == "reference_policy" else sum_p).double()
        apart = lse_p - lse_r if direction == "reference_policy" else lse_r - lse_p
        value = (mean + apart).clamp(min=0)  # rounding may leave less than nothing of two equal distributions
        ctx.save_for_backward(policy, reference, lse_p.to(dtype), lse_r.to(dtype), value.to(dtype))
        ctx.heads, ctx.direction = (head, other), direction
        return value.squeeze(1).to(dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("token_divergences can be differentiated once, and create_graph=True asks for more.")
        policy, reference, lse_p, lse_r, value = ctx.saved_tensors
        head, other = ctx.heads
        gradient = torch.zeros_like(policy, dtype=lse_p.dtype)
        # Differences of probabilities are below what float16 holds.
        wide = policy.dtype == torch.float16
        with torch.autocast(policy.device.type, enabled=False):
            for rows in slices(policy.shape[0], _tiles(policy).rows):
                mine, part = gradient[rows], upstream[rows].unsqueeze(1)
                for block, columns, x, y, slope in _blocks(policy[rows], reference[rows], head, other):
                    p = torch.exp(x - lse_p[rows][block])
                    if ctx.direction == "reference_policy":
                        d = p - torch.exp(y - lse_r[rows][block])
                    else:
                        ratio = (x - lse_p[rows][block]) - (y - lse_r[rows][block]) - value[rows][block]
                        d = torch.where(p > 0, p * ratio, 0.0)
                    d = d * part[block] if slope is None else d * part[block] * slope
                    weight = head.weight[columns]
                    low, right = (d, weight.to(d.dtype)) if wide else (d.to(policy.dtype), weight)
                    mine[block] += torch.mm(low, right)
        return (gradient * head.scale).to(policy.dtype), None, None, None, None


def _blocks(
    policy: Tensor, reference: Tensor, head: Head, other: Head
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor | None]]:
    """Yield blocks: rows, columns, the policy's logits, the reference's, and if capped the policy's `1 - tanh^2`."""
    tiles, dtype = _tiles(policy), accumulation_dtype(policy.dtype)
    for columns in slices(head.weight.shape[0], tiles.columns):
        both = [h @ side.weight[columns].T for h, side in ((policy, head), (reference, other))]
        for rows in slices(policy.shape[0], tiles.block):
            logits, slope = [], None
            for low, side in zip(both, (head, other), strict=True):
                x = low[rows].to(dtype, copy=True)
                finish_logits(x, side, None if side.bias is None else side.bias[columns])
                if side.softcap is not None:
                    slope = 1 - x * x if side is head and slope is None else slope
                    x.mul_(side.softcap)
                logits.append(x)
            yield rows, columns, logits[0], logits[1], slope


def _exponentials(x: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(x - top) with the new `top`, which is moved in place, and what older sums shrink by."""
    new = torch.maximum(top, x.amax(1, keepdim=True))
    shrunk = torch.exp(top - new)
    top.copy_(new)
    return torch.exp(x - new), shrunk


def _tiles(hidden: Tensor) -> Tiles:
    return Tiles.choose(hidden)


def _check(policy: Tensor, reference: Tensor, head: Head, other: Head, direction: str) -> None:
    if direction not in ("reference_policy", "policy_reference"):
        raise ValueError(f"direction is {direction!r}; it must be 'reference_policy' or 'policy_reference'.")
    if policy.dim() != 2 or reference.dim() != 2 or policy.shape[0] != reference.shape[0]:
        raise ValueError(
            f"policy has shape {tuple(policy.shape)} and reference {tuple(reference.shape)}; both must be (N, H) with "
            "the same N."
        )
    for name, hidden, side in (("policy", policy, head), ("reference", reference, other)):
        if hidden.shape[1] != side.weight.shape[1]:
            raise ValueError(
                f"{name} has shape {tuple(hidden.shape)} and its head {tuple(side.weight.shape)}; they must be (N, H) "
                "and (V, H) with the same H."
            )
        if hidden.dtype != side.weight.dtype or hidden.device != side.weight.device:
            raise ValueError(
                f"{name} is {hidden.dtype} on {hidden.device} and its head {side.weight.dtype} on "
                f"{side.weight.device}; move or cast one to the other."
            )
    if policy.dtype != reference.dtype or policy.device != reference.device:
        raise ValueError(
            f"policy is {policy.dtype} on {policy.device} and reference {reference.dtype} on {reference.device}; they "
            "must be of one dtype on one device."
        )
    if head.weight.shape[0] != other.weight.shape[0] or head.weight.shape[0] == 0:
        raise ValueError(
            f"the heads have {head.weight.shape[0]} and {other.weight.shape[0]} tokens; both models must have the same "
            "vocabulary, of one token at least."
        )
