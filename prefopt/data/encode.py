"""Rows as they were read -> what the books and the columns need of them: a function of the row, in any process."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from prefopt.data.columns import Example
from prefopt.data.config import DataOptions
from prefopt.data.fit import TooLongError
from prefopt.data.formats import Format
from prefopt.data.packed import unpack
from prefopt.data.row_error import LeftOut, RowError
from prefopt.data.rows import Dialogue, Document, check_list, normalise_joined, rewritten, scalars
from prefopt.data.rules import Comparison, compare
from prefopt.data.tokenize import Encoded, Encoder, Shortcuts
from prefopt.data.workers import in_order

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")


class Task(NamedTuple):
    """What of a row goes to the process that tokenizes it."""

    row: Mapping[str, Any] | None
    problem: str
    """Why there is no row."""
    format: Format
    joined: Mapping[str, Any] | None = None
    """Several rows that make one list, in the columns that the format reads; None for a row by itself."""


class Outcome(NamedTuple):
    """What became of a row. Plain values: it travels between processes."""

    ids: Encoded | None = None
    label: bool | None = None
    scores: tuple[float, ...] = ()
    meta: Mapping[str, Any] | None = None
    """The row's other scalar columns."""
    comparison: Comparison | None = None
    """What the row says is better than what; None where it can't be read."""
    reason: str = ""
    """Why there are no ids; what is counted."""
    detail: str = ""
    """More of it, about this row."""
    needed: int = 0
    """Tokens of a row that was too long."""
    rule: str = ""
    """The recipe's key that leaves the row out; "" where it can't be used."""

    def error(self) -> RowError:
        """Return why there are no ids, as the books take it."""
        if self.rule:
            return LeftOut(self.rule, self.reason, self.detail)
        return TooLongError(self.reason, self.needed) if self.needed else RowError(self.reason, self.detail)

    def example(self, source: str) -> Example:
        """Return a row that can be used as an example."""
        assert self.ids is not None
        return make_example(self.ids, self.label, self.scores, source)


class Batch(NamedTuple):
    """What became of the rows of a batch, and what was relied on."""

    outcomes: list[Outcome]
    before: Shortcuts
    after: Shortcuts


class RowEncoder:
    """Reads and tokenizes batches of rows; what it learns on the way makes it faster, and changes nothing."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: DataOptions, *, meta: bool = True) -> None:
        """`meta` keeps the columns that slice an evaluation."""
        self._tokenizer = tokenizer
        self._options = options
        self._meta = meta
        self._encoder: Encoder | None = None
        self._shortcuts = Shortcuts()

    def __call__(self, tasks: Sequence[Task]) -> Batch:
        """Return the outcome of each row, in order."""
        before = self._own.shortcuts
        outcomes: list[Outcome] = []
        usable: list[tuple[int, Task, Document | Dialogue, Comparison]] = []
        for task in tasks:
            try:
                read = read_task(task, as_chat=self._options.as_chat)
                comparison = compare(read, task.format.form)
            except RowError as error:
                outcomes.append(refused(error))
            else:
                usable.append((len(outcomes), task, read, comparison))
                outcomes.append(Outcome())
        encoded = self._own.encode([row for _, _, row, _ in usable], max_length=self._options.max_length)
        for (at, task, row, comparison), ids in zip(usable, encoded, strict=True):
            try:
                if isinstance(ids, RowError):
                    raise ids
                check_tokens(ids, row, task.format)
            except RowError as error:
                outcomes[at] = refused(error, comparison)
            else:
                meta = scalars(task.row or {}, task.format) if self._meta else None
                outcomes[at] = Outcome(ids, row.label, row.scores, meta, comparison)
        return Batch(outcomes, before, self._own.shortcuts)

    @property
    def shortcuts(self) -> Shortcuts:
        """What is relied on until it is found wrong."""
        return self._own.shortcuts

    def rely_on(self, shortcuts: Shortcuts) -> None:
        """Rely on no more than `shortcuts`."""
        self._own.rely_on(shortcuts)

    @property
    def _own(self) -> Encoder:
        if self._encoder is None:
            options = self._options
            self._encoder = Encoder(self._tokenizer, truncation=options.truncation, thinking=options.thinking)
            self._encoder.rely_on(self._shortcuts)
        return self._encoder

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None, "_shortcuts": self.shortcuts}


def encoded(
    encoder: RowEncoder, batches: Iterable[Sequence[tuple[Item, Task]]], workers: int | None, *, after_death: str
) -> Generator[tuple[Item, Outcome], None, None]:
    """Yield each item with the outcome of its task, in order: the same for any number of workers.

    Args:
        encoder: what tokenizes; may be copied to other processes.
        batches: items, each with its task.
        workers: as `in_order` takes it, and `after_death`.

    Raises:
        RunError: a worker died.
    """
    taken: deque[Sequence[tuple[Item, Task]]] = deque()

    def tasks() -> Iterator[list[Task]]:
        for batch in batches:
            taken.append(batch)
            yield [task for _, task in batch]

    shortcuts = encoder.shortcuts
    with closing(in_order(encoder, tasks(), workers, after_death=after_death)) as results:
        for done in results:
            batch = taken.popleft()
            if done.before != shortcuts:  # another worker has found one of them wrong meanwhile
                encoder.rely_on(shortcuts)
                done = encoder([task for _, task in batch])
            shortcuts = done.after
            for (item, _), outcome in zip(batch, done.outcomes, strict=True):
                yield item, outcome


def read_task(task: Task, *, as_chat: bool) -> Document | Dialogue:
    """Read a row by its format.

    Raises:
        RowError: it is no row, or one that can't be used.
    """
    if task.row is None:
        raise RowError(*task.problem.partition(": ")[::2])
    own = rewritten(task.row, task.format) if task.joined is None else task.joined
    return normalise_joined(own, task.row, task.format, as_chat=as_chat)


def check_tokens(ids: Encoded, row: Document | Dialogue, format_: Format) -> None:
    """Refuse what differed as text and is the same in tokens."""
    if format_.form == "paired" and ids.completions[0] == ids.completions[1]:
        raise RowError("chosen = rejected", "token by token")
    if format_.form == "listwise":
        check_list(ids.completions, row.scores)


def make_example(ids: Encoded, label: bool | None, scores: tuple[float, ...], source: str) -> Example:
    """Return a tokenized row as an example, without its other columns."""
    return Example(
        unpack(ids.prompt),
        tuple(map(unpack, ids.completions)),
        label,
        source,
        scores=scores,
        prompt_cut=ids.prompt_cut,
        cut=ids.cut,
    )


def refused(error: RowError, comparison: Comparison | None = None) -> Outcome:
    """Return the outcome of a row that isn't used."""
    return Outcome(
        comparison=comparison,
        reason=error.reason,
        detail=str(error).removeprefix(error.reason).removeprefix(": "),
        needed=error.needed if isinstance(error, TooLongError) else 0,
        rule=error.rule if isinstance(error, LeftOut) else "",
    )
