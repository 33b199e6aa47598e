"""From what pydantic found wrong to sentences for the person who wrote the recipe."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prefopt.errors import nearest
from prefopt.recipe.source import Key, Source

# What pydantic's complaints allow: about types (`int_type`, `int_parsing`, ...) and about values.
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section of keys",
    "mapping": "a section of keys",
    "model": "a section of keys",
}
_SUFFIXES = ("_type", "_parsing", "_from_float", "_attributes_type")
_VALUES = {
    "finite_number": "a finite number",
    "none_required": "null",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
    "string_too_short": "at least {min_length} characters long",
    "literal_error": "{expected}",
    "enum": "{expected}",
}


def sentences(error: ValidationError, section: str, kind: Any, source: Source) -> list[str]:
    """Return one sentence for each wrong key of `section`: where it stands, what it is, what is allowed.

    Args:
        error: what validating the section's value against `kind` raised.
        section: name of the section.
        kind: the section's type, to know its keys.
        source: what was read, to know lines and values.
    """
    complaints: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        complaints.setdefault(_key(detail, section, source), []).append(detail)
    return [_sentence(key, details, kind, source) for key, details in complaints.items()]


def located(message: str, source: Source, key: Key = ()) -> str:
    """Return `message` behind the place and name of what it speaks of: the first key in it, else `key`."""
    for word in re.findall(r"[\w.]+", message):
        parts = tuple(word.strip(".").split("."))
        whole = isinstance(source.get(parts[:1]), str)  # `reference: none` stands for `reference.kind`
        if len(parts) > 1 and (whole or source.get(parts[:2]) is not None):
            return f"{source.where(parts)}: {message}"
        if key and source.get((*key, parts[0])) is not None:
            return f"{source.where((*key, parts[0]))}: {'.'.join((*key, parts[0]))}: {message}"
    name = "" if not key or f"{key[0]}." in message else f"{'.'.join(key)}: "
    return f"{source.where(key)}: {name}{message}"


def _key(detail: ErrorDetails, section: str, source: Source) -> Key:
    """Return where in the recipe the complaint belongs: pydantic's path without the names of union members."""
    key, value = [section], source.get((section,))
    parts = detail["loc"]
    for part in parts:
        if isinstance(value, Mapping) and part in value:
            key.append(str(part))
            value = value[part]
    if detail["type"] == "missing":
        key.append(str(parts[-1]))
    return tuple(key)


def _sentence(key: Key, details: list[ErrorDetails], kind: Any, source: Source) -> str:
    detail, dotted, where = details[0], ".".join(key), source.where(key)
    if any(d["type"] == "extra_forbidden" for d in details):
        known = _fields(kind, key[1:-1])
        return (
            f"{where}: {dotted} is not a setting; {'.'.join(key[:-1])} takes {', '.join(known)}"
            f"{nearest(key[-1], known) or '.'}"
        )
    if detail["type"] == "missing":
        about = _fields(kind, key[1:-1]).get(key[-1]) or ""
        return f"{where}: {dotted} is missing{': ' + _lowered(about).rstrip('.') if about else ''}; add it."
    if own := [d for d in details if not _allowed(d)]:
        message = own[0]["msg"].removeprefix("Value error, ").rstrip(".")
        return located(message + ("" if message.endswith(("?", "^")) else "."), source, key)
    allowed = " or ".join(dict.fromkeys(rule for d in details if (rule := _allowed(d))))
    close = nearest(detail["input"], _choices(details)) if isinstance(detail["input"], str) else ""
    return f"{where}: {dotted} is {_shown(detail['input'])}; it must be {allowed}{close or '.'}"


def _allowed(detail: ErrorDetails) -> str:
    """Return what is allowed, or an empty string when the complaint is a sentence of the room's own."""
    kind = detail["type"]
    if kind in _VALUES:
        return _VALUES[kind].format(**detail.get("ctx", {}))
    return next(
        (
            _TYPES[kind.removesuffix(end)]
            for end in _SUFFIXES
            if kind.removesuffix(end) in _TYPES and kind.endswith(end)
        ),
        "",
    )


def _choices(details: list[ErrorDetails]) -> list[str]:
    expected = (d["ctx"]["expected"] for d in details if d["type"] in ("literal_error", "enum"))
    return [word for text in expected for word in re.findall(r"'([^']*)'", text)]


def _fields(kind: Any, key: Key) -> dict[str, str | None]:
    """Return the keys that the section at `key` under `kind` takes, each with its description."""
    models = list(_models(kind))
    for part in key:
        models = [
            m for model in models if part in model.model_fields for m in _models(model.model_fields[part].annotation)
        ]
    return {name: info.description for model in models for name, info in model.model_fields.items()}


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that an annotation holds, inside unions and Annotated."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(kind):
            yield from _models(part)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
