"""Sequence log-probs to try losses on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from prefopt.losses import Loss
from prefopt.records import SequenceLogprobs, TokenLogprobs

Record = TypeVar("Record")


def sequences(
    policy: Sequence[float],
    reference: Sequence[float] | None,
    *,
    length: Sequence[int] | None = None,
    pair: Sequence[tuple[int, int]] = (),
    labels: Sequence[tuple[int, bool]] = (),
    mismatched: Sequence[int] = (),
    pair_scores: Sequence[tuple[float, float]] | None = None,
    lists: Sequence[Sequence[tuple[int, float]]] = (),
    dtype: torch.dtype = torch.float32,
) -> SequenceLogprobs:
    scores = [(3.0, 1.0)] * len(pair) if pair_scores is None else pair_scores
    return with_extras(
        SequenceLogprobs(
            policy=torch.tensor(policy, dtype=dtype, requires_grad=True),
            reference=None if reference is None else torch.tensor(reference, dtype=dtype),
            length=torch.tensor(length or [1] * len(policy)),
            pair=torch.tensor(pair, dtype=torch.int64).reshape(-1, 2),
            labelled=torch.tensor([index for index, _ in labels], dtype=torch.int64),
            label=torch.tensor([label for _, label in labels], dtype=torch.bool),
            mismatched=torch.tensor(mismatched, dtype=torch.int64),
            pair_score=torch.tensor(scores, dtype=torch.float32).reshape(-1, 2),
            **listed(lists),
        )
    )


def listed(lists: Sequence[Sequence[tuple[int, float]]]) -> dict[str, Any]:
    return {
        "listed": torch.tensor([index for entries in lists for index, _ in entries], dtype=torch.int64),
        "list_index": torch.tensor(
            [number for number, entries in enumerate(lists) for _ in entries], dtype=torch.int64
        ),
        "list_score": torch.tensor([score for entries in lists for _, score in entries], dtype=torch.float32),
    }


LISTS = [
    [(0, 3.0), (5, 1.0), (7, 2.0)],
    [(1, 0.5), (2, 0.5), (3, -1.0), (4, 2.0), (4, 2.0)],
    [(6, 1.0), (8, 1.0)],  # prefers nothing
    [(9, 0.25), (10, 0.75)],
]


def random_sequences(seed: int, dtype: torch.dtype = torch.float64) -> SequenceLogprobs:
    """16 completions: 12 of them in 7 pairs, 9 labelled examples and 4 lists, some more than once, and 4 mismatched."""
    draw = torch.Generator().manual_seed(seed)
    reference = -40 * torch.rand(16, generator=draw, dtype=torch.float64) - 5
    policy = (reference + 2 * torch.randn(16, generator=draw, dtype=torch.float64)).clamp(max=-0.1)
    seqs = SequenceLogprobs(
        policy=policy.to(dtype).requires_grad_(),
        reference=reference.to(dtype),
        length=torch.randint(1, 40, (16,), generator=draw),
        pair=torch.stack([torch.randperm(12, generator=draw)[:7], torch.randperm(12, generator=draw)[:7]], 1),
        labelled=torch.randint(0, 12, (9,), generator=draw),
        label=torch.tensor([True, False, False, True, True, False, True, False, False]),
        mismatched=torch.arange(12, 16),
        pair_score=torch.rand(7, 2, generator=draw) * 3 + torch.tensor([3.0, 0.0]),
        **listed(LISTS),
    )
    return with_extras(seqs)


def with_extras(seqs: SequenceLogprobs) -> SequenceLogprobs:
    """Return `seqs` with extras that are made of its log-probs, so that every gradient ends in `policy`.

    A completion's tokens share its log-prob as 1 : 2 : 3 ...; its divergence is a square of its log-ratio.
    """
    segment = torch.arange(len(seqs.length)).repeat_interleave(seqs.length)
    place = torch.arange(len(segment)) - (seqs.length.cumsum(0) - seqs.length)[segment]
    n = seqs.length[segment]
    share = ((place + 1).double() * 2 / (n * (n + 1))).to(seqs.policy.dtype)
    frozen = None if seqs.reference is None else seqs.reference[segment] * share
    apart = torch.zeros_like(seqs.policy) if seqs.reference is None else seqs.policy - seqs.reference
    return replace(
        seqs,
        token=TokenLogprobs(seqs.policy[segment] * share, frozen, segment),
        log_sum_p2=(-0.3 * seqs.length).to(seqs.policy.dtype),
        divergence=(apart.clamp(-100, 100) ** 2 * 0.05 + 0.2),
    )


def moved(seqs: SequenceLogprobs, policy: Tensor) -> SequenceLogprobs:
    """Return `seqs` with other log-probs of the policy, and all that follows from them."""
    return with_extras(replace(seqs, policy=policy))


def cast(record: Record, dtype: torch.dtype) -> Record:
    """Return a record with every floating-point tensor in `dtype`, without a graph; scores stay as they are."""
    changed: dict[str, Any] = {}
    for field in fields(record):  # type: ignore[arg-type]  # records are dataclasses
        value = getattr(record, field.name)
        if is_dataclass(value):
            changed[field.name] = cast(value, dtype)
        elif isinstance(value, Tensor) and value.is_floating_point() and "score" not in field.name:
            changed[field.name] = value.detach().to(dtype)
    return replace(record, **changed)  # type: ignore[type-var]


def gradient(loss: Loss, seqs: SequenceLogprobs) -> torch.Tensor:
    seqs.policy.grad = None
    loss(seqs).loss.sum().backward(retain_graph=True)
    assert seqs.policy.grad is not None
    return seqs.policy.grad
