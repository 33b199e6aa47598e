"""The scorer that needs no answer: the policy's own implicit reward of what was sampled."""

from __future__ import annotations

from collections.abc import Sequence

from prefopt.rewards.attempts import Attempt
from prefopt.rewards.kinds import ImplicitSection
from prefopt.rewards.scorer import Score, ScoreFailure


class Implicit:
    """beta * (log pi(y|x) - log pi_ref(y|x)), of the log-probs that were taken when it was sampled."""

    name = "implicit"
    low: float | None = None
    high: float | None = None

    def __init__(self, section: ImplicitSection) -> None:
        self._beta = section.beta

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        return [self._one(attempt) for attempt in attempts]

    def _one(self, attempt: Attempt) -> Score:
        rollout = attempt.rollout
        if rollout is None:
            return ScoreFailure("implicit: the completion was not sampled here, so its log-probs are not known.")
        if rollout.reference is None:
            return ScoreFailure("implicit: the completion has no log-prob under a reference.")
        return self._beta * (rollout.policy - rollout.reference)
