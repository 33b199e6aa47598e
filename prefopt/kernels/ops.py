"""The fused linear log-prob as operators of torch, so that `torch.compile` takes them into its graphs whole.

Their names are `prefopt::...`; `logprobs` alone calls them, with arguments that it has checked. A head travels as its
parts (weight, bias, scale, softcap), and a backend as the text from which `backends.choose` makes one.

Letters: N scored tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prefopt.kernels import backends, statistics
from prefopt.kernels.head import Head, TokenScores, accumulation_dtype

_HEAD = "Tensor weight, Tensor? bias, Tensor target, float scale, float? softcap, str backend"
_INPUTS = 8
"""Arguments of the two operators that score."""


def _operator(schema: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function the operator `prefopt::...` of that schema.

    Not by `torch.library.custom_op`, whose first call imports the compiler: two seconds and 160 MiB.
    """
    name = schema.partition("(")[0]
    torch.library.define(f"prefopt::{name}", schema.removeprefix(name))

    def decorate(function: Callable[..., Any]) -> Any:
        torch.library.impl(f"prefopt::{name}", "CompositeExplicitAutograd")(function)
        return getattr(torch.ops.prefopt, name).default

    return decorate


def _shapes(operator: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a function say the shapes of an operator's results, for the compiler."""
    return torch.library.register_fake(operator.name())


@contextmanager
def _on(tensor: Tensor) -> Iterator[None]:
    """Compute where `tensor` is, in the dtypes that are written."""
    with torch.autocast(tensor.device.type, enabled=False), torch.cuda.device_of(tensor):
        yield


@_operator(f"token_scores(Tensor hidden, Tensor? reference, {_HEAD}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
def token_scores(
    hidden: Tensor, reference: Tensor | None, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float,
    softcap: float | None, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the `TokenScores` of `hidden` (N, H), and the log-probs of `reference` (N, H): (N,), (0,) without one."""
    head = Head(weight, bias, scale, softcap)
    with _on(hidden):
        chosen = backends.choose(backend, hidden.device, hidden.dtype)
        if reference is None:
            return *chosen.score(hidden, target, head), _none(hidden)
        scores, _, others = chosen.score_both(hidden, reference, target, head, with_direction=False)
    return *scores, others


@_operator(f"token_directions(Tensor hidden, Tensor? reference, {_HEAD}) -> (Tensor, Tensor, Tensor)")
def token_directions(
    hidden: Tensor, reference: Tensor | None, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float,
    softcap: float | None, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the log-probs of `hidden`, `d logprob_t / d h_t` (N, H), and the log-probs of `reference`, as above."""
    head = Head(weight, bias, scale, softcap)
    with _on(hidden):
        chosen = backends.choose(backend, hidden.device, hidden.dtype)
        if reference is None:
            scores, direction = chosen.score_with_direction(hidden, target, head)
            return scores.logprob, direction, _none(hidden)
        both = chosen.score_both(hidden, reference, target, head, with_direction=True)
    assert both.direction is not None  # it was asked
    return both.scores.logprob, both.direction, both.reference


@_operator(f"token_statistics(Tensor hidden, {_HEAD}) -> (Tensor, Tensor, Tensor, Tensor)")
def token_statistics(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, softcap: float | None,
    backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the `TokenStatistics` of `hidden` (N, H), numbers in float64; without gradient."""
    head = Head(weight, bias, scale, softcap)
    with _on(hidden):
        sums = backends.choose(backend, hidden.device, hidden.dtype).sums(hidden, target, head)
        return statistics.of_sums(hidden, target, head, sums)


@_operator(f"head_gradients(Tensor hidden, {_HEAD}, Tensor[] scores, Tensor upstream, bool[] needs) -> Tensor[]")
def head_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, softcap: float | None,
    backend: str, scores: list[Tensor], upstream: Tensor, needs: list[bool],
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of those of (hidden, weight, bias) that `needs` names, recomputing the logits."""
    head = Head(weight, bias, scale, softcap)
    with _on(hidden):
        chosen = backends.choose(backend, hidden.device, hidden.dtype)
        found = chosen.gradients(hidden, target, head, TokenScores(*scores), upstream, tuple(needs))
    return [gradient for gradient in found if gradient is not None]


@_operator("scale_rows(Tensor rows, Tensor factor, ScalarType dtype, str backend) -> Tensor")
def scale_rows(rows: Tensor, factor: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    """Return each of `rows` (N, H) times its `factor` (N,), in `dtype`."""
    with _on(rows):
        return backends.choose(backend, rows.device, dtype).scale_rows(rows, factor, dtype)


@_operator("checked_indices(Tensor target, Tensor segment, int vocabulary, int num_segments) -> (Tensor, Tensor)")
def checked_indices(target: Tensor, segment: Tensor, vocabulary: int, num_segments: int) -> tuple[Tensor, Tensor]:
    """Return copies of `target` and `segment` (N,) in int64; raise ValueError when their values can't be used.

    While a CUDA graph is captured values can't be looked at, and are taken as they are.
    """
    capturing = target.is_cuda and torch.cuda.is_current_stream_capturing()
    if target.numel() and not capturing:
        _check_indices(target.long(), segment.long(), vocabulary, num_segments)
    return target.to(torch.int64, copy=True), segment.to(torch.int64, copy=True)


def _check_indices(target: Tensor, segment: Tensor, vocabulary: int, num_segments: int) -> None:
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


def _none(hidden: Tensor) -> Tensor:
    return hidden.new_empty(0, dtype=accumulation_dtype(hidden.dtype))


# ---- gradients ----


def _keep_for_recomputing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, _, weight, bias, target, *ctx.options = inputs
    ctx.save_for_backward(hidden, weight, bias, target, *output[:4])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _recompute(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    _refuse_second_derivative()
    if upstream is None:
        return (None,) * _INPUTS
    hidden, weight, bias, target, *scores = ctx.saved_tensors
    hidden_needs, _, weight_needs, bias_needs, *_ = ctx.needs_input_grad
    needs = [hidden_needs, weight_needs, bias_needs]
    found = iter(head_gradients(hidden, weight, bias, target, *ctx.options, scores, upstream, needs))
    d_hidden, d_weight, d_bias = (next(found) if need else None for need in needs)
    return d_hidden, None, d_weight, d_bias, *(None,) * (_INPUTS - 4)


def _keep_direction(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.dtype, ctx.backend = inputs[0].dtype, inputs[-1]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _scale_direction(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    _refuse_second_derivative()
    if upstream is None:
        return (None,) * _INPUTS
    (direction,) = ctx.saved_tensors
    return scale_rows(direction, upstream, ctx.dtype, ctx.backend), *(None,) * (_INPUTS - 1)


def _refuse_second_derivative() -> None:
    # The engine enables gradients here for create_graph only. Without this a second derivative would lack its part.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "sequence_logprobs can be differentiated once, and create_graph=True asks for more; compute second "
            "derivatives of small cases with backend='oracle'."
        )


torch.library.register_autograd(token_scores.name(), _recompute, setup_context=_keep_for_recomputing)
torch.library.register_autograd(token_directions.name(), _scale_direction, setup_context=_keep_direction)


# ---- shapes alone, for the compiler ----


def _tokens(hidden: Tensor, count: int = 1) -> tuple[Tensor, ...]:
    dtype = accumulation_dtype(hidden.dtype)
    return tuple(hidden.new_empty(hidden.shape[0], dtype=dtype) for _ in range(count))


@_shapes(token_scores)
def _(hidden: Tensor, reference: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    return *_tokens(hidden, 4), _none(hidden) if reference is None else _tokens(hidden)[0]


@_shapes(token_directions)
def _(hidden: Tensor, reference: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    direction = hidden.new_empty(hidden.shape, dtype=accumulation_dtype(hidden.dtype))
    return *_tokens(hidden), direction, _none(hidden) if reference is None else _tokens(hidden)[0]


@_shapes(token_statistics)
def _(hidden: Tensor, *_: Any) -> tuple[Tensor, ...]:
    numbers = (hidden.new_empty(hidden.shape[0], dtype=torch.float64) for _ in range(3))
    return *numbers, hidden.new_empty(hidden.shape[0], dtype=torch.bool)


@_shapes(head_gradients)
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> list[Tensor]:
    needed = zip((hidden, weight, bias), rest[-1], strict=True)
    return [x.new_empty(x.shape) for x, need in needed if need and x is not None]


@_shapes(scale_rows)
def _(rows: Tensor, factor: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    return torch.empty_like(rows, dtype=dtype)


@_shapes(checked_indices)
def _(target: Tensor, segment: Tensor, vocabulary: int, num_segments: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(target, dtype=torch.int64), torch.empty_like(segment, dtype=torch.int64)
