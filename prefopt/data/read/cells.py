"""Cells of a table without types: text as it stands, and a number, a truth value or a list where one is needed."""

from __future__ import annotations

import json
import re
from typing import Any

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
TRUTH = {"true": True, "false": False}


class Cell(str):
    """The text of a cell. Nothing says whether `42` is a number or an answer, so that what needs a number asks."""

    __slots__ = ()


def plain(value: Any) -> Any:
    """Return what a cell that is written like a number or a truth value stands for; anything else as it is."""
    if not isinstance(value, Cell):
        return value
    text = value.strip()
    if text.lower() in TRUTH:
        return TRUTH[text.lower()]
    if not NUMBER.fullmatch(text):
        return value
    return float(text) if re.search(r"[.eE]", text) or len(text) > 18 else int(text)


def as_messages(value: Any) -> Any:
    """Return the messages that a cell holds as JSON; anything else as it is, a text that is some other list too."""
    found = as_list(value)
    if found is value or not found or not all(isinstance(item, dict) and "role" in item for item in found):
        return value
    return found


def as_list(value: Any) -> Any:
    """Return the list that a cell holds as JSON; anything else as it is."""
    if not isinstance(value, Cell) or not value.lstrip().startswith("["):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, list) else value
