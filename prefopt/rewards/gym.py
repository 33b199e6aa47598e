"""reasoning-gym: prompts of its tasks, and its own scores of the answers."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from prefopt.errors import RecipeError, nearest
from prefopt.rewards.attempts import Attempt
from prefopt.rewards.isolated import Isolated
from prefopt.rewards.kinds import ReasoningGymSection
from prefopt.rewards.scorer import Score, ScoreFailure, failure

COLUMN = "reasoning_gym"
"""The column that says which entry of which task a row is."""
_KEYS = ("task", "seed", "size", "index", "options", "question")


def reasoning_gym_rows(
    task: str, size: int, seed: int, options: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield prompt rows of a reasoning-gym task: `prompt` (messages), `answer`, and the column that scoring needs.

    A row does not hold the task's metadata, since some of it does not survive a file (tuples, keys that are
    numbers): it holds what makes the entry again, bit for bit, with the same version of reasoning-gym.

    Args:
        task: its name in reasoning-gym, such as chain_sum.
        size: how many rows.
        seed: what they are drawn with.
        options: settings of the task, such as {"max_terms": 3}.

    Raises:
        RecipeError: reasoning-gym is not installed, or has no such task or setting of it.
    """
    given = dict(options or {})
    data = _dataset(task, size, seed, given)
    for index in range(size):
        entry = data[index]
        yield {
            "prompt": [{"role": "user", "content": entry["question"]}],
            "answer": None if entry["answer"] is None else str(entry["answer"]),
            COLUMN: {
                "task": task,
                "seed": seed,
                "size": size,
                "index": index,
                "options": json.dumps(given, sort_keys=True),
                "question": _digest(entry["question"]),
            },
        }


class ReasoningGym:
    """The score, 0 to 1, that the task of a row gives to an answer.

    Some tasks compute what an answer says, so the scores are taken in another process, with a time limit.

    Raises RecipeError when reasoning-gym is not installed.
    """

    name = "reasoning_gym"
    low: float | None = 0.0
    high: float | None = 1.0

    def __init__(self, section: ReasoningGymSection) -> None:
        _check_installed()
        self._grade = Isolated("prefopt.rewards.gym:grade", section.timeout)

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        return [self._one(attempt) for attempt in attempts]

    def _one(self, attempt: Attempt) -> Score:
        made = attempt.row.get(COLUMN)
        if not isinstance(made, Mapping) or any(key not in made for key in _KEYS):
            return ScoreFailure(
                f"reasoning_gym: the row has no column {COLUMN!r} with {', '.join(_KEYS)}: make rows by "
                "`reasoning_gym_rows`."
            )
        try:
            reply = self._grade({"entry": {key: made[key] for key in _KEYS}, "answer": attempt.answer.strip()})
        except Exception as error:  # noqa: BLE001 - one answer that a task can't read is one completion's
            return failure(self.name, error)
        if reply["score"] is None:
            return ScoreFailure(
                "reasoning_gym: the version that is installed makes another question than the row has: make the rows "
                "anew, or install the version that made them."
            )
        return float(reply["score"])


def grade(request: dict[str, Any]) -> dict[str, Any]:
    """Return the `score` of an `answer` to an `entry`; None where the entry now is another question."""
    if not request:
        import reasoning_gym  # noqa: F401 - before the first request, which has a time limit

        return {}
    entry = request["entry"]
    data = _kept(entry["task"], int(entry["size"]), int(entry["seed"]), entry["options"])
    found = data[int(entry["index"])]
    if _digest(found["question"]) != entry["question"]:
        return {"score": None}
    return {"score": float(data.score_answer(request["answer"], found))}


@cache
def _kept(task: str, size: int, seed: int, options: str) -> Any:
    return _dataset(task, size, seed, json.loads(options))


def _dataset(task: str, size: int, seed: int, options: Mapping[str, Any]) -> Any:
    _check_installed()
    from reasoning_gym.factory import DATASETS, create_dataset

    if task not in DATASETS:
        raise RecipeError(f"reasoning-gym has no task '{task}'{nearest(task, DATASETS) or '.'}")
    try:
        return create_dataset(task, size=size, seed=seed, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise RecipeError(f"reasoning-gym refuses these settings of {task}: {error}.") from error


def _check_installed() -> None:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise RecipeError("reasoning_gym needs the package reasoning-gym: pip install 'prefopt[reasoning]'.")


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:16]
