"""What a row holds beside its prompt: the right answers that completions are compared with."""

from __future__ import annotations

from prefopt.errors import nearest
from prefopt.rewards.attempts import Attempt
from prefopt.rewards.scorer import ScoreFailure


def expected(attempt: Attempt, column: str, name: str) -> tuple[str, ...] | ScoreFailure:
    """Return the answers that a row takes as right, as text: one, or each of a list; a failure where there is none."""
    if column not in attempt.row:
        others = ", ".join(map(str, attempt.row)) or "none"
        return ScoreFailure(
            f"{name}: the row has no column {column!r}; it has {others}{nearest(column, map(str, attempt.row)) or '.'}"
        )
    value = attempt.row[column]
    listed = list(value) if isinstance(value, list | tuple) else [value]
    if not listed or any(not isinstance(one, str | int | float) or isinstance(one, bool) for one in listed):
        return ScoreFailure(f"{name}: the row's {column!r} is {value!r}; it must be text, a number or a list of those.")
    # A column of whole numbers comes as 7.0 from many a writer, and no answer says that.
    return tuple(str(int(one)) if isinstance(one, float) and one.is_integer() else str(one) for one in listed)
