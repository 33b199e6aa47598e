"""Thoughts in answers, `<think>...</think>`: taken out where the data's are not wanted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from prefopt.data.rows import Dialogue, Document, Message, RowError

Thinking = Literal["keep", "drop"]

OPEN, CLOSE = "<think>", "</think>"
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Where a message holds its thought when its content doesn't."""
ASKED: Mapping[Thinking, Mapping[str, Any]] = {"keep": {}, "drop": {"enable_thinking": False}}
"""What chat templates are told; those that don't know it as a switch don't look at it."""
_THOUGHT = re.compile(rf"{OPEN}.*?{CLOSE}\s*", re.DOTALL)


def without_thoughts(row: Document | Dialogue) -> Document | Dialogue:
    """Return a row whose completions have no thoughts; the prompt stays as it is.

    Raises:
        RowError: a thought has no end, or nothing else is in a completion.
    """
    if isinstance(row, Document):
        return replace(row, completions=tuple(_answer(text) for text in row.completions))
    return replace(row, completions=tuple(_message(message) for message in row.completions))


def thought_of(text: str) -> str:
    """Return the text of the thought in an answer; "" where there is none."""
    return text.rpartition(CLOSE)[0].partition(OPEN)[2].strip() or text.rpartition(CLOSE)[0].strip()


def _message(message: Message) -> Message:
    kept = {key: value for key, value in message.items() if key not in THOUGHT_KEYS}
    return {**kept, "content": _answer(message["content"])}


def _answer(text: str) -> str:
    if OPEN not in text and CLOSE not in text:
        return text
    left = _THOUGHT.sub("", text)
    if CLOSE in left:  # the prompt had opened it
        left = left.rpartition(CLOSE)[2].lstrip()
    if OPEN in left:
        raise RowError("thought without an end", f"a completion has {OPEN} and no {CLOSE} behind it")
    if not left.strip():
        raise RowError("empty completion", "nothing is left of it but its thought")
    return left
