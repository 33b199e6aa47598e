"""Two answers and how much the second is better than the first: the preferences of HelpSteer 2 and 3."""

from __future__ import annotations

from prefopt.data.config import DataOptions
from prefopt.data.formats.schemas.schema import Row, Schema
from prefopt.data.formats.schemas.turns import marked_turns
from prefopt.data.formats.values import field, is_number, number
from prefopt.data.row_error import LeftOut


def _rewrite(row: Row, columns: tuple[str, ...], options: DataOptions) -> Row:
    prompt, first, second, column = columns
    strength = number(field(row, column), column)
    if not strength and options.ties != "as_lists":
        raise LeftOut("data.ties", "tie", f"'{column}' is 0: neither answer is preferred")
    answers = [field(row, first), field(row, second)]
    return {
        "prompt": marked_turns(field(row, prompt)),
        "chosen": answers[strength > 0],
        "rejected": answers[strength <= 0],
        "score_chosen": abs(strength),
        "score_rejected": 0.0,
    }


def _fits(row: Row, columns: tuple[str, ...]) -> bool:
    return is_number(row[columns[-1]])


STRENGTHS = Schema(
    name="strengths",
    variants=(
        ("context", "response1", "response2", "overall_preference"),
        ("prompt", "response_1", "response_2", "preference_strength"),
    ),
    becomes="pairs",
    rewrite=_rewrite,
    about="two answers and how much the second is better (below 0: the first), as in HelpSteer 3",
    fits=_fits,
)
