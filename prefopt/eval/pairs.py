"""What the log-probs of held-out pairs say about a model: arrays in, numbers with intervals out.

Four ways to ask whether a model prefers the chosen completion:

- `logprob`: log pi(chosen) > log pi(rejected). What the model itself would rather say. Needs no reference, so it is
  what a model before training is compared by. It favours short completions.
- `logprob_per_token`: the same per token, which takes out length.
- `reward`: the implicit reward, beta * (log pi - log pi_ref), of chosen against rejected: what training taught. Before
  training policy and reference are one model, every margin is 0 and every pair a tie: it says nothing then.
- `reward_per_token`: the same with the log-ratio per token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefopt.eval.agreement import AgreementBin
from prefopt.eval.auc import auc
from prefopt.eval.calibration import Calibration
from prefopt.eval.intervals import Accuracy, Estimate, Floats, Mean, Share, accuracy, mean, share
from prefopt.eval.length_bias import LengthBias, length_bias
from prefopt.eval.records import plain, rebuild

_DIGITS = 5
"""Decimals of the per-pair numbers in JSON: float32 log-probs of hundreds of nats hold no more."""


@dataclass(frozen=True, eq=False)
class PairScores:
    """Sequence log-probs of P pairs; column 0 is chosen, column 1 rejected."""

    policy: Floats
    """(P, 2), nats."""
    reference: Floats | None
    """(P, 2), nats; None without a reference."""
    length: NDArray[np.int64]
    """(P, 2), completion tokens."""

    @property
    def log_ratio(self) -> Floats | None:
        """Return log pi - log pi_ref, (P, 2), nats; None without a reference."""
        return None if self.reference is None else self.policy - self.reference

    @property
    def margins(self) -> Floats:
        """Return the primary measure of chosen minus rejected, (P,), nats: of log-ratios, or without them log-probs."""
        ratio = self.log_ratio
        return _difference(self.policy if ratio is None else ratio)

    def select(self, rows: ArrayLike) -> PairScores:
        """Return the pairs that `rows` (P,) bool or (n,) int picks."""
        at = np.asarray(rows)
        return PairScores(self.policy[at], None if self.reference is None else self.reference[at], self.length[at])

    def to_dict(self) -> dict[str, Any]:
        return {
            "policy": np.round(self.policy, _DIGITS).tolist(),
            "reference": None if self.reference is None else np.round(self.reference, _DIGITS).tolist(),
            "length": self.length.tolist(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PairScores:
        reference = value["reference"]
        return cls(
            policy=np.array(value["policy"], dtype=np.float64).reshape(-1, 2),
            reference=None if reference is None else np.array(reference, dtype=np.float64).reshape(-1, 2),
            length=np.array(value["length"], dtype=np.int64).reshape(-1, 2),
        )


@dataclass(frozen=True)
class PairMetrics:
    """Every measure of one set of pairs. Those that need a reference are None without one."""

    n: int
    beta: float
    logprob: Accuracy
    """Accuracy of log pi(y|x)."""
    logprob_margin: Mean
    """log pi(chosen) - log pi(rejected), nats."""
    logprob_per_token: Accuracy
    """Accuracy of log pi(y|x) / tokens."""
    logprob_per_token_margin: Mean
    """The difference of log pi / tokens, nats a token."""
    reward: Accuracy | None
    """Accuracy of the implicit reward."""
    margin: Mean | None
    """Implicit reward of chosen minus that of rejected."""
    reward_per_token: Accuracy | None
    """Accuracy of the length-normalized implicit reward, beta * (log pi - log pi_ref) / tokens."""
    margin_per_token: Mean | None
    """Its difference."""
    auc: Estimate
    """Area under the ROC curve of the primary measure, all chosen against all rejected completions."""
    chosen_log_ratio: Mean | None
    """log pi - log pi_ref of the chosen completion, nats."""
    rejected_log_ratio: Mean | None
    """The same of the rejected one."""
    displacement: Share | None
    """Pairs whose chosen completion became less likely than under the reference."""
    length_bias: LengthBias
    """Accuracy of the primary measure where the chosen completion is the shorter one, and where it is the longer."""

    @property
    def shorter_chosen(self) -> Accuracy:
        """Return the primary accuracy where the chosen completion is the shorter one."""
        return self.length_bias.shorter

    @property
    def longer_chosen(self) -> Accuracy:
        """Return the same where it is the longer one."""
        return self.length_bias.longer

    @property
    def primary(self) -> str:
        """Return the name of the measure to judge by: `reward`, or `logprob` without a reference."""
        return "logprob" if self.reward is None else "reward"

    def to_dict(self) -> dict[str, Any]:
        short, long = self.shorter_chosen.to_dict(), self.longer_chosen.to_dict()
        return {**plain(self), "shorter_chosen": short, "longer_chosen": long, "primary": self.primary}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PairMetrics:
        return rebuild(cls, value)


@dataclass(frozen=True)
class Slice:
    """The pairs whose column lies in one bin, or has one value."""

    label: str
    n: int
    logprob: Accuracy
    logprob_per_token: Accuracy
    reward: Accuracy | None
    human: Mean | None
    """The ceiling: how often one rater agrees with the rest on these pairs, where that is known."""

    def to_dict(self) -> dict[str, Any]:
        return plain(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Slice:
        return rebuild(cls, value)


@dataclass(frozen=True, eq=False)
class PairEvaluation:
    """A model's measures on held-out pairs, and the numbers of each pair that they were made from."""

    metrics: PairMetrics
    slice_by: str | None
    slices: tuple[Slice, ...]
    human: Mean | None
    """The human ceiling over all pairs, where raters are known."""
    pairs: PairScores
    fingerprint: str
    """Of the data: two evaluations with equal ones measured the same pairs."""
    calibration: Calibration | None = None
    """Of sigma(margin); None without a reference."""
    by_agreement: tuple[AgreementBin, ...] = ()
    """Primary accuracy by how far raters agree, where that is known."""
    source: tuple[str, ...] = ()
    """The files, or data sets, that the pairs are from; none for rows that a program gave."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able copy; what has no value (nothing to count) is None."""
        return plain(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PairEvaluation:
        """Return the evaluation that `to_dict` wrote; per-pair numbers come back rounded as they were written.

        Measures that a file of an earlier version lacks are computed from its pairs, with a bootstrap of their own.
        """
        pairs, written = PairScores.from_dict(value["pairs"]), value["metrics"]
        if not {"auc", "length_bias", "reward_per_token"} <= set(written):
            written = {**pair_metrics(pairs, beta=written["beta"]).to_dict(), **written}
        human, calibrated = value["human"], value.get("calibration")
        return cls(
            metrics=PairMetrics.from_dict(written),
            slice_by=value["slice_by"],
            slices=tuple(Slice.from_dict(part) for part in value["slices"]),
            human=None if human is None else rebuild(Mean, human),
            pairs=pairs,
            fingerprint=value["fingerprint"],
            calibration=None if calibrated is None else rebuild(Calibration, calibrated),
            by_agreement=tuple(rebuild(AgreementBin, part) for part in value.get("by_agreement", ())),
            source=tuple(value.get("source") or ()),
        )


def pair_metrics(scores: PairScores, *, beta: float = 1.0, resamples: int = 2000, seed: int = 0) -> PairMetrics:
    """Measure a model on pairs.

    Args:
        scores: log-probs of P pairs.
        beta: scales the margin to the implicit reward; no accuracy depends on it.
        resamples: bootstrap resamples of the means' intervals.
        seed: decides the bootstrap.
    """
    policy, ratio = scores.policy, scores.log_ratio
    judged = policy if ratio is None else ratio

    def averaged(values: Floats) -> Mean:
        return mean(values, resamples=resamples, seed=seed)

    logprob, per_token = _difference(policy), _difference(policy / scores.length)
    reward = None if ratio is None else _difference(ratio)
    reward_per_token = None if ratio is None else _difference(ratio / scores.length)
    return PairMetrics(
        n=len(policy),
        beta=beta,
        logprob=accuracy(logprob),
        logprob_margin=averaged(logprob),
        logprob_per_token=accuracy(per_token),
        logprob_per_token_margin=averaged(per_token),
        reward=None if reward is None else accuracy(reward),
        margin=None if reward is None else averaged(beta * reward),
        reward_per_token=None if reward_per_token is None else accuracy(reward_per_token),
        margin_per_token=None if reward_per_token is None else averaged(beta * reward_per_token),
        auc=auc(judged[:, 0], judged[:, 1]),
        chosen_log_ratio=None if ratio is None else averaged(ratio[:, 0]),
        rejected_log_ratio=None if ratio is None else averaged(ratio[:, 1]),
        displacement=None if ratio is None else share(ratio[:, 0] < 0),
        length_bias=length_bias(_difference(judged), scores.length[:, 0], scores.length[:, 1]),
    )


def bin_edges(values: ArrayLike, bins: int = 4) -> list[float]:
    """Return edges that cut `values` (P,) into at most `bins` bins of about equal numbers, ends included."""
    data = np.asarray(values, dtype=np.float64)
    edges = sorted(set(np.quantile(data[np.isfinite(data)], np.linspace(0, 1, bins + 1)).tolist()))
    return edges if len(edges) > 1 else edges * 2


def slice_pairs(
    scores: PairScores,
    values: ArrayLike,
    edges: Sequence[float],
    *,
    human: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Slice, ...]:
    """Measure the pairs of each bin of a column.

    Args:
        scores: log-probs of P pairs.
        values: (P,), the column; NaN where a pair has none.
        edges: ascending; bin i holds edges[i] <= value < edges[i + 1], the last also its upper edge. Pairs outside
            (or without a value) are in no bin.
        human: (P,), each pair's share of raters who agree with the rest; NaN where unknown.
        resamples: bootstrap resamples of the human interval.
        seed: decides the bootstrap.
    """
    column = np.asarray(values, dtype=np.float64)
    parts = []
    for i, (low, high) in enumerate(pairwise(edges)):
        last = i == len(edges) - 2
        inside = (column >= low) & ((column <= high) if last else (column < high))
        parts.append((f"{low:g} to {high:g}", inside))
    return _slices(scores, parts, human, resamples, seed)


def slice_groups(
    scores: PairScores,
    labels: Sequence[str | None],
    *,
    most: int = 12,
    human: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Slice, ...]:
    """Measure the pairs of each value of a column of words, those of the most pairs first.

    Args:
        scores: log-probs of P pairs.
        labels: (P,), the column; None where a pair has no value, which is in no slice.
        most: slices there may be; where there are more values, the last slice holds all that remain.
        human: as for `slice_pairs`.
        resamples: bootstrap resamples of the human interval.
        seed: decides the bootstrap.
    """
    counted = sorted(Counter(label for label in labels if label is not None).items(), key=lambda item: (-item[1], item))
    named = counted if len(counted) <= most else counted[: most - 1]
    parts = [(value, np.array([label == value for label in labels], dtype=bool)) for value, _ in named]
    if rest := {value for value, _ in counted[len(named) :]}:
        parts.append((f"other ({len(rest)} values)", np.array([label in rest for label in labels], dtype=bool)))
    return _slices(scores, parts, human, resamples, seed)


def _slices(
    scores: PairScores,
    parts: Sequence[tuple[str, NDArray[np.bool_]]],
    human: ArrayLike | None,
    resamples: int,
    seed: int,
) -> tuple[Slice, ...]:
    known = None if human is None else np.asarray(human, dtype=np.float64)
    slices = []
    for label, inside in parts:
        part = scores.select(inside)
        ratio = part.log_ratio
        agree = None if known is None else known[inside & np.isfinite(known)]
        slices.append(
            Slice(
                label=label,
                n=int(inside.sum()),
                logprob=accuracy(_difference(part.policy)),
                logprob_per_token=accuracy(_difference(part.policy / part.length)),
                reward=None if ratio is None else accuracy(_difference(ratio)),
                human=None if agree is None or not agree.size else mean(agree, resamples=resamples, seed=seed),
            )
        )
    return tuple(slices)


def _difference(columns: NDArray[Any]) -> Floats:
    """Return chosen minus rejected of (P, 2), as (P,)."""
    return np.asarray(columns[:, 0] - columns[:, 1], dtype=np.float64)
