"""A verifier of mathematics, by math-verify."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from prefopt.errors import RecipeError
from prefopt.rewards.attempts import Attempt
from prefopt.rewards.columns import expected
from prefopt.rewards.isolated import Isolated
from prefopt.rewards.kinds import MathSection
from prefopt.rewards.scorer import Score, ScoreFailure, failure


class MathVerify:
    """1 where math-verify finds the answer equal to an expected expression, else 0.

    LaTeX (`$...$`, `\\boxed{...}`) and plain numbers are read: of several expressions the last, or the boxed one.
    math-verify's own time limit works in the main thread alone and can't end a product of huge numbers, so it runs in
    another process; a comparison that takes longer than `timeout` is a failure.

    Raises RecipeError when math-verify is not installed.
    """

    name = "math"
    low: float | None = 0.0
    high: float | None = 1.0

    def __init__(self, section: MathSection) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise RecipeError(
                "the scorer math needs the package math-verify: pip install 'prefopt[math]', or choose numeric."
            )
        self._column = section.column
        self._compare = Isolated("prefopt.rewards.math_answers:compare", section.timeout)

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        return [self._one(attempt) for attempt in attempts]

    def _one(self, attempt: Attempt) -> Score:
        right = expected(attempt, self._column, self.name)
        if isinstance(right, ScoreFailure):
            return right
        try:
            reply = self._compare({"right": list(right), "answer": attempt.answer})
        except Exception as error:  # noqa: BLE001 - one comparison that fails is one completion's
            return failure(self.name, error)
        if "unread" in reply:
            return ScoreFailure(
                f"math: the row's {self._column!r} is no expression that math-verify reads: {reply['unread'][:80]!r}."
            )
        return float(bool(reply["same"]))


def compare(request: dict[str, Any]) -> dict[str, Any]:
    """Return whether `answer` is one of the expressions `right`, or which of those can't be read."""
    import math_verify

    if not request:  # what it loads when it first reads is no part of a comparison's time
        math_verify.verify(math_verify.parse("$1$", parsing_timeout=None), [], timeout_seconds=None)
        return {}
    said = math_verify.parse(request["answer"], parsing_timeout=None)
    for text in request["right"]:
        # An expression by itself is taken for LaTeX: math-verify would look for a number in it.
        marked = text if "$" in text or "\\boxed" in text or "\\[" in text else f"${text}$"
        wanted = math_verify.parse(marked, parsing_timeout=None)
        if not wanted:
            return {"unread": text}
        if said and math_verify.verify(wanted, said, timeout_seconds=None):
            return {"same": True}
    return {"same": False}
