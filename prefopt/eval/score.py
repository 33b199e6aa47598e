"""Sequence log-probs of completions, by packs: what every evaluation stands on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.data import PreferenceData, tokenize_rows
from prefopt.errors import DataError
from prefopt.eval.pairs import PairScores
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.models.scoring import example_logprobs, example_packs
from prefopt.records import Pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def score_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_length: int | None = None,
    token_budget: int | None = None,
) -> list[list[float]]:
    """Return, for every row, log pi(completion | prompt) of each of its completions, in nats.

    A row holds text or messages, in any pair format or as `prompt` with `completion` or `completions`; chosen comes
    before rejected. The sum is over completion tokens, its end-of-turn token included.

    Args:
        model: a causal language model, with or without adapters; scored as it stands, without dropout.
        tokenizer: its tokenizer.
        rows: what to score. Equal prompts are computed once.
        max_length: tokens a prompt and its completion may have together; None for no limit.
        token_budget: tokens computed at once. It changes memory and time, never the numbers. None: 8,192, or 2,048
            on a CPU.

    Raises:
        DataError: a row that can't be read, tokenized or that is longer than `max_length`, with its index.
    """
    examples = tokenize_rows(rows, tokenizer, max_length=max_length)
    policy = PackedModel(model)
    flat, _ = example_logprobs(examples, policy, None, token_budget)
    stops = np.cumsum([len(example.completions) for example in examples])
    return [part.tolist() for part in np.split(flat, stops[:-1])] if examples else []


def pair_logprobs(
    policy: PackedModel, data: PreferenceData, *, reference: Reference | None = None, token_budget: int | None = None
) -> PairScores:
    """Score every one of `held_out_pairs` with the policy and, where one is given, the reference, on the same packs.

    Raises DataError as `held_out_pairs`.
    """
    data = held_out_pairs(data)
    scores, frozen = example_logprobs(data.examples, policy, reference, token_budget)
    return PairScores(
        policy=scores.reshape(-1, 2),
        reference=None if frozen is None else frozen.reshape(-1, 2),
        length=data.completion_lengths.astype(np.int64).reshape(-1, 2),
    )


def pair_packs(policy: PackedModel, data: PreferenceData, *, token_budget: int | None = None) -> Iterator[Pack]:
    """Yield the packs that `pair_logprobs` scores, in its order; raises as it does."""
    yield from example_packs(held_out_pairs(data).examples, policy, token_budget)


def held_out_pairs(data: PreferenceData) -> PreferenceData:
    """Return the pairs that an evaluation compares: of lists the best and the worst completion of each.

    Raises DataError for labelled data, and where the scores of every list are all equal.
    """
    if data.form == "unpaired":
        raise DataError(
            "This evaluation compares a chosen with a rejected completion, but the data has labelled completions. "
            "Name a file of pairs or lists as the evaluation data."
        )
    return data.for_loss("paired")
