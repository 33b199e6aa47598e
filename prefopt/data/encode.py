"""Rows of a stream -> examples, or why not: a function of the row alone, for any process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prefopt.data.columns import Example
from prefopt.data.config import DataOptions
from prefopt.data.fit import TooLongError
from prefopt.data.formats import Format
from prefopt.data.load import check_tokens, make_example
from prefopt.data.read import RawRow
from prefopt.data.row_error import LeftOut, RowError
from prefopt.data.rows import normalise
from prefopt.data.rules import check_tie
from prefopt.data.tokenize import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Outcome:
    """What became of a row. Plain values: it travels between processes."""

    example: Example | None = None
    fallback: bool = False
    altered: bool = False
    reason: str = ""
    """Why there is no example; what is counted."""
    detail: str = ""
    """More of it, about this row."""
    needed: int = 0
    """Tokens of a row that was too long."""
    rule: str = ""
    """The recipe's key that leaves the row out; "" where it can't be used."""

    def error(self) -> RowError:
        """Return why there is no example, as the books take it."""
        if self.rule:
            return LeftOut(self.rule, self.reason, self.detail)
        return TooLongError(self.reason, self.needed) if self.needed else RowError(self.reason, self.detail)


class RowEncoder:
    """Tokenizes rows as `load_preferences` does; without the columns that only slice an evaluation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: DataOptions) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._encoder: Encoder | None = None

    def __call__(self, rows: Sequence[tuple[RawRow, Format]]) -> list[Outcome]:
        """Return the outcome of each row, in order."""
        if self._encoder is None:
            options = self._options
            self._encoder = Encoder(self._tokenizer, truncation=options.truncation, thinking=options.thinking)
        outcomes: list[Outcome] = []
        usable = []
        for raw, format_ in rows:
            try:
                if raw.row is None:
                    raise RowError(*raw.problem.partition(": ")[::2])
                read = normalise(raw.row, format_, as_chat=self._options.as_chat)
                check_tie(read, format_.form, self._options)
                usable.append((len(outcomes), raw, format_, read))
                outcomes.append(Outcome())
            except RowError as error:
                outcomes.append(_refused(error))
        encoded = self._encoder.encode([row for *_, row in usable], max_length=self._options.max_length)
        for (at, raw, format_, row), ids in zip(usable, encoded, strict=True):
            try:
                if isinstance(ids, RowError):
                    raise ids
                check_tokens(ids, row, format_)
            except RowError as error:
                outcomes[at] = _refused(error)
            else:
                example = make_example(ids, row, raw.where, {})
                outcomes[at] = replace(outcomes[at], example=example, fallback=ids.fallback, altered=ids.altered)
        return outcomes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}


def _refused(error: RowError) -> Outcome:
    detail = str(error).removeprefix(error.reason).removeprefix(": ")
    needed = error.needed if isinstance(error, TooLongError) else 0
    return Outcome(
        reason=error.reason, detail=detail, needed=needed, rule=error.rule if isinstance(error, LeftOut) else ""
    )
