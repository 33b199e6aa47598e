"""What tests of scorers share: attempts from a few words, and a scorer built from a recipe's section."""

from dataclasses import dataclass
from typing import Any

from prefopt.rewards import Attempt, Reward, RewardConfig, ScoreFailure, build_scorer


@dataclass(frozen=True)
class Sampled:
    """A rollout's columns that scorers read."""

    token_ids: tuple[int, ...] = (1, 2, 3)
    policy: float = -7.0
    reference: float | None = -9.0


def said(answer: str, right: Any = None, /, *, prompt: Any = "what?", rollout: Any = None, **row: Any) -> Attempt:
    """Return an attempt without thinking; `right` is the row's `answer`."""
    row = row if right is None else {"answer": right, **row}
    return Attempt(prompt=prompt, row=row, text=answer, answer=answer, rollout=rollout)


def scorer(section: Any) -> Reward:
    return build_scorer(RewardConfig.model_validate(section))


def one(section: Any, attempt: Attempt) -> Any:
    """Return the score of one attempt; of a failure its sentence."""
    [score] = scorer(section).score([attempt])
    return score.reason if isinstance(score, ScoreFailure) else score
