"""Scored lists under the other names that are common for them."""

from __future__ import annotations

from itertools import product

from prefopt.data.config import DataOptions
from prefopt.data.formats.format import FIELDS
from prefopt.data.formats.schemas.schema import Row, Schema
from prefopt.data.formats.values import field, is_number
from prefopt.data.read import as_list

PROMPTS = ("prompt", "instruction", "question")
COMPLETIONS = ("completions", "responses", "generations", "candidates", "answers")
SCORES = ("scores", "rewards", "ratings")


def _rewrite(row: Row, columns: tuple[str, ...], options: DataOptions) -> Row:
    return {name: field(row, column) for name, column in zip(FIELDS["lists"], columns, strict=True)}


def _fits(row: Row, columns: tuple[str, ...]) -> bool:
    completions, scores = (as_list(row[column]) for column in columns[1:])
    if not isinstance(completions, list | tuple) or not isinstance(scores, list | tuple):
        return False
    return all(isinstance(c, str | list | tuple) for c in completions) and all(map(is_number, scores))


REWARDS = Schema(
    name="rewards",
    variants=tuple(names for names in product(PROMPTS, COMPLETIONS, SCORES) if names != FIELDS["lists"]),
    becomes="lists",
    rewrite=_rewrite,
    about="answers to a prompt and a number for each",
    fits=_fits,
    rank=1,
)
