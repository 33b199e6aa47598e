"""From a name and hyper-parameters to a loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prefopt.errors import RecipeError, nearest
from prefopt.losses.base import Loss
from prefopt.losses.dpo import DPO
from prefopt.losses.ipo import IPO
from prefopt.losses.kto import KTO


def available() -> dict[str, type[Loss]]:
    """Return every loss by the name that recipes use."""
    return {kind.name: kind for kind in (DPO, IPO, KTO)}


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
