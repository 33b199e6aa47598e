"""Verifiers of text: the answer is the expected one, or what a regular expression finds in it is."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from prefopt.rewards.attempts import Attempt
from prefopt.rewards.columns import expected
from prefopt.rewards.kinds import ExactSection, RegexSection
from prefopt.rewards.scorer import Score, ScoreFailure


class Exact:
    """1 where the answer is one of the expected texts, else 0; runs of white space count as one blank, ends as none."""

    name = "exact"
    low: float | None = 0.0
    high: float | None = 1.0

    def __init__(self, section: ExactSection) -> None:
        self._section = section

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        return [self._one(attempt) for attempt in attempts]

    def _one(self, attempt: Attempt) -> Score:
        right = expected(attempt, self._section.column, self.name)
        if isinstance(right, ScoreFailure):
            return right
        return float(_matches(attempt.answer, right, ignore_case=self._section.ignore_case))


class Regex:
    """1 where the first group of a match (all of it, without groups) is one of the expected texts, else 0."""

    name = "regex"
    low: float | None = 0.0
    high: float | None = 1.0

    def __init__(self, section: RegexSection) -> None:
        self._section = section
        self._pattern = regex.compile(section.pattern, regex.IGNORECASE if section.ignore_case else 0)

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        return [self._one(attempt) for attempt in attempts]

    def _one(self, attempt: Attempt) -> Score:
        section = self._section
        right = () if section.column is None else expected(attempt, section.column, self.name)
        if isinstance(right, ScoreFailure):
            return right
        try:
            found = self._found(attempt.answer)
        except TimeoutError:  # an expression whose time grows exponentially with a text that a model wrote
            return ScoreFailure(f"regex: the search took longer than {section.timeout:g} seconds.")
        if found is None or section.column is None:
            return float(found is not None)
        return float(_matches(found, right, ignore_case=section.ignore_case))

    def _found(self, text: str) -> str | None:
        found = None
        for match in self._pattern.finditer(text, timeout=self._section.timeout):
            found = match[1 if self._pattern.groups else 0] or ""
            if self._section.which == "first":
                break
        return found


def _matches(text: str, right: Sequence[str], *, ignore_case: bool) -> bool:
    return _folded(text, ignore_case) in {_folded(one, ignore_case) for one in right}


def _folded(text: str, ignore_case: bool) -> str:
    folded = " ".join(text.split())
    return folded.casefold() if ignore_case else folded
