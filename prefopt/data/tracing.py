"""Watch what a chat template does with a message's text, so that other texts can be written without running it.

A template is run once for each sequence of roles, on stand-ins for the texts. A stand-in lets itself be written, joined
and stripped, and notes every question that it is asked ("do you hold `</think>`?") with its answer; anything else makes
the template opaque. What comes out is literals and slots, and holds for all texts that answer alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

Ops = tuple[tuple[str, str | None], ...]

CORE = "Zq8slot"
# Not to be mistaken for a text, and not to survive being escaped, formatted, or written in another case.
_MARK = CORE + '{number}"\\\n<&{{%é' + "qZ"
_FIND = re.compile(re.escape(_MARK).replace(re.escape("{number}"), r"(\d+)x").replace(re.escape("{{"), re.escape("{")))

STRIPS = ("strip", "lstrip", "rstrip")
QUESTIONS: dict[str, Callable[..., bool]] = {
    "__contains__": str.__contains__,
    "__eq__": lambda text, other: text == other,
    "__ne__": lambda text, other: text != other,
    "startswith": str.startswith,
    "endswith": str.endswith,
    "__bool__": lambda text: bool(text),
}


class OpaqueError(ValueError):
    """The template does something with a text that can't be followed."""


@dataclass(frozen=True)
class Guard:
    """A question that the template asks about the text of a turn, and the answer for which a layout holds."""

    turn: int
    ops: Ops
    question: str
    arguments: tuple[Any, ...]
    answer: bool

    def holds(self, text: str) -> bool:
        return QUESTIONS[self.question](applied(text, self.ops), *self.arguments) == self.answer


class Trace:
    """One run of a template on stand-ins."""

    def __init__(self) -> None:
        self.guards: list[Guard] = []
        self.opaque = False
        self._slots: list[tuple[int, Ops]] = []

    def text(self, turn: int, ops: Ops = ()) -> str:
        """Return a stand-in for the text of a turn."""
        self._slots.append((turn, ops))
        own = str.__new__(_Text, _MARK.format(number=f"{len(self._slots) - 1}x"))
        own.trace, own.turn, own.ops = self, turn, ops
        return own

    def parse(self, written: str) -> tuple[tuple[str, ...], tuple[tuple[int, Ops], ...]] | None:
        """Cut what the template wrote into literals and the slots between them; None where that can't be told."""
        pieces = _FIND.split(written)
        literals, numbers = tuple(pieces[::2]), pieces[1::2]
        if self.opaque or any(CORE.lower() in literal.lower() for literal in literals):
            return None
        return literals, tuple(self._slots[int(number)] for number in numbers)


def applied(text: str, ops: Ops) -> str:
    """Strip a text as the template does."""
    for name, characters in ops:
        text = getattr(text, name)(characters)
    return text


def _refuse(self: Any, *_: Any, **__: Any) -> NoReturn:
    self.trace.opaque = True
    raise OpaqueError("the template looks into a text")


class _Joined(str):
    """Text that a stand-in is a part of; it can be joined and written, and nothing else."""

    trace: Trace

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return self._join(str.__add__(self, other))

    def __radd__(self, other: str) -> str:
        return self._join("".join((other, self)))

    def _join(self, text: str) -> str:
        joined = str.__new__(_Joined, text)
        joined.trace = self.trace
        return joined


class _Text(_Joined):
    """A stand-in."""

    turn: int
    ops: Ops

    def __iter__(self) -> Any:
        return _Letters(self)  # "is iterable" asks for no letter


class _Letters:
    def __init__(self, text: _Joined) -> None:
        self.trace = text.trace

    __next__ = _refuse


def _strip(name: str) -> Callable[..., str]:
    def strip(self: _Text, characters: str | None = None) -> str:
        return self.trace.text(self.turn, (*self.ops, (name, characters)))

    return strip


def _asked(name: str) -> Callable[..., bool]:
    def ask(self: _Text, *arguments: Any) -> bool:
        plain = str.__getitem__(self, slice(None))
        answer = QUESTIONS[name](plain, *arguments)
        self.trace.guards.append(Guard(self.turn, self.ops, name, arguments, answer))
        return answer

    return ask


# What of a str may go on as it is; everything else is refused or answered.
_PLAIN = {
    *("__add__", "__class__", "__delattr__", "__dir__", "__doc__", "__getattribute__", "__getstate__", "__init__"),
    *("__init_subclass__", "__iter__", "__new__", "__setattr__", "__str__", "__subclasshook__", "__sizeof__"),
}
for _name in set(dir(str)) - _PLAIN:
    setattr(_Joined, _name, _refuse)
for _name in STRIPS:
    setattr(_Text, _name, _strip(_name))
for _name in QUESTIONS:
    setattr(_Text, _name, _asked(_name))
_Joined.__iter__ = _refuse  # type: ignore[method-assign]


@dataclass(frozen=True)
class Layout:
    """How the template writes a prompt with these roles and an answer to it, for texts that keep the guards."""

    literals: tuple[str, ...]
    """One more than slots: of the prompt as it is asked."""
    slots: tuple[tuple[int, Ops], ...]
    before: str
    """What stands between prompt and answer's text."""
    ops: Ops
    """How the answer's text is stripped."""
    guards: tuple[Guard, ...]
    answer_guards: tuple[Guard, ...]

    def prompt(self, texts: Sequence[str]) -> str | None:
        """Write a prompt; None if one of its texts needs the template itself."""
        for guard in self.guards:
            if not guard.holds(texts[guard.turn]):
                return None
        pieces = [self.literals[0]]
        for (turn, ops), literal in zip(self.slots, self.literals[1:], strict=True):
            pieces.append(applied(texts[turn], ops) if ops else texts[turn])
            pieces.append(literal)
        return "".join(pieces)

    def answer(self, text: str) -> str | None:
        """Write an answer up to the end of its text; None if it needs the template itself."""
        for guard in self.answer_guards:
            if not guard.holds(text):
                return None
        return self.before + applied(text, self.ops)


def trace_layout(write: Callable[[list[dict[str, Any]], bool], str], roles: Sequence[str], tail: str) -> Layout | None:
    """Run the template on stand-ins for a prompt of these roles and an answer; None where it can't be followed.

    Args:
        write: (messages, is an answer asked for?) -> text: the template, which must be given the very strings.
        roles: of the prompt's messages.
        tail: what must stand behind an answer.

    Raises:
        Exception: whatever the template raises.
    """
    asked, whole = Trace(), Trace()
    turns = [[{"role": role, "content": trace.text(i)} for i, role in enumerate(roles)] for trace in (asked, whole)]
    answer = {"role": "assistant", "content": whole.text(len(roles))}
    try:
        open_ = asked.parse(write(turns[0], True))
        closed = whole.parse(write([*turns[1], answer], False))
    except OpaqueError:
        return None
    if open_ is None or closed is None:
        return None
    (literals, slots), (all_literals, all_slots) = open_, closed
    count = len(slots)
    if all_slots[:-1] != slots or all_slots[-1][0] != len(roles) or any(turn == len(roles) for turn, _ in slots):
        return None
    if all_literals[:count] != literals[:-1] or all_literals[-1] != tail:
        return None
    if not all_literals[count].startswith(literals[-1]):
        return None
    guards = dict.fromkeys([*asked.guards, *whole.guards])
    return Layout(
        literals=literals,
        slots=slots,
        before=all_literals[count][len(literals[-1]) :],
        ops=all_slots[-1][1],
        guards=tuple(guard for guard in guards if guard.turn < len(roles)),
        answer_guards=tuple(guard for guard in guards if guard.turn == len(roles)),
    )
