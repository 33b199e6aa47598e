"""Rows and files that no sound program writes: strategies for Hypothesis, and damage to the bytes of a file."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from hypothesis import strategies as st

from tests.data.every_format import FORMATS, Row

ODD = [
    "", " ", "\n", "\x00", "\u200b", "\ufeff", "\u2028", "a\u0301", "\U0001f375", "\u202e", "\ud800", "\udfff tea",
    "\x1b[31m", "<|im_end|>", "<|im_start|>", "e" * 5000, "{{ x }}", "\r", "ﬁ", "nan", "null",
]  # fmt: skip
HUGE = [
    10**400,
    -(10**400),
    2**63,
    2**64,
    -(2**63) - 1,
    1e308,
    -1e308,
    5e-324,
    float("inf"),
    float("-inf"),
    float("nan"),
]

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(ODD)
    | st.sampled_from(HUGE)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "a", ""]), inner, max_size=3)
        | st.builds(lambda role, content: [{"role": role, "content": content}], st.just("user") | scalars, inner)
    ),
    max_leaves=6,
)


@st.composite
def rows_of(draw: st.DrawFn, name: str) -> list[Any]:
    """Return rows of a format, sound but for some: fields dropped, replaced, wrapped, added, or damaged deep inside."""
    rows: list[Any] = copy.deepcopy(FORMATS[name] * 2)
    for index in draw(st.lists(st.integers(0, len(rows) - 1), max_size=6, unique=True)):
        damage = draw(st.sampled_from(["drop", "replace", "wrap", "inside", "inside", "add", "whole"]))
        row: Row = rows[index]
        column = draw(st.sampled_from(sorted(row)))
        if damage == "drop":
            del row[column]
        elif damage == "replace":
            row[column] = draw(values)
        elif damage == "wrap":
            row[column] = draw(
                st.sampled_from([[row[column]], {"content": row[column]}, [[row[column]]], str(row[column])])
            )
        elif damage == "inside":
            row[column] = damaged_inside(row[column], draw)
        elif damage == "add":
            row[draw(st.sampled_from(["prompt", "label", "scores", "score_chosen", "x", "", "other_prompt"]))] = draw(
                values
            )
        else:
            rows[index] = draw(values)
    return rows


def damaged_inside(value: Any, draw: st.DrawFn) -> Any:
    """Replace something within lists and messages, or the value itself."""
    if isinstance(value, list) and value:
        at = draw(st.integers(0, len(value) - 1))
        return [damaged_inside(item, draw) if i == at else item for i, item in enumerate(value)]
    if isinstance(value, dict):
        key = draw(st.sampled_from([*sorted(value), "name"]))
        return {**value, key: draw(values)}
    return draw(values)


def damaged_bytes(seed: int, name: str, rows: int = 60) -> bytes:
    """Return a JSON Lines file of a format, some of whose lines are damaged as bytes; the same for the same seed."""
    draw = random.Random(f"{seed} {name}")
    return b"\n".join(_line(draw, draw.choice(FORMATS[name])) for _ in range(rows)) + b"\n" * draw.randint(0, 1)


def _line(draw: random.Random, row: Row) -> bytes:
    line = json.dumps(row, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    at = draw.randrange(len(line))
    column = draw.choice(sorted(row))
    damage = draw.choice([*["none"] * 6, *_DAMAGE])
    if damage == "none":
        return line
    if damage == "cut":
        return line[:at]
    if damage in ("bytes", "null", "utf-16"):
        inserted = {"bytes": draw.randbytes(4), "null": b"\x00", "utf-16": "é".encode("utf-16")}[damage]
        return line[:at] + inserted.replace(b"\n", b" ") + line[at:]
    if damage == "flip":
        return line[:at] + bytes([line[at] ^ 1 << draw.randrange(8)]).replace(b"\n", b" ") + line[at + 1 :]
    if damage == "blank":
        return b" " * draw.randint(0, 3)
    text = json.dumps({**row, column: _wrong(draw, damage, row[column])})
    return text.replace(f'"{_DIGITS}"', "9" * 5000).encode()  # more digits than Python writes by itself


def _wrong(draw: random.Random, damage: str, value: Any) -> Any:
    """Return what a field is replaced with."""
    return {
        "huge": lambda: draw.choice([_DIGITS, 10**400, -(10**30), 1e999]),
        "long": lambda: "e" * 10_000_000 if draw.random() < 0.01 else draw.choice("eé🍵 ") * 100_000,
        "deep": lambda: json.loads("[" * 200 + "]" * 200),
        "nest": lambda: draw.choice([[value], {"content": value}, [[{"role": "user", "content": value}]], [None], {}]),
        "type": lambda: draw.choice([None, True, 3, -1.5, "", "text", [], {}, [1, 2]]),
    }[damage]()


_DIGITS = "five thousand digits"
_DAMAGE = ["cut", "bytes", "null", "utf-16", "flip", "blank", "huge", "long", "deep", "nest", "type"]
