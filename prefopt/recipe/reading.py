"""From a recipe file to the sections that a kind of recipe has, or to a sentence for everything that is wrong in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from prefopt.config import Section
from prefopt.errors import RecipeError, nearest
from prefopt.recipe.paths import PathKeys, missing, resolved
from prefopt.recipe.sentences import located, sentences
from prefopt.recipe.source import Source, read

Kind = TypeVar("Kind", bound=Section)


def read_recipe(
    kind: type[Kind],
    path: Path,
    overrides: Iterable[str],
    paths: PathKeys,
    *,
    check_files: bool = True,
    prepare: Callable[[Source], Source] = lambda source: source,
) -> Kind:
    """Read, complete and validate the recipe at `path`; no model and no data is loaded.

    Args:
        kind: which sections it has.
        path: a YAML file.
        overrides: `section.key=value`, the value in YAML.
        paths: which keys name files and folders.
        check_files: whether an input that is missing is an error.
        prepare: called with what was read, before it is validated.

    Raises:
        RecipeError: one sentence a line for everything that is wrong: file and line, key, value, what is allowed.
    """
    source = prepare(resolved(read(path, overrides), paths))
    values, wrong = _validated(kind, source)
    if check_files:
        wrong += missing(source, paths)
    if wrong:
        raise RecipeError("\n".join(wrong))
    try:
        return kind.model_validate(values)
    except RecipeError as error:
        raise RecipeError("\n".join(located(line, source) for line in str(error).splitlines())) from None


def _validated(recipe: type[Section], source: Source) -> tuple[dict[str, Section], list[str]]:
    """Return the valid sections, and a sentence for every key that is wrong."""
    fields = recipe.model_fields
    wrong = [
        f"{source.where((name,))}: a recipe has no section {name}; it has {', '.join(fields)}"
        f"{nearest(name, fields) or '.'}"
        for name in source.data
        if name not in fields
    ]
    values: dict[str, Section] = {}
    for name, field in fields.items():
        kind: Any = field.annotation
        if name not in source.data:
            if field.is_required():
                wrong.append(f"{source.path}: the section {name} is missing: {_first_lower(field.description)}")
            continue
        value = source.data[name]
        if value is None and name != "reference":  # a section whose keys are all commented out
            value = {}
        try:
            values[name] = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            wrong += sentences(error, name, kind, source)
        except RecipeError as error:
            wrong.append(located(str(error), source, (name,)))
    return values, wrong


def _first_lower(text: str | None) -> str:
    return (text or "")[:1].lower() + (text or "")[1:]
