"""Losses of the user's own: a class in a file of Python, named as `my_losses.py:MyLoss`."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

from prefopt.errors import RecipeError, nearest
from prefopt.losses.base import Extra, Form, Loss


def names_a_file(text: str) -> bool:
    """Whether `text` is `file.py:Class` with a file that is there, whatever characters its path has."""
    try:
        return re.fullmatch(r".+\.py:\w+", text) is not None and Path(text.rpartition(":")[0]).is_file()
    except OSError:  # too long for a path
        return False


def load(name: str) -> type[Loss]:
    """Run the file of `name` and return the class; its instances are called what `name` says.

    Raises RecipeError when the file is not there or fails, or has no such subclass of `prefopt.losses.Loss`.
    """
    file, _, wanted = name.rpartition(":")
    path = Path(file).resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"The loss {name} is to be found in {path}, which can't be read: {error.strerror}."
        ) from error
    digest = hashlib.sha256(source).hexdigest()
    place = hashlib.sha256(f"{path} {digest}".encode()).hexdigest()
    module = _run(source, path, f"prefopt_own_losses_{place[:16]}", name)
    found = {
        key: kind
        for key, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Loss) and kind.__module__ == module.__name__
    }
    if wanted not in found:
        listed = f"it has {', '.join(found)}{nearest(wanted, found)}" if found else "it has no subclass of Loss."
        raise RecipeError(f"The file {path} has no loss {wanted!r}: {listed}")
    kind = found[wanted]
    if getattr(kind, "form", None) not in get_args(Form):
        raise RecipeError(
            f"The loss {name} does not say what an example is: set its `form` to one of {', '.join(get_args(Form))}."
        )
    kind.name, kind.source = f"{path}:{wanted}", digest
    return kind


def check(loss: Loss) -> None:
    """Raise RecipeError for a loss whose declarations would not do what they say.

    That is one that does not keep its hyper-parameters where a saved recipe finds them, asks for extras that there
    are not, or remembers steps that it is never given.
    """
    if lost := [key for key in loss.hyper_names() if not hasattr(loss, key)]:
        raise RecipeError(
            f"The loss {loss.name} takes {lost[0]} and does not keep it: write `self.{lost[0]} = ...` in its __init__."
        )
    if unknown := sorted(loss.extras - {*get_args(Extra)}):
        raise RecipeError(
            f"The loss {loss.name} asks for {unknown[0]!r} in its `extras`: there are {', '.join(get_args(Extra))}"
            f"{nearest(unknown[0], get_args(Extra))}"
        )
    if loss.statistics == "none" and type(loss).end_step is not Loss.end_step and not loss.wraps:
        raise RecipeError(
            f"The loss {loss.name} has an `end_step`, which is called of losses that see whole steps: set its "
            '`statistics` to "step".'
        )


def _run(source: bytes, path: Path, module_name: str, name: str) -> ModuleType:
    """Return the file as a module, run once for its content; not from cached bytecode, which goes by time and size."""
    if module_name in sys.modules:
        return sys.modules[module_name]
    module = sys.modules[module_name] = ModuleType(module_name)
    module.__file__ = str(path)
    try:
        exec(compile(source, path, "exec"), vars(module))
    except Exception as error:
        del sys.modules[module_name]
        raise RecipeError(f"The file {path} of the loss {name} fails: {type(error).__name__}: {error}") from error
    return module
