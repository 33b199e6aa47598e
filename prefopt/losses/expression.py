"""The formula of a mixture: `0.8*dpo(beta=0.1) + 0.2*sft`.

    mixture = term ("+" term)*
    term    = [number "*"] loss
    loss    = name ["(" [argument ("," argument)*] ")"]
    argument = key "=" (number | true | false | null | word | loss), or, first of them, the loss that another one wraps

A name is a loss of the package, or `file.py:Class` for one of the user's own, in quotes if the path has other
characters than letters, digits and `_ - . / ~`. Nothing is evaluated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefopt.errors import RecipeError

_TOKENS = re.compile(
    r"\s*(?:(?P<file>[\w.~/\\:-]+\.py:\w+)|(?P<quoted>\"[^\"]+\.py:\w+\"|'[^']+\.py:\w+')|(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<sign>[*+(),=])|(?P<end>$)|(?P<other>.))"
)
_NAMES = ("name", "file", "quoted")
_WORDS = {"true": True, "false": False, "null": None}


WRAPPED = "\0"
"""The key of a loss that stands in the parentheses of another one without a key."""


@dataclass(frozen=True)
class Setting:
    """A hyper-parameter, and where its name stands."""

    value: float | int | bool | str | Term | None
    at: int


@dataclass(frozen=True)
class Term:
    """A loss by name, what it is multiplied by, and where its name stands."""

    factor: float
    name: str
    settings: dict[str, Setting]
    at: int


def parse(text: str) -> list[Term]:
    """Return the terms of `text`, one at least; raise RecipeError with a caret under the mistake."""
    return _Parser(text).mixture()


def spelled(name: str, settings: Mapping[str, Any]) -> str:
    """Return a term that `parse` reads back to the same; raise RecipeError for a value that can't be written."""
    file = name if re.fullmatch(r"[\w.~/\\:-]+", name) else f'"{name}"'
    written = ", ".join(f"{key}={_written(name, key, value)}" for key, value in settings.items())
    return f"{file}({written})" if written else file


def _written(name: str, key: str, value: Any) -> str:
    word = next((word for word, meaning in _WORDS.items() if meaning is value), None)
    if word or (isinstance(value, str) and value.isidentifier() and value not in _WORDS):
        return word or str(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, str) and _is_loss(value):
        return value
    raise RecipeError(
        f"{key} = {value!r} of the loss {name} can't be written in a formula: it must be a number, true, false, null "
        "or a word."
    )


def _is_loss(text: str) -> bool:
    try:
        terms = parse(text)
    except RecipeError:
        return False
    return len(terms) == 1 and terms[0].factor == 1


def mistake(text: str, at: int, sentence: str) -> RecipeError:
    """Return the error that shows where in `text` something is wrong."""
    return RecipeError(f"{sentence}\n    {text}\n    {' ' * at}^")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.kind, self.found, self.at, self.next = "", "", 0, 0
        self.advance()

    def mixture(self) -> list[Term]:
        terms = [self.term()]
        while self.took("+"):
            terms.append(self.term())
        if self.kind != "end":
            raise self.expected("'+' and another loss, or the end")
        return terms

    def term(self) -> Term:
        factor = 1.0
        if self.kind == "number":
            at, factor = self.at, float(self.found)
            if not 0 < factor < float("inf"):
                raise mistake(self.text, at, f"A loss can't be multiplied by {self.found}: write a number above 0.")
            self.advance()
            self.need("*", "'*' between a number and its loss")
        if self.kind not in _NAMES:
            raise self.expected("the name of a loss")
        at, name = self.name()
        return self.loss(factor, name, at)

    def loss(self, factor: float, name: str, at: int) -> Term:
        return Term(factor, name, self.settings() if self.took("(") else {}, at)

    def name(self) -> tuple[int, str]:
        at, name = self.at, self.found[1:-1] if self.kind == "quoted" else self.found
        self.advance()
        return at, name

    def settings(self) -> dict[str, Setting]:
        found: dict[str, Setting] = {}
        while not self.took(")"):
            if found:
                self.need(",", "',' or ')'")
            if self.kind not in _NAMES:
                raise self.expected("a hyper-parameter as key=value, or ')'")
            plain = self.kind == "name"
            at, key = self.name()
            if not found and not (plain and not self.sees("(),+*")):
                found[WRAPPED] = Setting(self.loss(1.0, key, at), at)
                continue
            if key in found:
                raise mistake(self.text, at, f"{key} is given twice: give it once.")
            self.need("=", f"'=' and a value for {key}")
            found[key] = Setting(self.value(), at)
        return found

    def value(self) -> float | int | bool | str | Term | None:
        if self.kind == "number":
            text = self.found
            self.advance()
            return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
        if self.kind not in _NAMES:
            raise self.expected("a number, true, false, null, a word or a loss")
        plain = self.kind == "name"
        at, word = self.name()
        return _WORDS.get(word, word) if plain and not self.sees("(") else self.loss(1.0, word, at)

    def sees(self, signs: str) -> bool:
        return self.kind == "sign" and self.found in signs

    def took(self, sign: str) -> bool:
        if self.kind != "sign" or self.found != sign:
            return False
        self.advance()
        return True

    def need(self, sign: str, words: str) -> None:
        if not self.took(sign):
            raise self.expected(words)

    def advance(self) -> None:
        match: Any = _TOKENS.match(self.text, self.next)
        self.kind, self.next = match.lastgroup, match.end()
        self.found, self.at = match[self.kind], match.start(self.kind)

    def expected(self, words: str) -> RecipeError:
        found = f"{self.found!r}" if self.found else "the end"
        return mistake(self.text, self.at, f"The loss can't be read: expected {words}, found {found}.")
