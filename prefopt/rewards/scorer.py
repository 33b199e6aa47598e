"""What every scorer is, and how one that fails marks completions rather than ending a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prefopt.errors import RunError
from prefopt.rewards.attempts import Attempt

_LONGEST = 300
"""Characters of another program's message that a failure quotes."""


@dataclass(frozen=True)
class ScoreFailure:
    """A completion that has no score, and why."""

    reason: str
    """One sentence."""


Score = float | ScoreFailure


class Scorer(Protocol):
    """Gives completions numbers: higher is better."""

    name: str
    low: float | None
    """No score is below it; None where that is not known."""
    high: float | None
    """No score is above it; None where that is not known."""

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        """Return a finite number or a failure for each attempt, in order."""


def guarded(scorer: Scorer, attempts: Sequence[Attempt]) -> list[Score]:
    """Return the scorer's scores; one that raises, or that is no finite number within bounds, is a failure.

    Should a call fail as a whole, each attempt is tried by itself, so that only those that fail are marked.

    Raises:
        RunError: what is spent can't be written down.
    """
    if not attempts:
        return []
    try:
        found = list(scorer.score(attempts))
        if len(found) != len(attempts):
            raise ValueError(f"it returned {len(found)} scores for {len(attempts)} completions")
    except RunError:  # the disk that keeps what is spent refuses: that is no completion's fault
        raise
    except Exception as error:  # noqa: BLE001 - whatever the scorer of a user raises
        if len(attempts) > 1:
            return [score for attempt in attempts for score in guarded(scorer, [attempt])]
        return [failure(scorer.name, error)]
    return [_checked(scorer, score) for score in found]


def failure(name: str, error: BaseException) -> ScoreFailure:
    """Return what the scorer of this name raised as a failure."""
    message = " ".join(str(error).split())[:_LONGEST]
    return ScoreFailure(f"{name}: {type(error).__name__}{': ' if message else ''}{message}")


def _checked(scorer: Scorer, score: object) -> Score:
    if isinstance(score, ScoreFailure):
        return score
    try:
        value = float(score)  # type: ignore[arg-type]  # what a user's function returns can be anything
    except (TypeError, ValueError, OverflowError):
        return ScoreFailure(f"{scorer.name}: it returned {type(score).__name__}, which is no score.")
    if not math.isfinite(value):
        return ScoreFailure(f"{scorer.name}: it returned {value}, which is no score.")
    if scorer.low is not None and value < scorer.low:
        return ScoreFailure(f"{scorer.name}: it returned {value:g}, below its lowest score {scorer.low:g}.")
    if scorer.high is not None and value > scorer.high:
        return ScoreFailure(f"{scorer.name}: it returned {value:g}, above its highest score {scorer.high:g}.")
    return value
