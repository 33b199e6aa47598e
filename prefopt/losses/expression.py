"""The formula of a mixture: `0.8*dpo(beta=0.1) + 0.2*sft`.

    mixture = term ("+" term)*
    term    = [number "*"] loss
    loss    = name ["(" [setting ("," setting)*] ")"]
    setting = key "=" (number | true | false | word)

A name is a loss of the package, or `file.py:Class` for one of the user's own. Nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefopt.errors import RecipeError

_TOKENS = re.compile(
    r"\s*(?:(?P<file>[^\s*+(),=]+\.py:\w+)|(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<sign>[*+(),=])|(?P<end>$)|(?P<other>.))"
)
_WORDS = {"true": True, "false": False, "True": True, "False": False}


@dataclass(frozen=True)
class Setting:
    """A hyper-parameter, and where its name stands."""

    value: float | bool | str
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
        at = self.at
        if self.kind not in ("name", "file"):
            raise self.expected("the name of a loss")
        name = self.found
        self.advance()
        return Term(factor, name, self.settings() if self.took("(") else {}, at)

    def settings(self) -> dict[str, Setting]:
        found: dict[str, Setting] = {}
        while not self.took(")"):
            if found:
                self.need(",", "',' or ')'")
            at, key = self.at, self.found
            if self.kind != "name":
                raise self.expected("a hyper-parameter as key=value, or ')'")
            if key in found:
                raise mistake(self.text, at, f"{key} is given twice: give it once.")
            self.advance()
            self.need("=", f"'=' and a value for {key}")
            found[key] = Setting(self.value(), at)
        return found

    def value(self) -> float | bool | str:
        readers: dict[str, Callable[[str], float | bool | str]] = {
            "number": float,
            "name": lambda word: _WORDS.get(word, word),
        }
        if self.kind not in readers:
            raise self.expected("a number, true, false or a word")
        value = readers[self.kind](self.found)
        self.advance()
        return value

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
