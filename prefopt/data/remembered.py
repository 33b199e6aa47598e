"""What a stream remembers of its rows, for the rules that compare each with those before it."""

from __future__ import annotations

import base64
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prefopt.data.config import DataOptions
from prefopt.data.lanes import StreamRow
from prefopt.data.row_error import LeftOut
from prefopt.data.rules import ONE_WAY, OTHER_WAY, Comparison, Rules, check_tie

State = dict[str, Any]


class Met:
    """Which comparisons were met, and which ways round: 14 to 20 bytes for each way, in the order in which they came.

    A dict would take 100. Of a comparison's digest 63 bits are kept.
    """

    def __init__(self, ways: Iterable[int] = ()) -> None:
        """Begin with ways that `log` held."""
        self.log = array("Q")
        """Each way that was met, once; it only grows, so that its beginning is what was met earlier."""
        self._slots = array("I", bytes(4 * 64))  # places in the log, counted from 1, at digests modulo the slots
        for way in ways:
            self._add(way)

    def get(self, key: int, default: int = 0) -> int:
        """Return the ways in which a comparison was met."""
        found = sum(way for way in (ONE_WAY, OTHER_WAY) if self._slots[self._slot(_digest(key, way))])
        return found or default

    def __setitem__(self, key: int, ways: int) -> None:
        for way in (ONE_WAY, OTHER_WAY):
            if ways & way:
                self._add(_digest(key, way))

    def _add(self, digest: int) -> None:
        slot = self._slot(digest)
        if self._slots[slot]:
            return
        self.log.append(digest)
        self._slots[slot] = len(self.log)
        if 3 * len(self.log) > 2 * len(self._slots):
            self._slots = array("I", bytes(8 * len(self._slots)))
            for place, known in enumerate(self.log, start=1):
                self._slots[self._slot(known)] = place

    def _slot(self, digest: int) -> int:
        """Return where a digest's place stands, or would."""
        slots, log = self._slots, self.log
        last = len(slots) - 1  # the slots are a power of two
        at = digest & last
        while (place := slots[at]) and log[place - 1] != digest:
            at = (at + 1) & last
        return at


class StreamRules:
    """Judges the rows of a stream: by those before it when a row is read for the first time, as then ever after."""

    def __init__(self, options: DataOptions, lanes: int, state: Mapping[str, Any] | None = None) -> None:
        """Begin with nothing, or with what `kept` returned."""
        self._options = options
        self._remembers = options.duplicates != "keep" or options.contradictions != "keep"
        self._met = Met(_numbers(state["met"]) if state else ())
        self._left_out = [_numbers(rows) for rows in state["left_out"]] if state else [array("Q") for _ in range(lanes)]
        self.books = Rules(options, self._met)
        """Counts ties and contradictions."""
        if state:
            self.books.ties, self.books.contradictions = state["ties"], state["contradictions"]

    def check(self, row: StreamRow, comparison: Comparison) -> None:
        """Judge a row.

        Raises:
            LeftOut: a rule leaves it out.
        """
        if not self._remembers:
            self.books.ties += row.new and comparison.tie is not None
            check_tie(comparison, self._options)
            return
        rows = self._left_out[row.lane]
        if row.new:
            try:
                self.books.check(comparison)
            except LeftOut as error:
                if error.rule != "data.ties":
                    rows.append(row.number)
                raise
        else:
            check_tie(comparison, self._options)
            at = bisect_left(rows, row.number)
            if at < len(rows) and rows[at] == row.number:
                raise LeftOut("data.duplicates", "duplicate", "an earlier row says the same, or the opposite")

    def kept(self) -> Callable[[], State]:
        """Return what gives the state as it is now, JSON-able; it is only made when asked for."""
        met, left_out = len(self._met.log), [len(rows) for rows in self._left_out]
        counts = {"ties": self.books.ties, "contradictions": self.books.contradictions}

        def state() -> State:
            rows = [_text(own[:count]) for own, count in zip(self._left_out, left_out, strict=True)]
            return {**counts, "met": _text(self._met.log[:met]), "left_out": rows}

        return state


def _digest(key: int, way: int) -> int:
    return key >> 1 | (way == OTHER_WAY) << 63


def _text(numbers: array[int]) -> str:
    return base64.b64encode(numbers.tobytes()).decode()


def _numbers(text: str) -> array[int]:
    return array("Q", base64.b64decode(text))
