"""Pairs that answer a question: Orca DPO pairs and the sets that were made from them."""

from __future__ import annotations

from prefopt.data.config import DataOptions
from prefopt.data.formats.schemas.schema import Row, Schema
from prefopt.data.formats.values import field, is_number
from prefopt.data.read import as_list, plain


def _rewrite(row: Row, columns: tuple[str, ...], options: DataOptions) -> Row:
    pair = {"prompt": field(row, columns[0]), "chosen": field(row, "chosen"), "rejected": field(row, "rejected")}
    return {**row, **pair, **_ratings(row)}


def _ratings(row: Row) -> Row:
    """Two ratings beside the score of chosen: one is that score, so the other is of rejected."""
    ratings, score = as_list(row.get("rating")), plain(row.get("chosen_score"))
    if not isinstance(ratings, list | tuple) or len(ratings) != 2 or not all(map(is_number, [*ratings, score])):
        return {}
    if score != max(ratings):
        return {}
    return {"score_chosen": max(ratings), "score_rejected": min(ratings)}


QUESTION_PAIRS = Schema(
    name="question_pairs",
    variants=tuple((name, "chosen", "rejected") for name in ("question", "input", "instruction", "query")),
    becomes="pairs",
    rewrite=_rewrite,
    about="two answers to a question, as in Orca DPO pairs",
)
