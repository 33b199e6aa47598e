"""Sequence log-probs to try losses on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from prefopt.losses import Loss
from prefopt.records import SequenceLogprobs


def sequences(
    policy: Sequence[float],
    reference: Sequence[float] | None,
    *,
    length: Sequence[int] | None = None,
    pair: Sequence[tuple[int, int]] = (),
    labels: Sequence[tuple[int, bool]] = (),
    mismatched: Sequence[int] = (),
    pair_scores: Sequence[tuple[float, float]] = (),
    lists: Sequence[Sequence[tuple[int, float]]] = (),
    dtype: torch.dtype = torch.float32,
) -> SequenceLogprobs:
    return SequenceLogprobs(
        policy=torch.tensor(policy, dtype=dtype, requires_grad=True),
        reference=None if reference is None else torch.tensor(reference, dtype=dtype),
        length=torch.tensor(length or [1] * len(policy)),
        pair=torch.tensor(pair, dtype=torch.int64).reshape(-1, 2),
        labelled=torch.tensor([index for index, _ in labels], dtype=torch.int64),
        label=torch.tensor([label for _, label in labels], dtype=torch.bool),
        mismatched=torch.tensor(mismatched, dtype=torch.int64),
        pair_score=torch.tensor(pair_scores or [(math.nan, math.nan)] * len(pair)).reshape(-1, 2),
        listed=torch.tensor([index for entries in lists for index, _ in entries], dtype=torch.int64),
        list_index=torch.tensor([n for n, entries in enumerate(lists) for _ in entries], dtype=torch.int64),
        list_score=torch.tensor([score for entries in lists for _, score in entries]),
    )


def random_sequences(seed: int, dtype: torch.dtype = torch.float64) -> SequenceLogprobs:
    """16 completions: 12 of them in 7 pairs and 9 labelled examples, some more than once, and 4 mismatched."""
    draw = torch.Generator().manual_seed(seed)
    reference = -40 * torch.rand(16, generator=draw, dtype=torch.float64) - 5
    policy = (reference + 2 * torch.randn(16, generator=draw, dtype=torch.float64)).clamp(max=-0.1)
    return SequenceLogprobs(
        policy=policy.to(dtype).requires_grad_(),
        reference=reference.to(dtype),
        length=torch.randint(1, 40, (16,), generator=draw),
        pair=torch.stack([torch.randperm(12, generator=draw)[:7], torch.randperm(12, generator=draw)[:7]], 1),
        labelled=torch.randint(0, 12, (9,), generator=draw),
        label=torch.tensor([True, False, False, True, True, False, True, False, False]),
        mismatched=torch.arange(12, 16),
    )


def gradient(loss: Loss, seqs: SequenceLogprobs) -> torch.Tensor:
    seqs.policy.grad = None
    loss(seqs).loss.sum().backward()
    assert seqs.policy.grad is not None
    return seqs.policy.grad
