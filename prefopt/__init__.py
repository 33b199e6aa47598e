"""prefopt: offline preference optimization, fast and exact on the machine you have.

The names below are resolved on first use, so that `import prefopt` costs nothing.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.data import load_preferences
    from prefopt.errors import PrefoptError
    from prefopt.eval import score_completions
    from prefopt.models import load_policy
    from prefopt.recipe import load_recipe
    from prefopt.train import PreferenceArguments, PreferenceTrainer

_LAZY = {
    "PreferenceArguments": "prefopt.train",
    "PreferenceTrainer": "prefopt.train",
    "PrefoptError": "prefopt.errors",
    "load_policy": "prefopt.models",
    "load_preferences": "prefopt.data",
    "load_recipe": "prefopt.recipe",
    "score_completions": "prefopt.eval",
}
_ROOMS = ("data", "eval", "kernels", "losses", "models", "report", "sampling", "train")

__all__ = [
    "PreferenceArguments",
    "PreferenceTrainer",
    "PrefoptError",
    "load_policy",
    "load_preferences",
    "load_recipe",
    "score_completions",
]

# Importing bitsandbytes prints a line about a faster kernel on some CPUs; prefopt does without it.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda line: "Failed to load CPU" not in line.msg)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _ROOMS:  # so that `prefopt.losses.build` works after `import prefopt`
        return import_module(f"prefopt.{name}")
    raise AttributeError(f"module 'prefopt' has no attribute {name!r}")
