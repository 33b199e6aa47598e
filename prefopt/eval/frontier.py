"""The reward-KL frontier: what each policy earns on its samples against how far it moved from the reference."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from prefopt.eval.intervals import Mean
from prefopt.eval.kl import ClusteredMean, SequenceKL, dominating


@dataclass(frozen=True)
class FrontierPoint:
    """One policy: mean reward of its samples, and its sequence KL to the reference in nats."""

    label: str
    run: str
    step: int | None
    """Optimizer steps of a checkpoint, or rounds; None for the end of a run."""
    loss: str | None
    beta: float | None
    reward: ClusteredMean
    kl: ClusteredMean
    kl_log_ratio: ClusteredMean
    truncated: float
    """Share of samples that were cut."""
    length: Mean
    completions: int
    failed: int
    """Samples that the scorer gave no number."""
    dominating: bool = False
    """No other point has as much reward for less divergence, or more for as much."""

    @classmethod
    def of(
        cls,
        reward: ClusteredMean,
        moved: SequenceKL,
        *,
        label: str,
        run: str,
        step: int | None,
        loss: str | None,
        beta: float | None,
        failed: int = 0,
    ) -> FrontierPoint:
        """Return the point of a policy from the two measures of its samples."""
        return cls(
            label=label, run=run, step=step, loss=loss, beta=beta, reward=reward, kl=moved.kl,
            kl_log_ratio=moved.kl_log_ratio, truncated=moved.truncated, length=moved.length,
            completions=moved.completions, failed=failed,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Frontier:
    """Policies measured on the same prompts with the same seeds."""

    points: tuple[FrontierPoint, ...]
    scorer: str
    prompts: int
    samples_per_prompt: int
    max_new_tokens: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "scorer": self.scorer,
            "prompts": self.prompts,
            "samples_per_prompt": self.samples_per_prompt,
            "max_new_tokens": self.max_new_tokens,
            "temperature": 1.0,
            "points": [point.to_dict() for point in self.points],
        }

    def to_csv(self) -> str:
        """Return a table of the points, a row each, with a line of names first."""
        text = io.StringIO()
        columns = ["label", "run", "step", "loss", "beta", "reward", "reward_low", "reward_high", "reward_se", "kl",
                   "kl_low", "kl_high", "kl_se", "kl_log_ratio", "kl_log_ratio_se", "length", "truncated",
                   "completions", "failed", "dominating"]  # fmt: skip
        out = csv.writer(text, lineterminator="\n")
        out.writerow(columns)
        for one in self.points:
            out.writerow(
                [one.label, one.run, one.step, one.loss, one.beta,
                 one.reward.value, one.reward.low, one.reward.high, one.reward.standard_error,
                 one.kl.value, one.kl.low, one.kl.high, one.kl.standard_error,
                 one.kl_log_ratio.value, one.kl_log_ratio.standard_error,
                 one.length.value, one.truncated, one.completions, one.failed, one.dominating]
            )  # fmt: skip
        return text.getvalue()


def mark_dominating(points: Sequence[FrontierPoint]) -> tuple[FrontierPoint, ...]:
    """Return the points in their order, those of the Pareto set marked. A point without reward is never in it."""
    places = [(_number(point.kl.value), _number(point.reward.value)) for point in points]
    return tuple(replace(point, dominating=best) for point, best in zip(points, dominating(places), strict=True))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
