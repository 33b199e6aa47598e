"""Sequence log-probs from hidden states and a linear head, without a tokens x vocabulary tensor.

Letters: N scored tokens, S completions, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from prefopt.errors import nearest
from prefopt.kernels import backends, oracle, statistics
from prefopt.kernels.backends import BackendName
from prefopt.kernels.checks import check_device, check_head, dtype_name
from prefopt.kernels.head import Backend, Head, TokenScores, accumulation_dtype
from prefopt.kernels.statistics import TokenStatistics

Reduction = Literal["sum", "mean", "none"]


def sequence_logprobs(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    segment: Tensor,
    num_segments: int,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    reduction: Reduction = "sum",
    backend: BackendName = "auto",
) -> Tensor:
    """Return the log-prob of each completion: (S,) float32 (float64 for float64 input), nats.

    Token logits are `z = logit_scale * h W^T + bias`, then `softcap * tanh(z / softcap)` where given. Differentiable
    once in `hidden`, `weight` and `bias`. When neither weight nor bias asks for a gradient, the gradient of `hidden` is
    computed along with the forward pass. Autocast has no effect inside.

    Args:
        hidden: (N, H) the hidden states that predict the tokens; bfloat16, float16, float32 or float64.
        weight: (V, H) the head's weight, in hidden's dtype.
        target: (N,) integer, the token that each must predict.
        segment: (N,) integer, ascending; the completion that each token belongs to.
        num_segments: S.
        bias: (V,) in hidden's dtype.
        softcap: the cap of Gemma 2's logits, > 0.
        logit_scale: multiplies the logits before the bias.
        reduction: "sum" or "mean" over each completion's tokens, (S,), 0 for one without tokens; "none": (N,).
        backend: "triton" (kernels for a GPU), "fused" (scores alone on a GPU, without logits in memory), "torch" (tiles
            on any device), "oracle" (naive, float64, tests only) or "auto": what `backends.recommend` says of the
            device.

    Raises:
        ValueError: a shape, dtype, device, index or option that can't be used; nothing is computed before.

    """
    head = _check(hidden, weight, target, segment, num_segments, bias, softcap, logit_scale, reduction, backend)
    if backend == "fused" and _asks_gradient(hidden, head):
        raise backends.scores_alone("a gradient (an input requires one; torch.no_grad asks for none)")
    target, segment = target.long(), segment.long()
    with torch.autocast(hidden.device.type, enabled=False), torch.cuda.device_of(hidden):
        if backend == "oracle":
            token = oracle.token_logprobs(hidden, target, head)
            result = oracle.reduce_segments(token, segment, num_segments, reduction)
        else:
            token = token_logprobs(hidden, target, head, backends.choose(backend, hidden.device, hidden.dtype))
            result = _reduce_segments(token, segment, num_segments, reduction)
    return result.to(accumulation_dtype(hidden.dtype))


def token_statistics(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    backend: BackendName = "auto",
) -> TokenStatistics:
    """Return what is known of every token's whole distribution, without a gradient and without a tensor of logits.

    Arguments and errors are those of `sequence_logprobs`. One sweep over the vocabulary gives all of it: 2NHV flops.
    """
    head = _check(hidden, weight, target, torch.zeros_like(target), 1, bias, softcap, logit_scale, "none", backend)
    if backend == "fused":
        raise backends.scores_alone("statistics")
    target = target.long()
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False), torch.cuda.device_of(hidden):
        if backend == "oracle":
            found = statistics.naive(oracle.all_logprobs(hidden, head), target)
        else:
            sums = backends.choose(backend, hidden.device, hidden.dtype).sums(hidden, target, head)
            found = statistics.of_sums(hidden, target, head, sums)
    dtype = accumulation_dtype(hidden.dtype)
    logprob, entropy, log_sum_p2, top1 = found
    return TokenStatistics(logprob.to(dtype), entropy.to(dtype), log_sum_p2.to(dtype), top1)


def token_logprobs(hidden: Tensor, target: Tensor, head: Head, backend: Backend) -> Tensor:
    """Return `log p(target)`, (N,) float32 or float64, nats, differentiable once; arguments are taken as valid."""
    if _asks_gradient(hidden, head):
        return TokenLogprobs.apply(hidden, head.weight, head.bias, target, head.scale, head.softcap, backend)
    return backend.score(hidden, target, head).logprob


def _asks_gradient(hidden: Tensor, head: Head) -> bool:
    inputs = (hidden, head.weight, head.bias)
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


class TokenLogprobs(torch.autograd.Function):
    """The one autograd function of the fused head, over any backend."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        scale: float,
        softcap: float | None,
        backend: Backend,
    ) -> Tensor:
        """Score the targets and keep what the backward pass needs."""
        head = Head(weight, bias, scale, softcap)
        ctx.frozen_head = not any(ctx.needs_input_grad[1:3])
        if ctx.frozen_head:
            scores, direction = backend.score_with_direction(hidden, target, head)
            ctx.save_for_backward(direction)
            ctx.dtype, ctx.backend = hidden.dtype, backend
        else:
            scores = backend.score(hidden, target, head)
            ctx.save_for_backward(hidden, weight, bias, target, *scores)
            ctx.options = (scale, softcap, backend)
        return scores.logprob

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the direction of each token, or recompute the logits for a head in training."""
        # The engine enables gradients here for create_graph only. Without this a second derivative would lack its part.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "sequence_logprobs can be differentiated once, and create_graph=True asks for more; compute second "
                "derivatives of small cases with backend='oracle'."
            )
        rest = (None,) * 4
        if ctx.frozen_head:
            (direction,) = ctx.saved_tensors
            return ctx.backend.scale_rows(direction, upstream, ctx.dtype), None, None, *rest
        hidden, weight, bias, target, *kept = ctx.saved_tensors
        scale, softcap, backend = ctx.options
        scores = TokenScores(*kept)
        needs = ctx.needs_input_grad[:3]
        with torch.autocast(hidden.device.type, enabled=False):
            gradients = backend.gradients(hidden, target, Head(weight, bias, scale, softcap), scores, upstream, needs)
        return *gradients, *rest


def _reduce_segments(token: Tensor, segment: Tensor, num_segments: int, reduction: str) -> Tensor:
    """Sum or average `token` (N,) over ascending `segment` (N,), one segment after the other in float64: (S,)."""
    if reduction == "none":
        return token
    if num_segments == 0:
        return token[:0]
    bounds = torch.searchsorted(segment.contiguous(), torch.arange(num_segments + 1, device=segment.device))
    length = bounds.diff()
    total: Tensor = torch.segment_reduce(token.double(), "sum", lengths=length, unsafe=True, initial=0)
    return total / length.clamp(min=1) if reduction == "mean" else total


def _check(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    segment: Tensor,
    num_segments: int,
    bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    reduction: str,
    backend: BackendName,
) -> Head:
    """Check all arguments and return the head that they describe."""
    _check_options(num_segments, softcap, logit_scale, reduction)
    _check_tensors(hidden, weight, bias, target, segment)
    backends.check(backend, hidden.device, hidden.dtype)
    _check_indices(target.long(), segment.long(), weight.shape[0], num_segments)
    return Head(weight, bias, float(logit_scale), None if softcap is None else float(softcap))


def _check_options(num_segments: int, softcap: float | None, logit_scale: float, reduction: str) -> None:
    if isinstance(num_segments, bool) or not isinstance(num_segments, int) or num_segments < 0:
        raise ValueError(f"num_segments is {num_segments!r}; it must be an integer of at least 0.")
    if softcap is not None and not (softcap > 0 and math.isfinite(softcap)):
        raise ValueError(f"softcap is {softcap}; it must be a finite number above 0, or None for no softcap.")
    if not math.isfinite(logit_scale):
        raise ValueError(f"logit_scale is {logit_scale}; it must be a finite number.")
    if reduction not in get_args(Reduction):
        hint = nearest(reduction, get_args(Reduction))
        raise ValueError(f"reduction is {reduction!r}; it must be 'sum', 'mean' or 'none'{hint}.")


def _check_tensors(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, segment: Tensor) -> None:
    check_head(hidden, weight, bias)
    for name, x in (("target", target), ("segment", segment)):
        if x.shape != hidden.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be ({hidden.shape[0]},), as hidden has rows.")
        if x.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{name} has dtype {dtype_name(x)}; it must be int64 or int32.")
        check_device(name, x, "hidden", hidden)


def _check_indices(target: Tensor, segment: Tensor, vocabulary: int, num_segments: int) -> None:
    if target.numel() == 0:
        return
    falls = (segment.diff() < 0).any()
    # One transfer from the device for all of it.
    facts = torch.stack([*target.aminmax(), *segment.aminmax(), falls.long()]).tolist()
    low, high, first, last, descends = facts
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"target holds {low if low < 0 else high}; every entry must be from 0 to {vocabulary - 1}, so leave "
            "masked positions (-100) out of hidden and target."
        )
    if first < 0 or last >= num_segments:
        raise ValueError(
            f"segment holds {first if first < 0 else last}; every entry must be from 0 to num_segments - 1 = "
            f"{num_segments - 1}."
        )
    if descends:
        raise ValueError("segment must ascend: sort the tokens so that those of one completion stand together.")
