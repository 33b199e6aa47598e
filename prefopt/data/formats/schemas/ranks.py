"""Ranked answers, the best first: Nectar."""

from __future__ import annotations

from collections.abc import Mapping

from prefopt.data.config import DataOptions
from prefopt.data.formats.schemas.schema import Row, Schema
from prefopt.data.formats.transcripts import TRANSCRIPT_ANSWER, TRANSCRIPT_QUESTION, transcript_turns
from prefopt.data.formats.values import field, number
from prefopt.data.row_error import RowError


def _rewrite(row: Row, columns: tuple[str, ...], options: DataOptions) -> Row:
    prompt, answers = field(row, "prompt"), field(row, "answers")
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, Mapping) for answer in answers):
        raise RowError("wrong type", "'answers' is no list of answers with their ranks")
    if isinstance(prompt, str) and TRANSCRIPT_QUESTION in prompt:
        prompt = transcript_turns(prompt.rstrip().removesuffix(TRANSCRIPT_ANSWER))
    return {
        "prompt": prompt,
        "completions": [field(answer, "answer") for answer in answers],
        "scores": [-number(answer.get("rank"), "rank") for answer in answers],
    }


def _fits(row: Row, columns: tuple[str, ...]) -> bool:
    answers = row["answers"]
    return isinstance(answers, list | tuple) and all(
        isinstance(answer, Mapping) and {"answer", "rank"} <= answer.keys() for answer in answers
    )


RANKED = Schema(
    name="ranked",
    variants=(("prompt", "answers"),),
    becomes="lists",
    rewrite=_rewrite,
    about="answers with ranks, of which 1 is the best; a rank turned round is the score, as in Nectar",
    fits=_fits,
)
