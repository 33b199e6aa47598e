"""Which rows a recipe leaves out though they could be used: ties, repeats and contradictions."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple, Protocol

from prefopt.data.config import DataOptions
from prefopt.data.formats import FormName
from prefopt.data.row_error import LeftOut
from prefopt.data.rows import Dialogue, Document, Message

WHITE_SPACE = b" \t\n\r\v\f"
ONE_WAY, OTHER_WAY = 1, 2
BOTH_WAYS = ONE_WAY | OTHER_WAY


class Comparison(NamedTuple):
    """What a row says is better than what."""

    key: int
    """A digest of what is compared, 8 bytes."""
    way: int
    """Which of two ways round."""
    tie: float | None
    """The score of both completions of a pair, where it is the same."""


class Ways(Protocol):
    """What is compared -> the ways in which it was met, as bits."""

    def get(self, key: int, default: int, /) -> int: ...

    def __setitem__(self, key: int, ways: int, /) -> None: ...


class Rules:
    """Judges rows one after the other, and remembers a digest of 8 bytes of each.

    Two texts are the same if they are so in Unicode's normal form C and without white space. What is compared is a
    prompt with its completions: of a pair which one is chosen, of a labelled completion the label, of a list its
    scores. The scores of pairs don't count.

    Attributes:
        ties: pairs that score both completions alike.
        contradictions: rows that say the opposite of an earlier one.
    """

    def __init__(self, options: DataOptions, met: Ways | None = None) -> None:
        """Remember in `met` what was met, in place of a dict."""
        self.ties = self.contradictions = 0
        self._options = options
        self._met: Ways = {} if met is None else met
        self._dropped: frozenset[int] = frozenset()

    def check(self, comparison: Comparison) -> None:
        """Count a row.

        Raises:
            LeftOut: a rule leaves it out.
        """
        key, way, tie = comparison
        self.ties += tie is not None
        check_tie(comparison, self._options)
        met = self._met.get(key, 0)
        opposed = bool(met & (BOTH_WAYS ^ way))
        self.contradictions += opposed
        if opposed and self._options.contradictions == "keep_first" and not met & way:
            raise LeftOut("data.contradictions", "contradiction", "an earlier row says the opposite")
        self._met[key] = met | way
        if key in self._dropped:
            raise LeftOut("data.contradictions", "contradiction", "another row says the opposite")
        if met & way and self._options.duplicates == "drop":
            raise LeftOut("data.duplicates", "duplicate", "an earlier row says the same")

    def both_ways(self) -> frozenset[int]:
        """Return what was met both ways round."""
        assert isinstance(self._met, dict)
        return frozenset(key for key, met in self._met.items() if met == BOTH_WAYS)

    def drop_both(self, comparisons: frozenset[int]) -> None:
        """Leave out every row with one of these comparisons."""
        self._dropped = comparisons


def check_tie(comparison: Comparison, options: DataOptions) -> None:
    """Raise LeftOut for a tie that the options leave out."""
    if comparison.tie is not None and options.ties == "drop":
        raise LeftOut("data.ties", "tie", f"both completions have the score {comparison.tie:g}")


def compare(row: Document | Dialogue, form: FormName) -> Comparison:
    """Return what a row compares, and which of two ways round it does."""
    prompt = [row.prompt] if isinstance(row, Document) else [*map(_turn, row.prompt), *map(str, row.tools)]
    answers = [own if isinstance(own, str) else _turn(own) for own in row.completions]
    same = [*map(_same, answers)]
    if form == "paired" and same[0] == same[1]:  # what differs is white space, so that it is what the pair is about
        same = [answer.encode("utf-8", "replace") for answer in answers]
    known = [_same(text) for text in prompt]
    if form == "paired":
        tie = row.scores[0] if row.scores and row.scores[0] == row.scores[1] else None
        return Comparison(_digest([*known, *sorted(same)]), ONE_WAY if same[0] <= same[1] else OTHER_WAY, tie)
    scores = [str(score).encode() for score in row.scores] if form == "listwise" else []
    return Comparison(_digest([*known, *same, *scores]), OTHER_WAY if row.label is False else ONE_WAY, None)


def _turn(message: Message) -> str:
    return f"{message['role']}: {message['content']}{message.get('tool_calls') or ''}"


def _same(text: str) -> bytes:
    """Return what is compared of a text."""
    if not text.isascii():
        text = "".join(unicodedata.normalize("NFC", text).split())
    return text.encode("utf-8", "replace").translate(None, WHITE_SPACE)


def _digest(texts: Iterable[bytes]) -> int:
    digest = blake2b(b"\x1f".join(texts), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
