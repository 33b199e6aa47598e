"""From a name and hyper-parameters to a loss. A loss is found because its module lies in this package."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping
from typing import Any

from prefopt.errors import RecipeError, nearest
from prefopt.losses import expression, own
from prefopt.losses.base import Loss
from prefopt.losses.bradley_terry import BradleyTerry
from prefopt.losses.mixture import Mixture, Share

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
    """Return the loss that `spec` names, or a mixture.

    `build("dpo", beta=0.1)`, `build({"name": "dpo", "beta": 0.1})`, `build("0.8*dpo(beta=0.1) + 0.2*sft")`, and
    `build("my_losses.py:MyLoss")` for a `Loss` of the caller's own in a file of Python, which is run.

    Raises RecipeError for an unknown loss or hyper-parameter (with the nearest known one), a value outside its
    allowed range, an expression that can't be read (with a caret under the mistake), or a file without such a class.
    """
    text, settings = _split(spec)
    settings = _together(text, settings, hyper)
    if text.isidentifier() or own.names_a_file(text):
        return _one(text, settings)
    terms = expression.parse(text)
    if len(terms) == 1 and terms[0].factor == 1:
        return _of_term(text, terms[0], settings)
    if settings:
        raise RecipeError(
            f"{next(iter(settings))} stands beside the mixture {text!r}: write it in the parentheses of a loss in it."
        )
    return Mixture([Share(term.factor, _of_term(text, term, {})) for term in terms])


def _of_term(text: str, term: expression.Term, more: dict[str, Any]) -> Loss:
    """Return the loss of one term of `text`; an error shows where its name or setting stands."""
    own: dict[str, Any] = {}
    for key, setting in term.settings.items():
        inner = setting.value
        own[key] = _of_term(text, inner, {}) if isinstance(inner, expression.Term) else inner
    settings = _together(text, own, more)
    try:
        return _one(term.name, settings)
    except RecipeError as error:
        named = [
            setting.at
            for key, setting in term.settings.items()
            if re.search(rf"^{key} = |hyper-parameter '{key}'", str(error))
        ]
        raise expression.mistake(text, named[0] if named else term.at, str(error)) from error


def _together(text: str, settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    if twice := sorted(settings.keys() & more.keys()):
        raise RecipeError(f"The loss {text} got {twice[0]} twice: give it once.")
    return {**settings, **more}


def _one(name: str, settings: dict[str, Any]) -> Loss:
    kind = _kind(name)
    settings = _wrapped(name, kind, settings)
    allowed = kind.hyper_names()
    for key in settings:
        if key not in allowed:
            takes = f"it takes {_listed(allowed)}{nearest(key, allowed)}" if allowed else "it takes none."
            raise RecipeError(f"The loss {name} has no hyper-parameter {key!r}: {takes}")
    if needed := [key for key in kind.needed_names() if key not in settings]:
        raise RecipeError(f"The loss {name} needs {', '.join(needed)}: write {needed[0]}=... with it.")
    loss = kind(**settings)
    own.check(loss)
    return loss


def _wrapped(name: str, kind: type[Loss], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with the loss that another one wraps built, under its own key."""
    if expression.WRAPPED in settings:
        if not kind.wraps:
            raise RecipeError(f"The loss {name} takes no other loss in its parentheses: write key=value there.")
        if kind.wraps in settings:
            raise RecipeError(f"The loss {name} got {kind.wraps} twice: give it once.")
        settings = {kind.wraps if key == expression.WRAPPED else key: value for key, value in settings.items()}
    for key, value in settings.items():
        if key == kind.wraps and not isinstance(value, Loss):
            settings = {**settings, key: build(value)}
        elif key != kind.wraps and isinstance(value, Loss):
            raise RecipeError(f"{key} = {value.name} is not allowed for the loss {name}: it is a loss.")
    return settings


def _kind(name: str) -> type[Loss]:
    """Return the class of that name, or of `file.py:Class`."""
    if ":" in name:
        return own.load(name)
    kinds = available()
    if name == BradleyTerry.name:
        raise RecipeError(
            f"The loss {name} is that of a reward model, on scalar rewards (`prefopt.losses.BradleyTerry`); a policy "
            "takes dpo, which is the same of implicit rewards."
        )
    if name not in kinds:
        raise RecipeError(f"There is no loss named {name!r}: choose {_listed(kinds)}{nearest(name, kinds)}")
    return kinds[name]


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
