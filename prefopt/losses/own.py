"""Losses of the user's own: a class in a file of Python, named as `my_losses.py:MyLoss`."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import get_args

from prefopt.errors import RecipeError, nearest
from prefopt.losses.base import Form, Loss


def names_a_file(text: str) -> bool:
    """Whether `text` is `file.py:Class` with a file that is there, whatever characters its path has."""
    return re.fullmatch(r".+\.py:\w+", text) is not None and Path(text.rpartition(":")[0]).is_file()


def load(name: str) -> type[Loss]:
    """Run the file of `name` and return the class; its instances are called what `name` says.

    Raises RecipeError when the file is not there or fails, or has no such subclass of `prefopt.losses.Loss`.
    """
    file, _, wanted = name.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise RecipeError(f"The loss {name} is to be found in {path}, but there is no such file.")
    # By content, so that a file that was changed is read again, and found by that name when a loss is pickled.
    module_name = f"prefopt_own_losses_{hashlib.sha256(path.read_bytes() + str(path).encode()).hexdigest()[:16]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None  # the name ends with .py
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise RecipeError(f"The file {path} of the loss {name} fails: {type(error).__name__}: {error}") from error
    found = {
        key: kind
        for key, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Loss) and kind.__module__ == module_name
    }
    if wanted not in found:
        listed = f"it has {', '.join(found)}{nearest(wanted, found)}" if found else "it has no subclass of Loss."
        raise RecipeError(f"The file {path} has no loss {wanted!r}: {listed}")
    kind = found[wanted]
    if getattr(kind, "form", None) not in get_args(Form):
        raise RecipeError(
            f"The loss {name} does not say what an example is: set its `form` to one of {', '.join(get_args(Form))}."
        )
    kind.name = f"{path}:{wanted}"
    return kind
