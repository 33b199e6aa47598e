"""Rows of a stream -> examples, or why not: a function of the row alone, for any process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prefopt.data.config import DataOptions
from prefopt.data.dataset import Example
from prefopt.data.formats import Format
from prefopt.data.load import check_tokens, make_example
from prefopt.data.read import RawRow
from prefopt.data.rows import RowError, normalise
from prefopt.data.tokenize import Encoder, TooLongError

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

    def error(self) -> RowError:
        """Return why there is no example, as the books take it."""
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
            self._encoder = Encoder(self._tokenizer)
        outcomes: list[Outcome] = []
        usable = []
        for raw, format_ in rows:
            try:
                if raw.row is None:
                    raise RowError(*raw.problem.partition(": ")[::2])
                usable.append((len(outcomes), raw, format_, normalise(raw.row, format_, as_chat=self._options.as_chat)))
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
    return Outcome(reason=error.reason, detail=detail, needed=error.needed if isinstance(error, TooLongError) else 0)
