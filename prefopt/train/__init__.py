"""Room: PreferenceTrainer, its step, its metrics and its checkpoints.

The names below are resolved on first use, so that reading a recipe does not import what only training needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.train.arguments import PreferenceArguments
    from prefopt.train.config import TrainConfig
    from prefopt.train.trainer import PreferenceTrainer

_LAZY = {"PreferenceArguments": "arguments", "PreferenceTrainer": "trainer", "TrainConfig": "config"}

__all__ = ["PreferenceArguments", "PreferenceTrainer", "TrainConfig"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'prefopt.train' has no attribute {name!r}")
    return getattr(import_module(f"prefopt.train.{_LAZY[name]}"), name)
