"""Which queries of a shared-prompt row meet which keys: the layout cut into batched matrix products.

A *strip* is a run of one sequence's queries with the keys they need: a run of their prompt and a run of their own
sequence. A *tile* is a batch of strips padded to one shape. A prompt's keys stand in the tile once for each of its
completions: that costs a gather and saves splitting every score row in two, which was slower for 2 to 64 completions.
Letters: T tokens of the row, B strips of a tile, Q queries and K keys of a strip, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from prefopt.kernels.shapes import COUNTS, compiles_by_shape, rounded
from prefopt.records import GroupLayout, Layout

_CHUNK = 128
"""Queries of a long sequence done at once: causal attention then skips most of the keys that it would mask."""
_LONG = 192
"""Sequences above this many tokens are cut into chunks."""
_TILE_COST = {"cpu": 40_000, "cuda": 4_000_000}
"""What one more tile costs, in scores computed instead (measured on AVX512-BF16 cores)."""
_QUERY_COST = 32
"""What a query costs beside its scores, in scores."""
_LOOKBACK = 64


@dataclass(frozen=True)
class Strip:
    """Queries `start..stop` of the row, with the keys `prompt_start..prompt_stop` and `own_start..stop`."""

    start: int
    stop: int
    own_start: int
    prompt_start: int = 0
    prompt_stop: int = 0

    @property
    def queries(self) -> int:
        return self.stop - self.start

    @property
    def keys(self) -> int:
        return self.prompt_stop - self.prompt_start + self.stop - self.own_start


@dataclass(frozen=True)
class Tile:
    """One batch of strips: its shape, and where its rows lie among the gathered queries and keys.

    Query rows are ordered (B, kv head, query head of the kv head, Q) and key rows (B, kv head, K). A score row holds
    the keys and, where the layer has attention sinks, one more column for them.
    """

    shape: tuple[int, int, int, int, int]
    """Of the scores: (B, Hkv, query heads of a kv head, Q, width); width is K, or K + 1 with sinks."""
    keys: int
    """K, padding included."""
    query_rows: slice
    key_rows: slice
    mask: Tensor
    """(B, 1, 1, Q, width), 0 where a query may look and -inf elsewhere."""

    def of_queries(self, rows: Tensor) -> Tensor:
        """View the tile's part of all gathered query rows as (B * Hkv, queries of a kv head, D)."""
        return rows[self.query_rows].view(self.shape[0] * self.shape[1], -1, rows.shape[1])

    def of_keys(self, rows: Tensor) -> Tensor:
        """View the tile's part of all gathered key rows as (B * Hkv, K, D)."""
        return rows[self.key_rows].view(-1, self.keys, rows.shape[1])

    def of_scores(self, scores: Tensor) -> Tensor:
        """View scores as (B * Hkv, queries of a kv head, K), without the column of the sinks."""
        return scores.view(self.shape[0] * self.shape[1], -1, self.shape[4])[..., : self.keys]


@dataclass(frozen=True)
class Plan:
    """A layout's tiles and the row numbers that carry head vectors in and out of them.

    Row `t * heads + h` of a (T, heads, D) tensor is head h of token t.
    """

    tiles: tuple[Tile, ...]
    query_rows: Tensor
    """(tile query rows,) int64, the row each tile row reads."""
    query_back: Tensor
    """(T * Hq,) int64, the tile row that holds each row's result."""
    key_rows: Tensor
    """(tile key rows,) int64."""
    key_back: Tensor
    """(T * Hkv,) int64, the tile row of each key row's gradient, or a row behind them that holds a sum."""
    key_sums: tuple[Tensor, ...]
    """(rows, uses) int64 each: the tile rows to add for key rows that several strips use, in the order in which
    their sums stand behind the tile rows."""
    scores: int
    """Elements of all score rows, padding included: what keeping the probabilities costs."""


