"""Completions cut into the pieces of text that were scored, each with how far training moved it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.report.words import is_number, number

_LEVELS = (0.25, 1.0, 2.5)
"""Nats from which a piece is shaded, more, and most: 1.3, 2.7 and 12 times as likely, or the other way."""
_NAMED = 3


@dataclass(frozen=True)
class Piece:
    """A piece of text."""

    text: str
    level: str
    """u1 to u3 for what became more likely, d1 to d3 for what became less, or nothing."""
    said: str


@dataclass(frozen=True)
class Answer:
    """A completion as it is shown."""

    text: str
    pieces: tuple[Piece, ...] = ()
    """The same cut into pieces; empty where nothing is known of them."""
    words: str = ""
    """What the shading shows, in words."""
    note: str = ""
    """What else is known of it: a score, say."""
    mark: str = ""
    """A class of the page's style."""


def answer(text: Any, tokens: Any = None, *, note: str = "", mark: str = "") -> Answer:
    """Return a completion to show; `tokens`: its [piece, log-ratio] pairs, where a file has them and they are whole."""
    words = "" if text is None else str(text)
    known = [
        (one[0], float(one[1]))
        for one in (tokens if isinstance(tokens, Sequence) and not isinstance(tokens, str) else ())
        if isinstance(one, Sequence) and len(one) == 2 and isinstance(one[0], str) and is_number(one[1])
    ]
    if not known or len(known) != len(tokens):
        return Answer(words, note=note, mark=mark)
    pieces = tuple(Piece(piece, _level(ratio), f"{signed(ratio)} nats") for piece, ratio in known)
    return Answer(words, pieces, _words(known), note, mark)


def signed(value: float) -> str:
    """2 -> `+2.00`, with a real minus below 0."""
    text = f"{abs(value):.2f}"
    return ("±" if float(text) == 0 else "+" if value > 0 else "−") + text


def _level(ratio: float) -> str:
    step = sum(abs(ratio) >= least for least in _LEVELS)
    return f"{'u' if ratio > 0 else 'd'}{step}" if step else ""


def _words(known: Sequence[tuple[str, float]]) -> str:
    """Say the sum and the pieces that moved most."""
    total = sum(ratio for _, ratio in known)
    shown = [(piece.strip(), ratio) for piece, ratio in known if piece.strip() and abs(ratio) >= _LEVELS[0]]
    best = sorted(shown, key=lambda one: -one[1])
    up = [f"“{piece}” {signed(ratio)}" for piece, ratio in best[:_NAMED] if ratio > 0]
    down = [f"“{piece}” {signed(ratio)}" for piece, ratio in best[::-1][:_NAMED] if ratio < 0]
    parts = [f"{signed(total)} nats over {number(len(known))} pieces"]
    parts += [f"raised most: {', '.join(up)}"] if up else []
    parts += [f"lowered most: {', '.join(down)}"] if down else []
    return "; ".join(parts)


def answers(sample: Mapping[str, Any], key: str) -> tuple[Answer, ...]:
    """Return the completions of one side of a sample, shaded where `KEY_tokens` lies beside `KEY`."""
    texts = sample.get(key)
    tokens = sample.get(f"{key}_tokens")
    if not isinstance(texts, list):
        return ()
    cut = tokens if isinstance(tokens, list) and len(tokens) == len(texts) else [None] * len(texts)
    return tuple(answer(text, parts) for text, parts in zip(texts, cut, strict=True))
