"""Sequence log-probs from hidden states and a linear head, without a tokens x vocabulary tensor.

Letters: N scored tokens, S completions, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from prefopt.errors import nearest
from prefopt.kernels import backends, ops, oracle, statistics
from prefopt.kernels.backends import BackendName
from prefopt.kernels.checks import check_device, check_head, dtype_name
from prefopt.kernels.head import Head, accumulation_dtype
from prefopt.kernels.statistics import TokenStatistics

Reduction = Literal["sum", "mean", "none"]


class PolicyReferenceLogprobs(NamedTuple):
    """Log-probs of the same completions under two models, (S,) each: float32, or float64 for float64 input; nats."""

    policy: Tensor
    """Differentiable once."""
    reference: Tensor


_REDUCTIONS = get_args(Reduction)


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
    head = _check(hidden, weight, target, segment, bias, softcap, logit_scale, backend)
    target, segment = _check_segments(target, segment, num_segments, head, reduction)
    if backend == "fused" and _asks_gradient(hidden, head):
        raise backends.scores_alone("a gradient (an input requires one; torch.no_grad asks for none)")
    if backend == "oracle":
        token = oracle.token_logprobs(hidden, target, head)
        result = oracle.reduce_segments(token, segment, num_segments, reduction)
    else:
        token = token_logprobs(hidden, target, head, backend)
        result = reduce_segments(token, segment, num_segments, reduction)
    return result.to(accumulation_dtype(hidden.dtype))


def policy_reference_logprobs(
    policy: Tensor,
    reference: Tensor,
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
) -> PolicyReferenceLogprobs:
    """Return the log-probs of the same completions under two models that share a head, in one sweep over its weight.

    The products are over the hidden states of both, so each tile of the weight is read once while 2N rows fit one tile
    of logits. Equal hidden states get equal log-probs, bit for bit, where the vendor's product gives a row the same
    bits at any place; tests hold a CPU to that. They may differ in the last bits from those of `sequence_logprobs`.

    Args:
        policy: (N, H), as `hidden` of `sequence_logprobs`, like all arguments that are not named here.
        reference: (N, H) in policy's dtype; no gradient reaches it.

    Raises:
        ValueError: as `sequence_logprobs`.

    """
    head = _check(policy, weight, target, segment, bias, softcap, logit_scale, backend)
    if backend == "fused":
        raise backends.scores_alone("two models in one sweep")
    if (reference.shape, reference.dtype, reference.device) != (policy.shape, policy.dtype, policy.device):
        raise ValueError(
            f"reference is {tuple(reference.shape)} {dtype_name(reference)} on {reference.device} and policy "
            f"{tuple(policy.shape)} {dtype_name(policy)} on {policy.device}; they must be alike."
        )
    target, segment = _check_segments(target, segment, num_segments, head, reduction)
    if backend == "oracle":
        with torch.no_grad():
            others = oracle.token_logprobs(reference, target, head)
        tokens = [oracle.token_logprobs(policy, target, head), others]
        found = [oracle.reduce_segments(token, segment, num_segments, reduction) for token in tokens]
    else:
        tokens = _score(policy, reference.detach(), target, head, backend)
        found = [reduce_segments(token, segment, num_segments, reduction) for token in tokens]
    return PolicyReferenceLogprobs(*(x.to(accumulation_dtype(policy.dtype)) for x in found))


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
    segment = torch.zeros_like(target)
    head = _check(hidden, weight, target, segment, bias, softcap, logit_scale, backend)
    target, _ = _check_segments(target, segment, 1, head, "none")
    if backend == "fused":
        raise backends.scores_alone("statistics")
    with torch.no_grad():
        if backend == "oracle":
            found = statistics.naive(oracle.all_logprobs(hidden, head), target)
        else:
            parts = (head.weight, head.bias, target, head.scale, head.softcap, backend)
            found = TokenStatistics(*ops.token_statistics(hidden, *parts))
    dtype = accumulation_dtype(hidden.dtype)
    logprob, entropy, log_sum_p2, top1 = found
    return TokenStatistics(logprob.to(dtype), entropy.to(dtype), log_sum_p2.to(dtype), top1)


def token_logprobs(hidden: Tensor, target: Tensor, head: Head, backend: str) -> Tensor:
    """Return `log p(target)`, (N,) float32 or float64, nats, differentiable once; arguments are taken as valid."""
    return _score(hidden, None, target, head, backend)[0]


def _score(hidden: Tensor, reference: Tensor | None, target: Tensor, head: Head, backend: str) -> list[Tensor]:
    """Return `log p(target)` of `hidden` and, (0,) without one, of `reference`; no gradient reaches the latter."""
    parts = (head.weight, head.bias, target, head.scale, head.softcap, backend)
    if _asks_gradient(hidden, head) and not _asks_gradient(None, head):
        token, _, others = ops.token_directions(hidden, reference, *parts)
    else:
        token, *_, others = ops.token_scores(hidden, reference, *parts)
    return [token, others]


def _asks_gradient(hidden: Tensor | None, head: Head) -> bool:
    inputs = (hidden, head.weight, head.bias)
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def reduce_segments(token: Tensor, segment: Tensor, num_segments: int, reduction: str = "sum") -> Tensor:
    """Sum or average `token` (N,) over ascending `segment` (N,), one segment after the other: (S,) float64.

    Differentiable; "none" returns the tokens. What `sequence_logprobs` returns is this, in its own dtype.
    """
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
    bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    backend: BackendName,
) -> Head:
    """Check the arguments that every function here has, and return the head that they describe."""
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}; it must be a finite number above 0, or None for no softcap.")
    if not abs(logit_scale) < math.inf:  # as a comparison it goes into a compiled graph
        raise ValueError(f"logit_scale is {logit_scale}; it must be a finite number.")
    _check_tensors(hidden, weight, bias, target, segment)
    backends.check(backend, hidden.device, hidden.dtype)
    return Head(weight, bias, float(logit_scale), None if softcap is None else float(softcap))


def _check_segments(
    target: Tensor, segment: Tensor, num_segments: int, head: Head, reduction: str
) -> tuple[Tensor, Tensor]:
    """Check `target` and `segment` by their values too; return both in int64."""
    if isinstance(num_segments, bool) or not isinstance(num_segments, int) or num_segments < 0:
        raise ValueError(f"num_segments is {num_segments!r}; it must be an integer of at least 0.")
    if reduction not in _REDUCTIONS:
        hint = nearest(reduction, _REDUCTIONS)
        raise ValueError(f"reduction is {reduction!r}; it must be 'sum', 'mean' or 'none'{hint}.")
    return ops.checked_indices(target, segment, head.weight.shape[0], num_segments)


def _check_tensors(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, segment: Tensor) -> None:
    check_head(hidden, weight, bias)
    for name, x in (("target", target), ("segment", segment)):
        if x.shape != hidden.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be ({hidden.shape[0]},), as hidden has rows.")
        if x.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{name} has dtype {dtype_name(x)}; it must be int64 or int32.")
        check_device(name, x, "hidden", hidden)