def build_plan(
    layout: Layout,
    *,
    heads: int,
    kv_heads: int,
    window: int | None,
    sinks: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Plan:
    """Cut `layout` into tiles for `heads` query heads over `kv_heads`; `window` slides over positions, None is none."""
    strips = [strip for group in layout.groups for strip in _strips(group, window)]
    strips.sort(key=lambda s: (s.queries, s.keys), reverse=True)
    position = _positions(layout)
    few = compiles_by_shape(device, dtype)
    align = max(1, 64 // dtype.itemsize)
    tiles: list[Tile] = []
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    stop = key_stop = 0
    for part in _partition(strips, _TILE_COST.get(device.type, _TILE_COST["cuda"]) // heads, few):
        query, key = _tokens(part, align, sinks, few)
        queries.append(_head_rows(query[:, None, None], torch.arange(heads).view(kv_heads, -1, 1), heads))
        keys.append(_head_rows(key[:, None], torch.arange(kv_heads)[:, None], kv_heads))
        start, stop = stop, stop + queries[-1].numel()
        key_start, key_stop = key_stop, key_stop + keys[-1].numel()
        mask = _mask(query, key, position, window, sinks)[:, None, None].to(device, dtype)
        tiles.append(
            Tile(
                shape=(len(part), kv_heads, heads // kv_heads, query.shape[1], mask.shape[-1]),
                keys=key.shape[1],
                query_rows=slice(start, stop),
                key_rows=slice(key_start, key_stop),
                mask=mask,
            )
        )
    query_rows, key_rows = torch.cat(queries), torch.cat(keys)
    key_back, key_sums = _invert(key_rows, layout.tokens * kv_heads)
    return Plan(
        tiles=tuple(tiles),
        query_rows=query_rows.clamp(min=0).to(device),
        query_back=_invert(query_rows, layout.tokens * heads)[0].to(device),
        key_rows=key_rows.clamp(min=0).to(device),
        key_back=key_back.to(device),
        key_sums=tuple(s.to(device) for s in key_sums),
        scores=sum(math.prod(t.shape) for t in tiles),
    )


def _strips(group: GroupLayout, window: int | None) -> list[Strip]:
    """Cut one group into strips, each with only the keys that its first query can still see."""
    prompt_stop = stop = group.start + group.prompt
    strips = [Strip(a, b, max(group.start, a - _reach(window))) for a, b in _chunks(group.start, stop)]
    for length in group.completions:
        start, stop = stop, stop + length
        for a, b in _chunks(start, stop):
            prompt_start = min(prompt_stop, max(group.start, prompt_stop + a - start - _reach(window)))
            strips.append(Strip(a, b, max(start, a - _reach(window)), prompt_start, prompt_stop))
    return strips


def _reach(window: int | None) -> int:
    """Return how many positions back a query can look."""
    return 1 << 60 if window is None else window - 1


def _chunks(start: int, stop: int) -> list[tuple[int, int]]:
    length = stop - start
    count = -(-length // _CHUNK) if length > _LONG else min(length, 1)
    return list(pairwise(start + length * i // count for i in range(count + 1))) if count else []


def _partition(strips: Sequence[Strip], cost: int, few: bool) -> list[Sequence[Strip]]:
    """Cut the sorted `strips` into consecutive tiles of the least work, each tile costing `cost` scores more.

    With `few`, tiles are of few shapes.
    """
    best: list[tuple[int, int]] = [(0, 0)]  # the least work of the first n strips, and where their last tile starts
    for stop in range(1, len(strips) + 1):
        queries = keys = 0
        options: list[tuple[int, int]] = []
        for start in range(stop - 1, max(-1, stop - 1 - _LOOKBACK), -1):
            queries, keys = max(queries, strips[start].queries), max(keys, strips[start].keys)
            shape = (rounded(queries), rounded(keys)) if few else (queries, keys)
            work = (stop - start) * shape[0] * (shape[1] + _QUERY_COST) + cost
            if options and work >= min(options)[0]:
                break  # a longer tile only costs more
            if not few or stop - start in COUNTS:
                options.append((best[start][0] + work, start))
        best.append(min(options))
    parts: list[Sequence[Strip]] = []
    stop = len(strips)
    while stop:
        start = best[stop][1]
        parts.append(strips[start:stop])
        stop = start
    return parts


def _tokens(part: Sequence[Strip], align: int, sinks: bool, few: bool) -> tuple[Tensor, Tensor]:
    """Return a tile's query tokens (B, Q) and key tokens (B, K), -1 for padding.

    A score row becomes a whole number of `align` columns: bfloat16 softmax on CPU takes three times as long on rows
    with a ragged end. Padding queries look at the last key, which is padding for every strip that has some.
    """
    queries = max(s.queries for s in part)
    queries = rounded(queries) if few else queries
    keys = max(s.keys + (s.queries < queries) for s in part) + sinks
    keys = (rounded(keys) if few else -(-keys // align) * align) - sinks
    start, count, own_start, prompt_start, prompt, used = torch.tensor(
        [(s.start, s.queries, s.own_start, s.prompt_start, s.prompt_stop - s.prompt_start, s.keys) for s in part]
    ).T[..., None]
    at = torch.arange(queries)
    query = torch.where(at < count, start + at, -1)
    at = torch.arange(keys)
    key = torch.where(at < prompt, prompt_start + at, torch.where(at < used, own_start + at - prompt, -1))
    return query, key


def _mask(query: Tensor, key: Tensor, position: Tensor, window: int | None, sinks: bool) -> Tensor:
    """Return (B, Q, width) float32. A padding query sees one padding key, or its row would be NaN, and no sink."""
    distance = position[query][:, :, None] - position[key][:, None]
    allowed = (distance >= 0) & (distance <= _reach(window)) & (key >= 0)[:, None] & (query >= 0)[:, :, None]
    allowed[..., -1] |= query < 0
    if sinks:
        allowed = torch.cat([allowed, (query >= 0)[..., None]], -1)
    return torch.where(allowed, 0.0, float("-inf"))


def _positions(layout: Layout) -> Tensor:
    """Return (T,) int64, each token's position: a completion's first follows its prompt's last."""
    runs = []
    for group in layout.groups:
        runs.append(torch.arange(group.prompt))
        runs += [torch.arange(group.prompt, group.prompt + length) for length in group.completions]
    return torch.cat(runs)


def _head_rows(token: Tensor, head: Tensor, heads: int) -> Tensor:
    """Return the flat rows of these tokens' heads, -1 where the token is padding."""
    return torch.where(token < 0, -1, token * heads + head).flatten()


def _invert(rows: Tensor, count: int) -> tuple[Tensor, list[Tensor]]:
    """Return for each of `count` rows where it stands in `rows` (-1 stands for none), and the places to add up.

    A row that stands several times is given a place behind the end, where the sums go in the order of the second
    value: for every number of uses the (rows, uses) places.
    """
    (real,) = (rows >= 0).nonzero(as_tuple=True)
    order = rows[real].sort(stable=True).indices
    uses = torch.bincount(rows[real], minlength=count)
    first = uses.cumsum(0) - uses
    places = real[order]
    back = places[first]
    sums: list[Tensor] = []
    stop = rows.numel()
    for n in sorted(set(uses.tolist()) - {1}):
        (several,) = (uses == n).nonzero(as_tuple=True)
        sums.append(places[first[several][:, None] + torch.arange(n)])
        back[several] = stop + torch.arange(several.numel())
        stop += several.numel()
    return back, sums
