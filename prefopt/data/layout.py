"""Groups -> one pack: which token stands where, what is scored, and a pack of some of its completions.

With shared prompts a pack is one unpadded row. In rows form every completion is a row behind a copy of its prompt,
right-padded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.records import Group, GroupLayout, Layout, Pack

IntArray = NDArray[np.int64]


def assemble(groups: Sequence[Group], *, shared: bool) -> Pack:
    """Lay groups out as one pack, in the given order, whatever its size."""
    return _shared_pack(groups) if shared else _rows_pack(groups)


def only(pack: Pack, completions: Tensor) -> Pack:
    """Return the pack with these completions alone, behind their prompts; without any there is nothing to compute.

    Args:
        pack: as `build_packs` makes it.
        completions: (K,) int64, ascending, each once, K > 0. Completion i of the result is `completions[i]`.

    Returns:
        A pack of K completions that names no examples.
    """
    scored = torch.isin(pack.segment, completions)
    number = torch.empty_like(pack.length)
    number[completions] = torch.arange(completions.numel(), device=number.device)
    nothing = completions[:0]
    rest: dict[str, Any] = {
        "target": pack.target[scored],
        "segment": number[pack.segment[scored]],
        "length": pack.length[completions],
        "pair": nothing.reshape(0, 2),
        "labelled": nothing,
        "label": nothing.bool(),
        "mismatched": nothing,
        "pair_score": pack.pair_score[:0],
        "listed": nothing,
        "list_index": nothing,
        "list_score": pack.list_score[:0],
    }
    score_at = pack.score_at[scored]
    if pack.layout is None:
        assert pack.mask is not None
        old, width = pack.tokens.shape[1], int(pack.mask[completions].sum(1).max())
        tokens, position, mask = (x[completions, :width] for x in (pack.tokens, pack.position, pack.mask))
        score_at = number[score_at // old] * width + score_at % old
        return Pack(tokens=tokens, position=position, mask=mask, score_at=score_at, **rest)
    layout, kept = _layout_of(pack.layout, set(completions.tolist()))
    at = torch.tensor(kept, device=pack.tokens.device)
    place = torch.empty(pack.tokens.shape[1], dtype=torch.int64, device=at.device)
    place[at] = torch.arange(at.numel(), device=at.device)
    return Pack(
        tokens=pack.tokens[:, at], position=pack.position[:, at], layout=layout, score_at=place[score_at], **rest
    )


def contents(pack: Pack) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return (prompt, completion) of each of the pack's S completions, as token ids."""
    rows, lengths = pack.tokens.tolist(), pack.length.tolist()
    if pack.layout is None:
        assert pack.mask is not None
        ends = pack.mask.sum(1).tolist()
        prompts = [row[: end - length] for row, end, length in zip(rows, ends, lengths, strict=True)]
    else:
        groups = pack.layout.groups
        prompts = [rows[0][g.start : g.start + g.prompt] for g in groups for _ in g.completions]
    completions = torch.split(pack.target, lengths)
    return [(tuple(p), tuple(c.tolist())) for p, c in zip(prompts, completions, strict=True)]


def _layout_of(layout: Layout, completions: set[int]) -> tuple[Layout, list[int]]:
    """Return the layout with these completions alone, and which tokens of the row stay."""
    groups: list[GroupLayout] = []
    kept: list[int] = []
    number = 0
    for group in layout.groups:
        stop = group.start + group.prompt
        start, lengths, tokens = len(kept), [], list(range(group.start, stop))
        for length in group.completions:
            if number in completions:
                lengths.append(length)
                tokens += range(stop, stop + length)
            stop += length
            number += 1
        if lengths:
            groups.append(GroupLayout(start, group.prompt, tuple(lengths)))
            kept += tokens
    return Layout(tuple(groups)), kept


def _flat(sequences: Iterable[Sequence[int]], count: int) -> IntArray:
    return np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=count)


