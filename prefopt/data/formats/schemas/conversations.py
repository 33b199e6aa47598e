"""Whole conversations whose last answer is to be imitated."""

from __future__ import annotations

from collections.abc import Mapping

from prefopt.data.config import DataOptions
from prefopt.data.formats.schemas.schema import Row, Schema
from prefopt.data.formats.values import field
from prefopt.data.read import as_list
from prefopt.data.row_error import RowError


def _rewrite(row: Row, columns: tuple[str, ...], options: DataOptions) -> Row:
    messages = as_list(field(row, "messages"))
    if not isinstance(messages, list | tuple) or not all(isinstance(message, Mapping) for message in messages):
        raise RowError("wrong type", "'messages' is no list of messages")
    if not messages or messages[-1].get("role") != "assistant":
        raise RowError("no answer", "the last message is no assistant's")
    if len(messages) == 1:
        raise RowError("empty prompt", "no message comes before the answer")
    return {**row, "prompt": messages[:-1], "completion": messages[-1:]}


def _fits(row: Row, columns: tuple[str, ...]) -> bool:
    messages = as_list(row["messages"])
    return isinstance(messages, list | tuple) and all(isinstance(m, Mapping) and "role" in m for m in messages)


MESSAGES = Schema(
    name="messages",
    variants=(("messages",),),
    becomes="demonstrations",
    rewrite=_rewrite,
    about="conversations, of which the last turn is a demonstration",
    fits=_fits,
    rank=2,
)
