"""Records of measures to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

Record = TypeVar("Record")


def plain(record: Any) -> dict[str, Any]:
    """Return a record's fields, JSON-able: records in it by their own `to_dict`, tuples as lists."""
    return {field.name: _plain(getattr(record, field.name)) for field in fields(record)}


def rebuild(kind: type[Record], value: Mapping[str, Any]) -> Record:
    """Return the record whose `plain` this is. Keys that are no fields are passed over."""
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.name in value]  # type: ignore[arg-type]
    return kind(**{name: _read(hints[name], value[name]) for name in known})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def _read(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_read(hint, part) for part in value)
    if isinstance(value, Mapping):
        [kind] = [kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)]
        return rebuild(kind, value)  # type: ignore[arg-type]
    return value