def _within(lengths: IntArray) -> IntArray:
    """0..l-1 for each length, end to end: (sum,) int64."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts, lengths)


def _shared_pack(groups: Sequence[Group]) -> Pack:
    """`prompt_1 c_11 c_12 prompt_2 c_21 ...` in one row; every completion restarts at its prompt's length."""
    pieces = [piece for group in groups for piece in (group.prompt, *group.completions)]
    length = np.array([len(piece) for piece in pieces], dtype=np.int64)
    start = np.cumsum(length) - length
    total = int(length.sum())
    k = np.array([len(group.completions) for group in groups], dtype=np.int64)
    heads = np.cumsum(k + 1) - (k + 1)  # which piece is each group's prompt
    is_completion = np.ones(len(pieces), dtype=bool)
    is_completion[heads] = False

    tokens = _flat(pieces, total)
    first = np.zeros(len(pieces), dtype=np.int64)
    first[is_completion] = np.repeat(length[heads], k)
    position = np.arange(total, dtype=np.int64) - np.repeat(start - first, length)

    lengths, starts = length[is_completion], start[is_completion]
    inside = _within(lengths)
    at = inside + np.repeat(starts, lengths)
    last_of_prompt = np.repeat(np.repeat(start[heads] + length[heads] - 1, k), lengths)
    score_at = np.where(inside == 0, last_of_prompt, at - 1)
    layout = Layout(
        tuple(
            GroupLayout(int(start[head]), len(group.prompt), tuple(map(len, group.completions)))
            for head, group in zip(heads, groups, strict=True)
        )
    )
    return _pack(groups, tokens[None], position[None], score_at, tokens[at], lengths, layout=layout)


def _rows_pack(groups: Sequence[Group]) -> Pack:
    """One row a completion behind a copy of its prompt; padding is token 0 at mask 0, positions run on."""
    prompts = np.array([len(g.prompt) for g in groups for _ in g.completions], dtype=np.int64)
    lengths = np.array([len(c) for g in groups for c in g.completions], dtype=np.int64)
    whole = prompts + lengths
    rows, width = len(whole), int(whole.max())
    mask = np.arange(width, dtype=np.int64)[None] < whole[:, None]
    tokens = np.zeros((rows, width), dtype=np.int64)
    tokens[mask] = _flat((p for g in groups for c in g.completions for p in (g.prompt, c)), int(whole.sum()))
    position = np.broadcast_to(np.arange(width, dtype=np.int64), (rows, width)).copy()
    score_at = _within(lengths) + np.repeat(np.arange(rows) * width + prompts - 1, lengths)
    target = tokens.reshape(-1)[score_at + 1]
    return _pack(groups, tokens, position, score_at, target, lengths, mask=mask.astype(np.int64))


def _pack(
    groups: Sequence[Group],
    tokens: IntArray,
    position: IntArray,
    score_at: IntArray,
    target: IntArray,
    lengths: IntArray,
    *,
    layout: Layout | None = None,
    mask: IntArray | None = None,
) -> Pack:
    pairs: list[tuple[int, int]] = []
    pair_scores: list[tuple[float, float]] = []
    labels: list[tuple[int, bool]] = []
    mismatched: list[int] = []
    lists: list[list[tuple[int, float]]] = []
    first = 0
    for group in groups:
        pairs += [(first + a, first + b) for a, b in group.pairs]
        pair_scores += group.pair_scores or [(math.nan, math.nan)] * len(group.pairs)
        labels += [(first + c, desirable) for c, desirable in group.labels]
        mismatched += [first + c for c in group.mismatched]
        lists += [[(first + c, score) for c, score in entries] for entries in group.lists]
        first += len(group.completions)
    return Pack(
        tokens=torch.from_numpy(tokens),
        position=torch.from_numpy(position),
        score_at=torch.from_numpy(score_at),
        target=torch.from_numpy(target),
        segment=torch.from_numpy(np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)),
        length=torch.from_numpy(lengths),
        pair=_long(pairs).reshape(-1, 2),
        labelled=_long([c for c, _ in labels]),
        label=torch.tensor([desirable for _, desirable in labels], dtype=torch.bool),
        mismatched=_long(mismatched),
        pair_score=torch.tensor(pair_scores, dtype=torch.float32).reshape(-1, 2),
        listed=_long([c for entries in lists for c, _ in entries]),
        list_index=_long([number for number, entries in enumerate(lists) for _ in entries]),
        list_score=torch.tensor([score for entries in lists for _, score in entries], dtype=torch.float32),
        layout=layout,
        mask=None if mask is None else torch.from_numpy(mask),
    )


def _long(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
