"""Shared-prompt attention: every completion of a row attends to its own prompt and to itself, never to a sibling.

Registered with transformers under `SHARED_PROMPT`; the row's `Layout` arrives as the forward keyword `layout`. On a GPU
FlexAttention computes it (`flex`). Elsewhere the products run on the tiles of `attention_plan`, and forward and
backward are written out, so that between the two no more is kept than the gathered queries, keys and values and, where
they are small, the probabilities.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from prefopt.errors import ModelError
from prefopt.kernels.attention_plan import Plan, Tile, build_plan
from prefopt.records import Layout

SHARED_PROMPT = "prefopt_shared_prompt"
CALLS = "attention calls"
"""Key of a layout's plans: how many layers have attended by it, so that a caller can tell whether all did."""

_KEEP = 4
"""Probabilities up to this many times the size of queries, keys and values are kept; larger ones are computed again."""


def register() -> None:
    """Make the attention selectable as `SHARED_PROMPT`; calling it again changes nothing.

    No mask function is registered under the name: transformers then builds no (T, T) mask.
    """
    AttentionInterface.register(SHARED_PROMPT, shared_prompt_attention)


def shared_prompt_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each prompt and from each completion to its prompt and itself, causally by position.

    `query` (1, Hq, T, D), `key` (1, Hkv, T, D) and `value` (1, Hkv, T, Dv) hold the row that `layout` describes.
    A token sees positions less than `sliding_window` behind its own; a completion's first token follows its prompt's
    last. `s_aux` (Hq,) are attention sinks: one more logit a head that takes probability and gives nothing.

    Returns (1, T, Hq, Dv) and None. Raises ModelError when the layout is missing or does not describe the row.
    """
    if layout is None:
        raise ModelError(
            f"{type(module).__name__} called shared-prompt attention without the layout of the row: this architecture "
            "drops unknown forward keywords, so completions would see each other; score it in unshared rows"
        )
    rows, heads, tokens, _ = query.shape
    if rows != 1 or tokens != layout.tokens or attention_mask is not None:
        raise ModelError(
            f"shared-prompt attention takes one row of the layout's {layout.tokens} tokens without an attention mask, "
            f"but {type(module).__name__} passed {rows} rows of {tokens} tokens"
            f"{'' if attention_mask is None else ' with a mask'}; use a key-value cache only outside of scoring"
        )
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    layout.plans[CALLS] = layout.plans.get(CALLS, 0) + 1
    window = reaching(layout, sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    sinks = None if s_aux is None else s_aux.reshape(heads)
    with torch.autocast(query.device.type, enabled=False):
        if _by_flex(query, value, dropout):
            return _flex(layout, window, query, key, value, scale=scale, softcap=softcap, sinks=sinks), None
        plan = _plan(layout, query, key, window, s_aux is not None)
        out = _Attention.apply(
            *(x.squeeze(0).transpose(0, 1) for x in (query, key, value)), sinks, plan, scale, softcap, float(dropout)
        )
    return out.unsqueeze(0), None


def reaching(layout: Layout, window: int | None) -> int | None:
    """Return the window, or None where it reaches every position of the row."""
    longest = max(g.prompt + max(g.completions, default=0) for g in layout.groups)
    return None if window is None or window >= longest else window


def _by_flex(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether FlexAttention computes it: on a GPU, but not with dropout, in float64 or for tiny heads."""
    if query.device.type != "cuda" or dropout > 0 or query.dtype == torch.float64:
        return False
    from prefopt.kernels import flex

    return min(query.shape[-1], value.shape[-1]) >= flex.LEAST_HEAD and not flex.unavailable(query.device)


