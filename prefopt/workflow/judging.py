"""A judge that compares two answers, asked in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from prefopt.errors import RecipeError
from prefopt.eval.intervals import Floats
from prefopt.rewards import Attempt, ScoreFailure, make_attempt
from prefopt.rewards.judge import Judge
from prefopt.rewards.kinds import JudgeSection
from prefopt.workflow.generations import first_problem, read_yaml

INSTRUCTION = (
    "Which of the two answers to the question is better? Reply with the number alone: 1 for the first, 2 for the "
    "second, 0 if they are equally good.\n\nQuestion:\n{prompt}\n\n{answer}"
)
PATTERN = r"\b([012])\b"
_OUTCOME = {1.0: 1.0, 2.0: 0.0, 0.0: 0.5}
"""The reply -> what it means for the answer that stands first."""


def read_judge(file: Path) -> JudgeSection:
    """Return the section of a judge of pairs from a YAML file.

    Keys are those of the scorer `judge`; its instruction and pattern are for pairs unless the file says otherwise:
    `{answer}` stands for both answers, and the reply is 1, 2 or 0 for a tie.

    Raises:
        RecipeError: the file can't be read, or a key is wrong.
    """
    said = read_yaml(file)
    if not isinstance(said, dict):
        raise RecipeError(f"{file} must hold the keys of a judge: enabled, endpoint, model, ...")
    try:
        whole = {"kind": "judge", "instruction": INSTRUCTION, "pattern": PATTERN, **said, "low": 0.0, "high": 2.0}
        return JudgeSection.model_validate(whole)
    except ValidationError as error:
        raise RecipeError(f"{file}: {first_problem(error)}") from None


def judged(judge: Judge, a: Sequence[Attempt], b: Sequence[Attempt]) -> tuple[Floats, Floats, list[str]]:
    """Return (n,) outcomes of A when A stands first, the same when B does, and why some have none.

    An outcome is 1 where A is better, 0 where B is, 0.5 for a tie, NaN without a verdict. Equal answers are a tie that
    nobody is asked about.
    """
    asked = [at for at, (one, other) in enumerate(zip(a, b, strict=True)) if one.answer != other.answer]
    questions = [_pair(a[at], b[at]) for at in asked] + [_pair(b[at], a[at]) for at in asked]
    verdicts = judge.score(questions)
    ahead, behind = np.full(len(a), 0.5), np.full(len(a), 0.5)
    why = []
    for place, verdict in enumerate(verdicts):
        outcome = np.nan
        if isinstance(verdict, ScoreFailure):
            why.append(verdict.reason)
        elif float(verdict) in _OUTCOME:
            outcome = _OUTCOME[float(verdict)]
        else:
            why.append(f"judge: its reply {verdict:g} is none of 0, 1 and 2.")
        at = asked[place % len(asked)]
        if place < len(asked):
            ahead[at] = outcome
        else:
            behind[at] = 1 - outcome
    return ahead, behind, why


def _pair(first: Attempt, second: Attempt) -> Attempt:
    text = f"First answer:\n{first.answer}\n\nSecond answer:\n{second.answer}"
    return make_attempt(first.prompt, text, row=first.row)
