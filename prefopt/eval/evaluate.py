"""Held-out pairs -> every measure, overall and by slice: what `eval/before.json` and `eval/after.json` hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefopt.data import PreferenceData
from prefopt.errors import DataError, nearest
from prefopt.eval.config import EvalConfig
from prefopt.eval.intervals import Floats, mean
from prefopt.eval.pairs import PairEvaluation, Slice, bin_edges, pair_metrics, slice_pairs
from prefopt.eval.score import held_out_pairs, pair_logprobs
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference


def evaluate_pairs(
    policy: PackedModel,
    reference: Reference | None,
    data: PreferenceData,
    config: EvalConfig | None = None,
    *,
    beta: float = 1.0,
    seed: int = 0,
) -> PairEvaluation:
    """Measure a policy on held-out pairs.

    Before training the policy is its reference: every implicit margin is 0 and `reward` is all ties. Compare a model
    before training by `logprob` and `logprob_per_token`, which need no reference.

    Args:
        policy: the model to measure.
        reference: what its implicit reward is taken against; None for the measures that need none.
        data: pairs, or lists, of which the best and the worst completion are measured.
        config: token budget, slices and resamples.
        beta: scales the implicit reward, as in the loss.
        seed: decides the bootstrap intervals.

    Raises:
        DataError: labelled data, no pairs, lists that prefer nothing, or a slice or human column that the data does
            not have as numbers.
    """
    options = config or EvalConfig()
    if not len(data):
        raise DataError("There is no pair to evaluate on: name a file with at least one usable pair.")
    data = held_out_pairs(data)
    # Columns first: a wrong name should not cost a pass over the data.
    meta = [example.meta for example in data.examples]
    values = None if options.slice_by is None else _column(meta, options.slice_by, "eval.slice_by")
    human = None if options.human is None else _column(meta, options.human, "eval.human")
    scores = pair_logprobs(policy, data, reference=reference, token_budget=options.token_budget)
    resampling = {"resamples": options.resamples, "seed": seed}
    slices: tuple[Slice, ...] = ()
    if values is not None:
        edges = options.slice_edges or bin_edges(values)
        slices = slice_pairs(scores, values, edges, human=human, **resampling)
    return PairEvaluation(
        metrics=pair_metrics(scores, beta=beta, **resampling),
        slice_by=options.slice_by,
        slices=slices,
        human=None if human is None else mean(human[np.isfinite(human)], **resampling),
        pairs=scores,
        fingerprint=data.fingerprint,
    )


def _column(meta: Sequence[Mapping[str, Any]], name: str, key: str) -> Floats:
    """Return a column of the data as (P,) float64, NaN where a row has no number in it."""
    values = np.array([_number(row.get(name)) for row in meta], dtype=np.float64)
    if not np.isfinite(values).any():
        numeric = sorted({column for row in meta for column, value in row.items() if np.isfinite(_number(value))})
        raise DataError(
            f"{key} names the column {name!r}, which has no numbers in the evaluation data; columns that have: "
            f"{', '.join(numeric) or 'none'}{nearest(name, numeric)}"
        )
    return values


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")
