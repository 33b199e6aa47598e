"""Scorers of the text itself: how long it is, and how positive."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from prefopt.errors import RecipeError
from prefopt.rewards.attempts import Attempt
from prefopt.rewards.kinds import LengthSection, Part, SentimentSection
from prefopt.rewards.scorer import Score, ScoreFailure


class Length:
    """max(floor, -penalty * distance), where the distance is how many units the text is from its target."""

    name = "length"

    def __init__(self, section: LengthSection) -> None:
        self._section = section
        self.low: float | None = section.floor
        self.high: float | None = 0.0

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        return [self._one(attempt) for attempt in attempts]

    def _one(self, attempt: Attempt) -> Score:
        section = self._section
        if section.unit == "tokens":
            if attempt.rollout is None:
                return ScoreFailure("length: the completion has no token ids to count; write unit: words.")
            length = len(attempt.rollout.token_ids)
        else:
            text = part_of(attempt, section.of)
            length = len(text.split()) if section.unit == "words" else len(text)
        over = length - section.target
        distance = {"both": abs(over), "longer": max(0, over), "shorter": max(0, -over)}[section.side]
        return max(section.floor, -section.penalty * distance) if distance else 0.0


class Sentiment:
    """VADER's compound score, -1 to 1 (Hutto and Gilbert 2014), by the package vaderSentiment.

    Raises RecipeError when that is not installed.
    """

    name = "sentiment"
    low: float | None = -1.0
    high: float | None = 1.0

    def __init__(self, section: SentimentSection) -> None:
        if importlib.util.find_spec("vaderSentiment") is None:
            raise RecipeError(
                "the scorer sentiment needs the package vaderSentiment: pip install 'prefopt[sentiment]'."
            )
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self._section = section
        self._analyzer = SentimentIntensityAnalyzer()

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        return [
            float(self._analyzer.polarity_scores(part_of(attempt, self._section.of))["compound"])
            for attempt in attempts
        ]


def part_of(attempt: Attempt, part: Part) -> str:
    """Return the part of an attempt that a scorer looks at; thinking that there is none of is empty."""
    return {"answer": attempt.answer, "text": attempt.text, "thinking": attempt.thinking or ""}[part]
