"""Room: scorers give completions numbers: verifiers, functions of the user's own, reward models, a judge.

The names below are resolved on first use, so that reading a recipe imports no scorer.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefopt.rewards.attempts import Attempt, make_attempt, opens_thinking
from prefopt.rewards.config import RewardConfig, ThinkingSection, absolute_files
from prefopt.rewards.scorer import Score, ScoreFailure, Scorer

if TYPE_CHECKING:
    from prefopt.rewards.build import Reward, build_scorer
    from prefopt.rewards.gym import reasoning_gym_rows
    from prefopt.rewards.identity import reward_identity, score_settings

_LAZY = {
    "Reward": "build",
    "build_scorer": "build",
    "reasoning_gym_rows": "gym",
    "reward_identity": "identity",
    "score_settings": "identity",
}

__all__ = [
    "Attempt",
    "Reward",
    "RewardConfig",
    "Score",
    "ScoreFailure",
    "Scorer",
    "ThinkingSection",
    "absolute_files",
    "build_scorer",
    "make_attempt",
    "opens_thinking",
    "reasoning_gym_rows",
    "reward_identity",
    "score_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
