"""Answers with ratings of several attributes: UltraFeedback as it was collected, HelpSteer 1 and 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from prefopt.data.config import DataOptions
from prefopt.data.formats.schemas.schema import Row, Schema
from prefopt.data.formats.schemas.turns import marked_turns
from prefopt.data.formats.values import field, number
from prefopt.data.read import Cell
from prefopt.data.row_error import RowError

OVERALL = "fine-grained_score"
HELPFULNESS = "helpfulness"


def _score(rating: Callable[[str], Any], options: DataOptions, default: str) -> float:
    """Return one attribute's rating, or the weighted sum of several, as `data.score` says."""
    wanted = options.score or default
    weights = {wanted: 1.0} if isinstance(wanted, str) else wanted
    return sum(weight * number(rating(name), name) for name, weight in weights.items())


def _ultrafeedback(row: Row, columns: tuple[str, ...], options: DataOptions) -> Row:
    answers = field(row, "completions")
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, Mapping) for answer in answers):
        raise RowError("wrong type", "'completions' is no list of answers with their ratings")
    return {
        "prompt": field(row, "instruction"),
        "completions": [field(answer, "response") for answer in answers],
        "scores": [_score(partial(_rating, answer), options, OVERALL) for answer in answers],
    }


def _rating(answer: Row, name: str) -> Any:
    """Return a score of the answer, or a rating among its annotations, where it is text."""
    if answer.get(name) is not None:
        return answer[name]
    annotations = answer.get("annotations")
    annotation = annotations.get(name) if isinstance(annotations, Mapping) else None
    rating = annotation.get("Rating") if isinstance(annotation, Mapping) else annotation
    return Cell(rating) if isinstance(rating, str) else rating


def _rated_answers(row: Row, columns: tuple[str, ...]) -> bool:
    answers = row["completions"]
    return isinstance(answers, list | tuple) and all(isinstance(a, Mapping) and "response" in a for a in answers)


def _helpsteer(row: Row, columns: tuple[str, ...], options: DataOptions) -> Row:
    return {
        "prompt": marked_turns(field(row, "prompt")),
        "completions": [field(row, "response")],
        "scores": [_score(row.get, options, HELPFULNESS)],
    }


ULTRAFEEDBACK = Schema(
    name="ultrafeedback",
    variants=(("instruction", "completions"),),
    becomes="lists",
    rewrite=_ultrafeedback,
    about=f"rated answers to an instruction, scored by data.score ({OVERALL} by default), as in UltraFeedback",
    fits=_rated_answers,
    is_rated=True,
)
HELPSTEER = Schema(
    name="helpsteer",
    variants=(("prompt", "response"),),
    becomes="lists",
    rewrite=_helpsteer,
    about=f"one rated response a row, scored by data.score ({HELPFULNESS} by default); neighbouring rows with the same "
    "prompt are one list, as in HelpSteer",
    joins_neighbours=True,
    is_rated=True,
    rating=HELPFULNESS,
)
