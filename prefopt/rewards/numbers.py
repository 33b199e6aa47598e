"""A verifier of numbers: the last one of the answer against the expected one, exactly or within a tolerance."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from prefopt.rewards.attempts import Attempt
from prefopt.rewards.columns import expected
from prefopt.rewards.kinds import NumericSection
from prefopt.rewards.scorer import Score, ScoreFailure

_LONGEST = 100
"""Digits of a number, and its largest power of ten: what is longer is text, and computing with it could take hours."""
_RUN = re.compile(r"(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?![\w.]))?", re.ASCII)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+", re.ASCII)
_SIGN = re.compile(r"(?:^|[^\w)\]}.%°])(-)?[$€£]?(-)?$")
_TIMES_TEN = re.compile(r"(?<=\d)\s?(?:[×·*]|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{?([-+]?\d+)\}?", re.ASCII)
_SLASH = re.compile(r"[ \t]{0,2}/[ \t]{0,2}")
_PERCENT = re.compile(r"[ \t]?\\?%")


@dataclass(frozen=True)
class _Token:
    """A number without slash, and where it stands."""

    value: Fraction
    text: str
    negative: bool
    start: int
    """Of its digits: a sign stands before."""
    stop: int


@dataclass(frozen=True)
class Number:
    """A number as it is written in a text."""

    value: Fraction
    percent: bool
    """A percent sign stands behind it."""

    @property
    def readings(self) -> tuple[Fraction, ...]:
        """What it may mean: 50 % is 50, and it is 0.5."""
        return (self.value, self.value / 100) if self.percent else (self.value,)


def numbers_in(text: str) -> list[Number]:
    """Return the numbers of a text in order.

    Read are signs, decimals, powers of ten (1e-3, 1 × 10^-3), thousands separated by commas in threes (1,234,567),
    fractions (3/4), mixed numbers (1 3/4) and percent signs; a currency sign before a number is passed over. Digits
    inside a word (x2, v1.5), exponents (m^2), times of day and ratios (9:30) are none, and neither are numbers of more
    than 100 digits.
    """
    text = text.replace("−", "-").replace("∕", "/").replace("⁄", "/")
    text = _TIMES_TEN.sub(r"e\1", text)
    tokens = list(_tokens(text))
    numbers: list[Number] = []
    at = 0
    while at < len(tokens):
        value, used = _together(text, tokens, at)
        at += used
        numbers.append(Number(value, _PERCENT.match(text, tokens[at - 1].stop) is not None))
    return numbers


class Numeric:
    """1 where the last number of the answer is the last number of one of the expected texts, else 0."""

    name = "numeric"
    low: float | None = 0.0
    high: float | None = 1.0

    def __init__(self, section: NumericSection) -> None:
        self._section = section
        self._tolerance = Fraction(section.tolerance).limit_denominator(10**15)
        self._relative = Fraction(section.relative).limit_denominator(10**15)

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        return [self._one(attempt) for attempt in attempts]

    def _one(self, attempt: Attempt) -> Score:
        section = self._section
        right = expected(attempt, section.column, self.name)
        if isinstance(right, ScoreFailure):
            return right
        wanted = [numbers_in(text)[-1:] for text in right]
        if not all(wanted):
            return ScoreFailure(f"numeric: the row's {section.column!r} has no number in it: {right[0][:80]!r}.")
        text = attempt.answer
        if section.after is not None:
            text = text.rpartition(section.after)[2] if section.after in text else ""
        said = numbers_in(text)[-1:]
        return float(any(self._same(said[0], one) for (one,) in wanted) if said else False)

    def _same(self, said: Number, wanted: Number) -> bool:
        """Whether the two are near; a percent sign of one alone is read either way, one of both is a unit."""
        alike = said.percent and wanted.percent
        readings = [(number.value,) if alike else number.readings for number in (said, wanted)]
        return any(
            abs(a - b) <= max(self._tolerance, self._relative * abs(b)) for a in readings[0] for b in readings[1]
        )


def _tokens(text: str) -> Iterator[_Token]:
    """Yield every run of digits that is a number; commas that part no thousands part numbers."""
    for run in _RUN.finditer(text):
        start = run.start()
        if start and (text[start - 1].isalnum() or text[start - 1] == "_"):  # inside a word
            continue
        if _joined(text, start, run.end()):
            continue
        whole = re.split("[eE.]", run[0])[0]
        written = whole.rstrip(",")  # a comma behind a number belongs to the sentence
        signs = _SIGN.search(text[max(0, start - 4) : start])
        negative = signs is not None and (signs[1] or signs[2]) is not None
        if _THOUSANDS.fullmatch(written) or "," not in written:
            kept = run[0] if whole == written else written
            if (value := _value(kept.replace(",", ""))) is not None:
                yield _Token(value, kept, negative, start, start + len(kept))
            continue
        for part in re.finditer(r"[^,]+", run[0]):
            if (value := _value(part[0])) is not None:
                first = start + part.start()
                yield _Token(value, part[0], negative and first == start, first, first + len(part[0]))


def _joined(text: str, start: int, stop: int) -> bool:
    """Whether a run of digits is a part of something else: of 10^8, 9:30 or 3:4."""
    before, after = text[max(0, start - 2) : start].rstrip("{"), text[stop : stop + 2]
    return bool(
        before[-1:] == "^"
        or after[:1] == "^"
        or (before[-1:] == ":" and before[:1].isdigit())
        or (after[:1] == ":" and after[1:].isdigit())
    )


def _value(text: str) -> Fraction | None:
    """Return what digits are worth; None of a number that is too long."""
    mantissa, _, power = text.lower().partition("e")
    if len(mantissa) > _LONGEST or len(power) > 4 or abs(int(power or 0)) > _LONGEST:
        return None
    return Fraction(mantissa) * Fraction(10) ** int(power or 0)


def _together(text: str, tokens: Sequence[_Token], at: int) -> tuple[Fraction, int]:
    """Return the number that begins with this token, and of how many tokens it is made."""
    first = tokens[at]
    sign = -1 if first.negative else 1
    if _is_fraction(text, tokens, at):
        return sign * first.value / tokens[at + 1].value, 2
    if first.text.isdigit() and _is_fraction(text, tokens, at + 1):
        top, bottom = tokens[at + 1 : at + 3]
        gap = text[first.stop : top.start]
        if gap.strip(" ") == "" and 0 < len(gap) <= 2 and top.value < bottom.value:
            return sign * (first.value + top.value / bottom.value), 3
    return sign * first.value, 1


def _is_fraction(text: str, tokens: Sequence[_Token], at: int) -> bool:
    """Whether a token and the next are numerator and denominator, and no date or path of more slashes."""
    return (
        _slash(text, tokens, at)
        and tokens[at + 1].value != 0
        and not _slash(text, tokens, at + 1)
        and not _slash(text, tokens, at - 1)
    )


def _slash(text: str, tokens: Sequence[_Token], at: int) -> bool:
    """Whether nothing but a slash stands between a token and the next."""
    return 0 <= at < len(tokens) - 1 and bool(_SLASH.fullmatch(text, tokens[at].stop, tokens[at + 1].start))
