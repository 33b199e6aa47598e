"""What the log-probs of held-out pairs say about a model: arrays in, numbers with intervals out.

Three ways to ask whether a model prefers the chosen completion:

- `logprob`: log pi(chosen) > log pi(rejected). What the model itself would rather say. Needs no reference, so it is
  what a model before training is compared by. It favours short completions.
- `logprob_per_token`: the same per token, which takes out length.
- `reward`: the implicit reward, beta * (log pi - log pi_ref), of chosen against rejected: what training taught. Before
  training policy and reference are one model, every margin is 0 and every pair a tie: it says nothing then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefopt.eval.intervals import Accuracy, Floats, Mean, Share, accuracy, mean, share

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
    logprob_per_token: Accuracy
    """Accuracy of log pi(y|x) / tokens."""
    reward: Accuracy | None
    """Accuracy of the implicit reward."""
    margin: Mean | None
    """Implicit reward of chosen minus that of rejected."""
    chosen_log_ratio: Mean | None
    """log pi - log pi_ref of the chosen completion, nats."""
    rejected_log_ratio: Mean | None
    """The same of the rejected one."""
    displacement: Share | None
    """Pairs whose chosen completion became less likely than under the reference."""
    shorter_chosen: Accuracy
    """Accuracy (of `reward`, or of `logprob` without a reference) where the chosen completion is the shorter one."""
    longer_chosen: Accuracy
    """The same where it is the longer one; a large difference of the two is length bias."""

    @property
    def primary(self) -> str:
        """Return the name of the measure to judge by: `reward`, or `logprob` without a reference."""
        return "logprob" if self.reward is None else "reward"

    def to_dict(self) -> dict[str, Any]:
        return {**_plain(self), "primary": self.primary}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PairMetrics:
        return cls(**_read(cls, value))


@dataclass(frozen=True)
class Slice:
    """The pairs whose column lies in one bin."""

    label: str
    n: int
    logprob: Accuracy
    logprob_per_token: Accuracy
    reward: Accuracy | None
    human: Mean | None
    """The ceiling: how often one rater agrees with the rest on these pairs, where that is known."""

    def to_dict(self) -> dict[str, Any]:
        return _plain(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Slice:
        return cls(**_read(cls, value))


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

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able copy; what has no value (nothing to count) is None."""
        return {
            "metrics": self.metrics.to_dict(),
            "slice_by": self.slice_by,
            "slices": [part.to_dict() for part in self.slices],
            "human": None if self.human is None else self.human.to_dict(),
            "fingerprint": self.fingerprint,
            "pairs": self.pairs.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PairEvaluation:
        """Return the evaluation that `to_dict` wrote; per-pair numbers come back rounded as they were written."""
        human = value["human"]
        return cls(
            metrics=PairMetrics.from_dict(value["metrics"]),
            slice_by=value["slice_by"],
            slices=tuple(Slice.from_dict(part) for part in value["slices"]),
            human=None if human is None else Mean(**human),
            pairs=PairScores.from_dict(value["pairs"]),
            fingerprint=value["fingerprint"],
        )


def pair_metrics(scores: PairScores, *, beta: float = 1.0, resamples: int = 2000, seed: int = 0) -> PairMetrics:
    """Measure a model on pairs.

    Args:
        scores: log-probs of P pairs.
        beta: scales the margin to the implicit reward; no accuracy depends on it.
        resamples: bootstrap resamples of the means' intervals.
        seed: decides the bootstrap.
    """
    logprob = _difference(scores.policy)
    ratio = scores.log_ratio
    judged = logprob if ratio is None else _difference(ratio)
    longer = _difference(scores.length)

    def averaged(values: Floats) -> Mean:
        return mean(values, resamples=resamples, seed=seed)

    return PairMetrics(
        n=len(scores.policy),
        beta=beta,
        logprob=accuracy(logprob),
        logprob_per_token=accuracy(_difference(scores.policy / scores.length)),
        reward=None if ratio is None else accuracy(judged),
        margin=None if ratio is None else averaged(beta * judged),
        chosen_log_ratio=None if ratio is None else averaged(ratio[:, 0]),
        rejected_log_ratio=None if ratio is None else averaged(ratio[:, 1]),
        displacement=None if ratio is None else share(ratio[:, 0] < 0),
        shorter_chosen=accuracy(judged[longer < 0]),
        longer_chosen=accuracy(judged[longer > 0]),
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
    known = None if human is None else np.asarray(human, dtype=np.float64)
    slices = []
    for i, (low, high) in enumerate(pairwise(edges)):
        last = i == len(edges) - 2
        inside = (column >= low) & ((column <= high) if last else (column < high))
        part = scores.select(inside)
        ratio = part.log_ratio
        agree = None if known is None else known[inside & np.isfinite(known)]
        slices.append(
            Slice(
                label=f"{low:g} to {high:g}",
                n=int(inside.sum()),
                logprob=accuracy(_difference(part.policy)),
                logprob_per_token=accuracy(_difference(part.policy / part.length)),
                reward=None if ratio is None else accuracy(_difference(ratio)),
                human=None if agree is None or not agree.size else mean(agree, resamples=resamples, seed=seed),
            )
        )
    return tuple(slices)


def _plain(record: PairMetrics | Slice) -> dict[str, Any]:
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return {key: v.to_dict() if isinstance(v, (Accuracy, Mean, Share)) else v for key, v in values.items()}


def _read(kind: type[PairMetrics] | type[Slice], value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that rebuild a record from its `to_dict`."""
    parts: dict[str, type[Accuracy] | type[Mean] | type[Share]] = {
        "margin": Mean,
        "chosen_log_ratio": Mean,
        "rejected_log_ratio": Mean,
        "human": Mean,
        "displacement": Share,
    }
    arguments = {f.name: value[f.name] for f in fields(kind)}
    for key, part in arguments.items():
        if isinstance(part, Mapping):
            built = parts.get(key, Accuracy)
            arguments[key] = built(**{f.name: part[f.name] for f in fields(built)})
    return arguments


def _difference(columns: NDArray[Any]) -> Floats:
    """Return chosen minus rejected of (P, 2), as (P,)."""
    return np.asarray(columns[:, 0] - columns[:, 1], dtype=np.float64)