def _flex(layout: Layout, window: int | None, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Attend by the layout's block mask, made at the first call for a pack and kept with its layout."""
    from prefopt.kernels import flex

    name = ("flex", window, query.device)
    if name not in layout.plans:
        layout.plans[name] = flex.build_block_mask(layout, window, query.device)
    return flex.attend(query, key, value, layout.plans[name], **options)


def _plan(layout: Layout, query: Tensor, key: Tensor, window: int | None, sinks: bool) -> Plan:
    """Return the layout's plan for such layers, made at the first call for a pack and kept with its layout."""
    name = plan_name(query, key, window, sinks=sinks)
    if name not in layout.plans:
        layout.plans[name] = build_plan(
            layout,
            heads=query.shape[1],
            kv_heads=key.shape[1],
            window=window,
            sinks=sinks,
            device=query.device,
            dtype=query.dtype,
        )
    plan: Plan = layout.plans[name]
    return plan


def plan_name(query: Tensor, key: Tensor, window: int | None, *, sinks: bool) -> tuple[object, ...]:
    """Return the key under which a layout keeps its plan for such layers."""
    return ("attention", query.shape[1], key.shape[1], window, sinks, query.device, query.dtype)


class _Attention(torch.autograd.Function):
    """Attention over a plan's tiles: query (T, Hq, D), key (T, Hkv, D), value (T, Hkv, Dv), sinks (Hq,) or None."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        plan: Plan,
        scale: float,
        softcap: float | None,
        dropout: float,
    ) -> Tensor:
        q, k, v = _take(query, plan.query_rows), _take(key, plan.key_rows), _take(value, plan.key_rows)
        out = v.new_empty(q.shape[0], v.shape[1])
        needed = any(ctx.needs_input_grad)
        keep = needed and softcap is None and plan.scores <= _KEEP * (query.numel() + key.numel() + value.numel())
        kept: list[Tensor] = []
        drops: list[Tensor] = []
        for tile in plan.tiles:
            probs, _ = _probabilities(tile, q, k, sinks, scale, softcap)
            if keep:
                kept.append(probs)
            if dropout > 0:
                drops.append(torch.empty_like(probs).bernoulli_(1 - dropout).div_(1 - dropout))
                probs = probs * drops[-1]
            torch.bmm(tile.of_scores(probs), tile.of_keys(v), out=tile.of_queries(out))
        if needed:
            ctx.save_for_backward(q, k, v, sinks, *kept, *drops)
            ctx.plan, ctx.scale, ctx.softcap, ctx.kept = plan, scale, softcap, len(kept)
            ctx.shapes = query.shape, key.shape, value.shape
        return out.index_select(0, plan.query_back).view(*query.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, *rest = ctx.saved_tensors
        plan: Plan = ctx.plan
        kept, drops = rest[: ctx.kept], rest[ctx.kept :]
        d_out, d_q = _take(grad, plan.query_rows), torch.empty_like(q)
        sums = sum(rows.shape[0] for rows in plan.key_sums)
        d_k, d_v = (x.new_empty(x.shape[0] + sums, x.shape[1]) for x in (k, v))
        d_sinks: Tensor | float = 0.0
        with torch.autocast(q.device.type, enabled=False):
            for index, tile in enumerate(plan.tiles):
                probs, tanh = (kept[index], None) if kept else _probabilities(tile, q, k, sinks, ctx.scale, ctx.softcap)
                d_scores = _backward_values(tile, probs, drops[index] if drops else None, d_out, v, d_v)
                if sinks is not None:
                    d_sinks = d_sinks + d_scores[..., -1].sum((0, 3), dtype=torch.promote_types(q.dtype, torch.float32))
                if tanh is not None:
                    d_scores *= 1 - tanh * tanh
                _backward_scores(tile, d_scores, ctx.scale, q, k, d_q, d_k)
        query, key, value = ctx.shapes
        return (
            d_q.index_select(0, plan.query_back).view(query),
            _sum_keys(plan, d_k).view(key),
            _sum_keys(plan, d_v).view(value),
            d_sinks.flatten().to(sinks.dtype) if isinstance(d_sinks, Tensor) else None,
            *(None,) * 4,
        )


def _take(heads: Tensor, rows: Tensor) -> Tensor:
    """Return these head vectors of (T, heads, D) as a matrix."""
    return heads.reshape(-1, heads.shape[-1]).index_select(0, rows)


def _probabilities(
    tile: Tile, q: Tensor, k: Tensor, sinks: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return the tile's probabilities, shaped as its scores, and with a softcap the tanh of its scores.

    Scores round to the inputs' dtype as they leave the product; softmax computes in float32 and rounds its result.
    """
    queries, keys = tile.of_queries(q), tile.of_keys(k).transpose(1, 2)
    tanh = None
    if softcap is None:
        scores = tile.mask.expand(tile.shape).clone(memory_format=torch.contiguous_format)
        inner = tile.of_scores(scores)
        torch.baddbmm(inner, queries, keys, alpha=scale, out=inner)
    else:
        tanh = q.new_zeros(tile.shape)
        inner = tile.of_scores(tanh)
        torch.baddbmm(inner, queries, keys, beta=0, alpha=scale / softcap, out=inner)
        scores = torch.add(tile.mask, tanh.tanh_(), alpha=softcap)
    if sinks is not None:
        scores[..., -1] += sinks.view(*tile.shape[1:3], 1).to(scores.dtype)
    return torch.softmax(scores, -1, out=scores), tanh


def _backward_values(tile: Tile, probs: Tensor, drop: Tensor | None, d_out: Tensor, v: Tensor, d_v: Tensor) -> Tensor:
    """Write the gradient of the tile's value rows and return that of its scores."""
    dropped = probs if drop is None else probs * drop
    d_outs = tile.of_queries(d_out)
    torch.bmm(tile.of_scores(dropped).transpose(1, 2), d_outs, out=tile.of_keys(d_v))
    d_probs = torch.empty_like(probs)
    if tile.keys < tile.shape[-1]:
        d_probs[..., tile.keys :] = 0
    torch.bmm(d_outs, tile.of_keys(v).transpose(1, 2), out=tile.of_scores(d_probs))
    if drop is not None:
        d_probs *= drop
    return torch._softmax_backward_data(d_probs, probs, -1, probs.dtype)


def _backward_scores(
    tile: Tile, d_scores: Tensor, scale: float, q: Tensor, k: Tensor, d_q: Tensor, d_k: Tensor
) -> None:
    """Write the gradients of the tile's query and key rows."""
    inner, d_queries, d_keys = tile.of_scores(d_scores), tile.of_queries(d_q), tile.of_keys(d_k)
    torch.baddbmm(d_queries, inner, tile.of_keys(k), beta=0, alpha=scale, out=d_queries)
    torch.baddbmm(d_keys, inner.transpose(1, 2), tile.of_queries(q), beta=0, alpha=scale, out=d_keys)


def _sum_keys(plan: Plan, d_rows: Tensor) -> Tensor:
    """Return (T * Hkv, D): each key row's gradient, added up where several strips use the key."""
    stop = plan.key_rows.numel()
    for rows in plan.key_sums:
        start, stop = stop, stop + rows.shape[0]
        torch.sum(d_rows.index_select(0, rows.flatten()).view(*rows.shape, -1), 1, out=d_rows[start:stop])
    return d_rows.index_select(0, plan.key_back)
