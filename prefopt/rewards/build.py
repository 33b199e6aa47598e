"""From the recipe's `reward` section to a scorer: its parts by weight, behind the rule for broken thinking."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from prefopt.errors import RecipeError
from prefopt.rewards.attempts import Attempt
from prefopt.rewards.config import RewardConfig, ScorerSection, ThinkingSection
from prefopt.rewards.kinds import JudgeSection, ScorerBase
from prefopt.rewards.scorer import Score, ScoreFailure, Scorer, guarded


def build_scorer(config: RewardConfig, ledgers: Path | None = None) -> Reward:
    """Return what a recipe scores completions by; models that it names are loaded.

    Args:
        config: the recipe's section.
        ledgers: a folder that keeps what judges spent, so that a resume goes on with what is left of their budgets.

    Raises:
        RecipeError: a setting that can't work, a package that is not installed, or a file of the user's that fails.
        ModelError: a reward model that can't be loaded.
    """
    parts = {
        name: (build_part(part, None if ledgers is None else ledgers / f"spent-{number}.jsonl"), part)
        for number, (name, part) in enumerate(config.scorers.items())
    }
    return Reward(parts, config.thinking)


class Reward:
    """The weighted sum of scorers.

    `sum over scorers of weight * score`, where a score with `scale: bounds` is first moved to
    `(score - low) / (high - low)`. A completion that one of them gives no score has none. Where thinking is missing
    or broken, `thinking.if_broken` says what happens.
    """

    name = "reward"

    def __init__(self, parts: dict[str, tuple[Scorer, ScorerSection]], thinking: ThinkingSection | None) -> None:
        self._parts = parts
        self._thinking = thinking
        for name, (scorer, section) in parts.items():
            if section.scale == "bounds" and (scorer.low is None or scorer.high is None):
                raise RecipeError(
                    f"scale is bounds in the scorer {name}, whose kind {section.kind} has no bounds: leave scale out"
                    f"{', or give low and high' if section.kind == 'python' else ''}."
                )
        self.low, self.high = self._bounds()

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        """Return the total of each attempt, or why it has none; this never raises for what a scorer does."""
        return self.score_parts(attempts)[0]

    def score_parts(self, attempts: Sequence[Attempt]) -> tuple[list[Score], dict[str, list[Score | None]]]:
        """Return the totals, and by name what each scorer said, unweighted; None where it was not asked."""
        totals: list[Score | None] = [self._of_broken(attempt) if attempt.broken else None for attempt in attempts]
        asked = [place for place, total in enumerate(totals) if total is None]
        parts: dict[str, list[Score | None]] = {name: [None] * len(attempts) for name in self._parts}
        for name, (scorer, _) in self._parts.items():
            for place, score in zip(asked, guarded(scorer, [attempts[place] for place in asked]), strict=True):
                parts[name][place] = score
        for place in asked:
            totals[place] = self._total({name: scores[place] for name, scores in parts.items()})
        return [total for total in totals if total is not None], parts

    @property
    def spent(self) -> dict[str, dict[str, int]]:
        """What judges spent so far, by their names: calls and tokens."""
        budgets = {name: getattr(scorer, "budget", None) for name, (scorer, _) in self._parts.items()}
        return {name: {"calls": b.calls, "tokens": b.tokens} for name, b in budgets.items() if b is not None}

    def _of_broken(self, attempt: Attempt) -> Score | None:
        rule = "as_it_is" if self._thinking is None else self._thinking.if_broken
        if rule == "as_it_is":
            return None
        if rule == "fail":
            what = "is missing" if attempt.thinking is None else "is broken"
            return ScoreFailure(f"thinking: it {what}.")
        return float(rule)

    def _total(self, scores: dict[str, Score | None]) -> Score:
        total = 0.0
        for name, (scorer, section) in self._parts.items():
            if section.weight == 0:  # it is only looked at
                continue
            score = scores[name]
            if not isinstance(score, float):
                return score or ScoreFailure(f"{name}: it was not asked.")
            total += section.weight * _scaled(score, scorer, section)
        return total if math.isfinite(total) else ScoreFailure(f"the weighted sum is {total}, which is no score.")

    def _bounds(self) -> tuple[float | None, float | None]:
        """Return the lowest and the highest total; None where a scorer has no such bound."""
        lows: list[float | None] = []
        highs: list[float | None] = []
        for scorer, section in self._parts.values():
            if section.weight == 0:
                continue
            ends = [
                None if end is None else section.weight * _scaled(end, scorer, section)
                for end in (scorer.low, scorer.high)
            ]
            low, high = ends if section.weight > 0 else reversed(ends)
            lows.append(low)
            highs.append(high)
        low, high = _sum(lows), _sum(highs)
        if self._thinking is not None and isinstance(fixed := self._thinking.if_broken, int | float):
            low, high = (None if low is None else min(low, fixed)), (None if high is None else max(high, fixed))
        return low, high


def build_part(section: ScorerSection, ledger: Path | None = None) -> Scorer:
    """Return the scorer of one section; a judge keeps what it spends in the ledger."""
    if isinstance(section, JudgeSection):
        from prefopt.rewards.judge import Judge

        return Judge(section, ledger=ledger)
    return _builders()[section.kind](section)


def _scaled(score: float, scorer: Scorer, section: ScorerBase) -> float:
    if section.scale == "none" or scorer.low is None or scorer.high is None:
        return score
    return (score - scorer.low) / (scorer.high - scorer.low)


def _sum(ends: Sequence[float | None]) -> float | None:
    there = [end for end in ends if end is not None]
    # Added up as totals are, rounding included: `sum` compensates, and a total could lie beyond its bound.
    return reduce(add, there, 0.0) if len(there) == len(ends) else None


def _builders() -> dict[str, Callable[[Any], Scorer]]:
    """Return what builds each kind; only those of models are imported when one is built."""
    from prefopt.rewards import gym, math_answers, numbers, own, rollouts, texts, verifiers

    def model(section: Any) -> Scorer:
        from prefopt.rewards.reward_model import RewardModel

        return RewardModel(section)

    return {
        "exact": verifiers.Exact,
        "regex": verifiers.Regex,
        "numeric": numbers.Numeric,
        "math": math_answers.MathVerify,
        "python": own.OwnFunction,
        "length": texts.Length,
        "sentiment": texts.Sentiment,
        "reasoning_gym": gym.ReasoningGym,
        "model": model,
        "implicit": rollouts.Implicit,
    }
