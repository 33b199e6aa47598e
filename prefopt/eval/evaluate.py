"""Held-out pairs -> every measure, overall and by slice: what `eval/before.json` and `eval/after.json` hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from prefopt.data import PreferenceData
from prefopt.errors import DataError
from prefopt.eval.agreement import accuracy_by_agreement
from prefopt.eval.calibration import calibration, sigmoid
from prefopt.eval.columns import Columns
from prefopt.eval.config import EvalConfig
from prefopt.eval.intervals import mean
from prefopt.eval.pairs import PairEvaluation, pair_metrics
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
        DataError: labelled data, no pairs, lists that prefer nothing, or a column that the data does not have, or
            not as what it is named for.
    """
    options = config or EvalConfig()
    if not len(data):
        raise DataError("There is no pair to evaluate on: name a file with at least one usable pair.")
    data = held_out_pairs(data)
    # Columns first: a wrong name should not cost a pass over the data.
    columns = Columns([example.meta for example in data.examples])
    slicing = None if options.slice_by is None else columns.slicing(options.slice_by, options.slice_edges)
    human = None if options.human is None else columns.numbers(options.human, "eval.human")
    raters = None if options.agreement is None else columns.shares(options.agreement, "eval.agreement")
    scores = pair_logprobs(policy, data, reference=reference, token_budget=options.token_budget)
    resampling: dict[str, Any] = {"resamples": options.resamples, "seed": seed}
    calibrated = None
    if scores.reference is not None:
        calibrated = calibration(sigmoid(beta * scores.margins), raters, **resampling)
    return PairEvaluation(
        metrics=pair_metrics(scores, beta=beta, **resampling),
        slice_by=options.slice_by,
        slices=() if slicing is None else slicing(scores, human=human, **resampling),
        human=None if human is None else mean(human[np.isfinite(human)], **resampling),
        pairs=scores,
        fingerprint=data.fingerprint,
        calibration=calibrated,
        by_agreement=() if raters is None else accuracy_by_agreement(scores.margins, raters, human, **resampling),
        source=tuple(dict.fromkeys(found.source for found in data.summary.recognised)),
    )
