"""From a name and hyper-parameters to a loss. A loss is found because its module lies in this package."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

from prefopt.errors import RecipeError, nearest
from prefopt.losses.base import Loss

PACKAGE = "prefopt.losses"


def available() -> dict[str, type[Loss]]:
    """Return every loss of this package by the name that recipes use, in alphabetical order."""
    found = pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__, f"{PACKAGE}.")
    modules = [importlib.import_module(info.name) for info in found]
    kinds = [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Loss) and kind.__module__ == module.__name__
    ]
    return {kind.name: kind for kind in sorted((k for k in kinds if "name" in vars(k)), key=lambda k: k.name)}


def build(spec: str | Mapping[str, Any], **hyper: Any) -> Loss:
    """Return the loss that `spec` names: `build("dpo", beta=0.1)` or `build({"name": "dpo", "beta": 0.1})`.

    Raises RecipeError for an unknown loss or hyper-parameter (with the nearest known one), or a value outside its
    allowed range.
    """
    name, settings = _split(spec)
    if twice := sorted(settings.keys() & hyper.keys()):
        raise RecipeError(f"The loss {name} got {twice[0]} twice: give it once.")
    kinds = available()
    if name not in kinds:
        raise RecipeError(f"There is no loss named {name!r}: choose {_listed(kinds)}{nearest(name, kinds)}")
    kind, settings = kinds[name], {**settings, **hyper}
    allowed = kind.hyper_names()
    for key in settings:
        if key not in allowed:
            raise RecipeError(
                f"The loss {name} has no hyper-parameter {key!r}: it takes {_listed(allowed)}{nearest(key, allowed)}"
            )
    return kind(**settings)


def _split(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and the hyper-parameters that stand in `spec`."""
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, Mapping):
        raise RecipeError(f"A loss is a name or a mapping with a name, not {spec!r}: write `dpo` or {{name: dpo}}.")
    settings = {str(key): value for key, value in spec.items()}
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(
            f"A loss given as a mapping needs the key `name` ({_listed(available())}); "
            f"found only {_listed(settings) or 'no key at all'}."
        )
    return name, settings


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
