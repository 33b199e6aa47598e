"""One prompt's candidates, and what was selected of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefopt.errors import DataError
from prefopt.rounds.select_config import Ties


@dataclass(frozen=True)
class Candidate:
    """One rollout of a prompt, as a selector sees it."""

    index: int
    """Its place among the prompt's rollouts; what a selection names it by."""
    text_key: tuple[int, ...]
    """Token ids: candidates with equal ones are duplicates."""
    score: float | None
    """None where the scorer failed: it is never selected."""
    length: int
    """Tokens of the completion."""
    correct: bool | None = None
    """What the scorer says of it, where it is a verifier."""

    def __post_init__(self) -> None:
        if self.score is not None and not math.isfinite(self.score):
            raise DataError(
                f"candidate {self.index} has the score {self.score}; a score must be a finite number, or none where "
                "the scorer failed."
            )


@dataclass(frozen=True)
class Selection:
    """What is trained on of one prompt, by the candidates' own indices, and what became of the others."""

    accepted: tuple[int, ...] = ()
    """Demonstrations, or the entries of one list, in the order in which they were accepted."""
    pairs: tuple[tuple[int, int], ...] = ()
    """(chosen, rejected)."""
    labels: tuple[tuple[int, bool], ...] = ()
    """(candidate, desirable?)."""
    candidates: int = 0
    failed: int = 0
    """Candidates without a score."""
    duplicates: int = 0
    """Candidates that were left out because an earlier one has their token ids."""
    passed: int = 0
    """Candidates that the selector accepted, whatever they then became; for pairs, those in a pair."""
    reason: str = ""
    """Why nothing was selected."""

    @property
    def empty(self) -> bool:
        """Whether the prompt gives nothing to train on."""
        return not (self.accepted or self.pairs or self.labels)


@dataclass(frozen=True)
class Scored:
    """A candidate that may be selected."""

    index: int
    score: float
    length: int
    correct: bool | None


def usable(candidates: Sequence[Candidate], *, keep_duplicates: bool) -> tuple[list[Scored], int, int]:
    """Return the candidates that may be selected, by index, and how many have no score and how many are repeats.

    Of equal ones the first that has a score stays.

    Raises:
        DataError: two candidates have one index.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.index)
    if len({candidate.index for candidate in ordered}) < len(ordered):
        raise DataError("two candidates of one prompt have the same index; number them 0, 1, 2 ...")
    found: list[Scored] = []
    seen: set[tuple[int, ...]] = set()
    failed = duplicates = 0
    for candidate in ordered:
        if candidate.score is None:
            failed += 1
        elif candidate.text_key in seen and not keep_duplicates:
            duplicates += 1
        else:
            seen.add(candidate.text_key)
            found.append(Scored(candidate.index, float(candidate.score), candidate.length, candidate.correct))
    return found, failed, duplicates


def shuffled(pool: Sequence[Scored], generator: np.random.Generator) -> list[Scored]:
    """Return the candidates in random order.

    By sorting uniform numbers: numpy promises the bits of `random`, and not those of its permutations.
    """
    order = np.argsort(generator.random(len(pool)), kind="stable")
    return [pool[at] for at in order]


def ranked(pool: Sequence[Scored], ties: Ties, generator: np.random.Generator) -> list[Scored]:
    """Return the candidates from the highest score to the lowest; `ties` orders those with equal scores."""
    mixed = shuffled(pool, generator) if ties == "random" else sorted(pool, key=lambda one: one.index)
    if ties == "shorter":
        mixed.sort(key=lambda one: one.length)
    return sorted(mixed, key=lambda one: -one.score)


def is_correct(candidate: Scored, threshold: float | None) -> bool:
    """Whether the candidate's score reaches the threshold; without one, what the scorer says.

    Raises:
        DataError: there is no threshold and the scorer doesn't say.
    """
    if threshold is not None:
        return candidate.score >= threshold
    if candidate.correct is None:
        raise DataError(
            f"candidate {candidate.index} has a score and no word on whether it is correct: set select.threshold to "
            "the lowest score of a correct one, or score with a verifier."
        )
    return candidate.correct
