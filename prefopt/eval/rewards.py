"""How often a reward model gives the chosen completion of held-out pairs the higher number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefopt.eval.intervals import Accuracy, Mean, accuracy, mean
from prefopt.eval.pairs import PairScores


@dataclass(frozen=True)
class RewardEvaluation:
    """What the rewards of held-out pairs say; intervals are 95 %."""

    accuracy: Accuracy
    """Pairs whose chosen completion has the higher reward: Wilson's interval."""
    margin: Mean
    """Reward of chosen minus that of rejected: bootstrap interval."""
    shorter_chosen: Accuracy
    """Accuracy where the chosen completion is the shorter one."""
    longer_chosen: Accuracy
    """The same where it is the longer one; a large difference of the two is length bias."""

    def to_dict(self) -> dict[str, Any]:
        return {name: part.to_dict() for name, part in vars(self).items()}


def reward_evaluation(scores: PairScores, *, resamples: int = 2000, seed: int = 0) -> RewardEvaluation:
    """Return the measures of rewards, `scores.policy` (P, 2), chosen before rejected."""
    margins = scores.policy[:, 0] - scores.policy[:, 1]
    longer = scores.length[:, 0] - scores.length[:, 1]
    return RewardEvaluation(
        accuracy=accuracy(margins),
        margin=mean(margins, resamples=resamples, seed=seed),
        shorter_chosen=accuracy(margins[longer < 0]),
        longer_chosen=accuracy(margins[longer > 0]),
    )
