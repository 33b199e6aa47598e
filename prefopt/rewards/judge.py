"""A judge: a model behind an OpenAI-compatible endpoint that grades answers, within a budget."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import regex

from prefopt.errors import RecipeError
from prefopt.rewards.attempts import Attempt, Message
from prefopt.rewards.endpoint import Budget, CallError, Endpoint, RefusedError
from prefopt.rewards.kinds import JudgeSection
from prefopt.rewards.scorer import Score, ScoreFailure

_LONGEST_PAUSE = 60.0
"""Seconds between two tries, whatever the endpoint asks for."""
_SEARCH = 1.0
"""Seconds that the search for the grade may take."""


class Judge:
    """The grade that a model gives, `low` to `high`.

    Equal questions of one call are asked once. A call that fails for the moment (no connection, 408, 429, 5xx, an
    answer that is cut off or no JSON) is tried again; one that is refused (401, 403, 404) ends the asking: what is
    left are failures. So is what the budget has no room for, and a reply without a grade between the two ends.

    Args:
        section: the recipe's section, whose `enabled` is true.
        pause: waits so many seconds.
        ledger: a file that keeps what is spent, so that the budget is one for all starts that work on the same.

    Raises RecipeError when the environment variable with the key is not set.
    """

    name = "judge"

    def __init__(
        self, section: JudgeSection, pause: Callable[[float], None] = time.sleep, ledger: Path | None = None
    ) -> None:
        self.low: float | None = section.low
        self.high: float | None = section.high
        self.budget = Budget(section.max_calls, section.max_total_tokens, ledger)
        self._section = section
        self._pause = pause
        self._endpoint = Endpoint(section.endpoint, _key(section.key_variable), section.timeout)
        self._grade = regex.compile(section.pattern)
        self._refused: str | None = None

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        questions = [self._question(attempt) for attempt in attempts]
        distinct = list(dict.fromkeys(questions))
        with ThreadPoolExecutor(self._section.parallel) as pool:
            try:
                grades = dict(zip(distinct, pool.map(self._ask, distinct), strict=True))
            except KeyboardInterrupt:
                self._refused = "it was interrupted."  # calls under way are not tried again
                raise
        return [grades[question] for question in questions]

    def _question(self, attempt: Attempt) -> str:
        values = {
            "prompt": _written(attempt.prompt),
            "answer": attempt.answer,
            "low": f"{self._section.low:g}",
            "high": f"{self._section.high:g}",
        }
        # All at once: an answer that holds "{prompt}" stays what it is.
        return re.sub(r"\{(prompt|answer|low|high)\}", lambda found: values[found[1]], self._section.instruction)

    def _ask(self, question: str) -> Score:
        section = self._section
        body = {
            "model": section.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": section.temperature,
            "max_tokens": section.max_tokens,
        }
        for trial in range(section.retries + 1):
            if self._refused is not None:
                return ScoreFailure(f"judge: {self._refused}")
            if (spent := self.budget.take()) is not None:
                return ScoreFailure(f"judge: {spent}")
            try:
                reply = self._endpoint.ask(body)
            except RefusedError as error:
                self._refused = str(error)
            except CallError as error:
                self.budget.spend(error.tokens)
                if not error.passing or trial == section.retries:
                    return ScoreFailure(f"judge: {error}")
                self._pause(min(_LONGEST_PAUSE, max(2.0**trial, error.wait)))
            else:
                self.budget.spend(reply.tokens)
                return self._graded(reply.text)
        return ScoreFailure(f"judge: {self._refused}")

    def _graded(self, reply: str) -> Score:
        found = None
        try:
            for match in self._grade.finditer(reply, timeout=_SEARCH):
                found = match
        except TimeoutError:
            return ScoreFailure("judge: the search for the grade in its reply took too long.")
        try:
            grade = float(found[1 if self._grade.groups else 0]) if found else None
        except (TypeError, ValueError):
            grade = None
        if grade is None:
            shown = self._endpoint.without_key(reply)[:80]
            return ScoreFailure(f"judge: its reply has no grade: {shown!r}.")
        if not self._section.low <= grade <= self._section.high:
            return ScoreFailure(
                f"judge: its grade {grade:g} is not between {self._section.low:g} and {self._section.high:g}."
            )
        return grade


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    # Read here, by the name that the recipe gives, so that a key is in no recipe, record or message.
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RecipeError(
            f"key_variable is {variable}, and there is no environment variable of that name: set it to the judge's key."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise RecipeError(
            f"the environment variable {variable} (key_variable) holds more than a key: a space, a line's end or a "
            "character that no header can carry; set it to the key alone."
        )
    return key


def _written(prompt: str | Sequence[Message]) -> str:
    """Return a prompt as text: a single message by its content, several with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
