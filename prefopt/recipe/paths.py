"""Relative paths in a recipe: inputs count from the recipe's folder, outputs from where the command runs.

What an override names counts from the working directory, since that is where the shell completed it. A recipe is
resolved once, when it is loaded, and saved with absolute paths: a run can be resumed from anywhere.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.data.sources import FILE_SUFFIXES, is_url
from prefopt.recipe.source import Key, Source


@dataclass(frozen=True)
class PathKeys:
    """Which keys of a kind of recipe name files and folders that it reads."""

    data: tuple[Key, ...]
    """Files, globs or data sets, or lists of them."""
    models: tuple[Key, ...] = (
        ("model", "name"),
        ("model", "adapter"),
        ("model", "tokenizer", "name"),
        ("model", "tokenizer", "chat_template"),
        ("reference", "model"),
    )
    files: tuple[Key, ...] = (("train", "deepspeed"),)
    """Files, unless what is said stands in the recipe itself."""


RECIPE_PATHS = PathKeys((("data", "train"), ("data", "eval")))
_LOSS: Key = ("loss", "name")
_OWN_LOSS = re.compile(r"\"([^\"]+\.py)(:\w+)\"|'([^']+\.py)(:\w+)'|([\w.~/\\:-]+\.py)(:\w+)")
"""A file of the user's own losses in a formula, in quotes or without."""
_OUTPUTS: tuple[Key, ...] = (("train", "output_dir"), ("reference", "cache_dir"))
_LONGEST_NAME = 255


def resolved(source: Source, paths: PathKeys) -> Source:
    """Return `source` with every path that it names made absolute; names of the Hugging Face Hub stay."""
    for key in paths.data:
        value = source.get(key)
        if isinstance(value, str):
            source = source.replaced(key, _data(value, source.base(key)))
        elif isinstance(value, list):
            source = source.replaced(key, [_listed(name, source.base(key)) for name in value])
    for key in paths.models:
        if isinstance(value := source.get(key), str):
            source = source.replaced(key, _model(value, source.base(key)))
    for key in paths.files:
        if isinstance(value := source.get(key), str):
            source = source.replaced(key, str(_absolute(value, source.base(key))))
    for key in _losses(source):
        if isinstance(value := source.get(key), str):
            source = source.replaced(key, _loss(value, source.base(key)))
    for key in _OUTPUTS:
        if isinstance(value := source.get(key), str) and value:
            source = source.replaced(key, str(_absolute(value, Path.cwd())))
    return source


def missing(source: Source, paths: PathKeys) -> list[str]:
    """Return a sentence for every data file and model folder of a resolved source that is not there."""
    sentences: list[str] = []
    for key in (*paths.data, *paths.models, *paths.files):
        value = source.get(key)
        listed = [one.get("source") if isinstance(one, dict) else one for one in _as_list(value)]
        names = [name for name in listed if isinstance(name, str)]
        sentences += [
            f"{source.where(key)}: {'.'.join(key)}: {_not_there(name, source.base(key))}"
            for name in names
            if name.startswith(os.sep) and not _there(name)
        ]
    return sentences


def _losses(source: Source) -> list[Key]:
    """Return every key that may name a loss: that of the recipe, and of one that it wraps."""
    section = source.get(_LOSS[:-1])
    inner = section.keys() - {"name"} if isinstance(section, Mapping) else ()
    wrapped = [("loss", key, "name") if isinstance(section[key], Mapping) else ("loss", key) for key in sorted(inner)]
    return [_LOSS, *wrapped]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _listed(value: Any, base: Path) -> Any:
    """Return one of several data sources, a name or a name with its weight, as an absolute path."""
    if isinstance(value, dict) and isinstance(name := value.get("source"), str):
        return {**value, "source": _data(name, base)}
    return _data(value, base) if isinstance(value, str) else value


def _data(name: str, base: Path) -> str:
    if is_url(name):
        inner, inside, archive = name.rpartition("::")  # a file in an archive, which may lie beside the recipe
        return name if not inside or is_url(archive) else f"{inner}::{_absolute(archive, base)}"
    path = _absolute(name, base)
    is_path = name.endswith(FILE_SUFFIXES) or name.startswith((".", "~")) or name.count("/") > 1
    return str(path) if is_path or glob.has_magic(name) or _exists(path) else name


def _model(name: str, base: Path) -> str:
    path = _absolute(name, base)
    return str(path) if name.startswith((".", "~")) or name.endswith(".gguf") or _exists(path) else name


def _loss(formula: str, base: Path) -> str:
    file, _, name = formula.rpartition(":")
    if file.endswith(".py") and (re.fullmatch(r"[^\"'*+(),=]+", formula) or _exists(_absolute(file, base))):
        return f"{_absolute(file, base)}:{name}"  # alone, whatever characters its path has

    def absolute(found: re.Match[str]) -> str:
        file, name = (part for part in found.groups() if part)
        return f'"{_absolute(file, base)}{name}"'

    return _OWN_LOSS.sub(absolute, formula)


def _absolute(name: str, base: Path) -> Path:
    # Not `resolve`: it would follow links, and the cache of the Hub is made of them.
    return Path(os.path.normpath(base / Path(name).expanduser()))


def _exists(path: Path) -> bool:
    """Return whether `path` is there; a chat template written out in the recipe is no path at all."""
    return max(map(len, path.parts), default=0) <= _LONGEST_NAME and "\0" not in str(path) and path.exists()


def _there(name: str) -> bool:
    # The pattern is absolute, which `Path.glob` can't take.
    return any(glob.iglob(name, recursive=True)) if glob.has_magic(name) else _exists(Path(name))  # noqa: PTH207


def _not_there(name: str, base: Path) -> str:
    """Return what is missing, and what may have been meant."""
    path, here = Path(name), Path.cwd()
    if path.is_relative_to(base) and base != here and _there(str(here / path.relative_to(base))):
        return (
            f"there is no {path}; it lies in the working directory, but paths in a recipe count from the recipe's "
            f"folder: write {os.path.relpath(here / path.relative_to(base), base)}."
        )
    if glob.has_magic(name):
        return f"no file matches {path}."
    if not path.parent.is_dir():
        return f"there is no {path}, and no folder {path.parent} either."
    close = difflib.get_close_matches(path.name, sorted(p.name for p in path.parent.iterdir()), n=1)
    return f"there is no {path}{f'; did you mean {str(path.parent / close[0])!r}?' if close else '.'}"
