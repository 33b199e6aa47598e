"""Preferences that are never all in memory: rows are read, tokenized and handed on in windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.data.columns import Example, Form
from prefopt.data.config import DataOptions
from prefopt.data.dataset import PreferenceData
from prefopt.data.encode import Outcome, RowEncoder, Task, encoded, refused
from prefopt.data.formats import SAMPLE, Format, recognise
from prefopt.data.joining import tasks_of
from prefopt.data.lanes import Lane, LanePlace, Places, StreamRow, from_json, interleaved, to_json
from prefopt.data.load import parse_options
from prefopt.data.loading import Loading
from prefopt.data.mixing import Weighted
from prefopt.data.rejected import RejectedRows
from prefopt.data.remembered import StreamRules
from prefopt.data.row_error import LeftOut
from prefopt.data.sources import NamedRows, open_sources
from prefopt.data.summary import DataSummary
from prefopt.errors import DataError
from prefopt.records import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 256
"""Rows that are tokenized in one call."""
JUDGED_FROM = 1000
"""Rows from which on `max_rejected` is judged; before, at the end of the first pass."""

_COUNTS = ("read", "used", "fallbacks", "altered")

State = dict[str, Any]


@dataclass(frozen=True)
class Window:
    """Examples that are shuffled together."""

    state: Callable[[], State]
    """Makes what `PreferenceStream.windows` reads this window again from; JSON-able."""
    data: PreferenceData
    """In the form that the loss asks for; a multiple of a step's examples."""


class PreferenceStream:
    """Sources that are read round and round, a window at a time. Reading nothing yet, it knows the form of the data.

    Attributes:
        form: "paired", "unpaired" or "listwise": of the sources, or what `for_loss` made of it.
        window: examples that are shuffled together, at least.
        fingerprint: sha256 over the names and sizes of the sources, the options and the tokens of their first rows.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str | Path],
        tokenizer: PreTrainedTokenizerBase,
        *,
        weights: Sequence[Weighted] = (),
        window: int = 8192,
        rejected_to: Path | None = None,
        **options: Any,
    ) -> None:
        """Recognise every source by its first rows.

        Args:
            source: a file, a glob, the name of a Hugging Face dataset, or a list of these.
            tokenizer: the policy's.
            weights: sources that are interleaved by weight, in place of `source`, which are read one after the other.
            window: examples that are held, and shuffled together.
            rejected_to: file (or directory) that rejected rows are written to, one JSON object a line.
            options: the fields of `DataOptions`. The stream is the same for any number of `workers`; unset, it is 0.

        Raises:
            DataError: nothing to read, an unknown format, or sources of different forms.
        """
        if window < 1:
            raise DataError(f"A window of {window} examples can't be shuffled; data.window must be at least 1.")
        self.options: DataOptions = parse_options(options)
        _check_rules(self.options)
        self.window = window
        self.weights = tuple(weights)
        self._encode = RowEncoder(tokenizer, self.options, meta=False)
        self._rejected_to = rejected_to
        self._asked: _Asked | None = None
        self._cuts = [0, 0]  # prompts and completions
        named: list[Any] = [w.names for w in weights] or [source]
        self._books = Loading([name for w in weights for name in w.names] or source, self.options, RejectedRows())
        self._lanes: list[Lane] = []
        head: list[Example] = []
        for number, names in enumerate(named):
            sources = tuple(open_sources(names, self.options))
            formats = tuple(self._recognise(one, head) for one in sources)
            self._lanes.append(Lane(sources, formats, weights[number].weight if weights else 1.0))
        self._rules = StreamRules(self.options, len(self._lanes))
        self.form: Form = self._books.form()
        self._head = self._data(head)
        self.fingerprint = self._identify()

    @property
    def summary(self) -> DataSummary:
        """What was read, used and rejected so far, each row counted the first time that it is read."""
        notes = (f"a stream, read in windows of {self.window} examples",)
        prompts, completions = self._cuts
        return replace(
            DataSummary(**self._books.counts()), notes=notes, cut_prompts=prompts, cut_completions=completions
        )

    def _data(self, examples: Iterable[Example]) -> PreferenceData:
        """Return examples as data of the sources' form, demonstrations known as such."""
        return PreferenceData(self.form, examples, summary=DataSummary(form=self._books.counts()["form"]))

    def for_loss(
        self, form: str, *, needs_mismatched: bool = False, scores: Scores = "unused", needs_preference: bool = False
    ) -> PreferenceStream:
        """Return the stream in the form a loss asks for; what `PreferenceData.for_loss` can refuse, each window may.

        Raises:
            DataError: the first rows show already that the sources can't serve the loss.
        """
        if form != "demonstration" and self.form != "listwise" and len(self._head):
            self._head.for_loss(form, scores=scores)
        made = copy(self)
        made._asked = _Asked(form, needs_mismatched, scores, needs_preference)
        return made

    def windows(self, examples_per_step: int, state: Mapping[str, Any] | None = None) -> Generator[Window, None, None]:
        """Yield windows without end, each a multiple of `examples_per_step` long, so that every step is full.

        A window ends when it holds `window` examples, or every row of the sources.

        Args:
            examples_per_step: examples of a step.
            state: of the window to begin with; None for the first of all.

        Raises:
            DataError: a source can't be read, too many rows are rejected, or a window can't serve the loss.
        """
        books = self._books
        books.rejected = RejectedRows(self._rejected_to, keep=state is not None)
        with books.rejected:
            here: Places = tuple(LanePlace() for _ in self._lanes)
            for name in _COUNTS:
                setattr(books, name, 0)
            self._cuts[:] = 0, 0
            if state is not None:
                here = from_json(state["lanes"])
                self._restore(state["books"])
            self._rules = StreamRules(self.options, len(self._lanes), state and state["rules"])
            books.rules = self._rules.books
            with closing(self._outcomes(here)) as outcomes:
                while True:
                    began = partial(_state, here, self._kept(), self._rules.kept())
                    data, here = self._gather(outcomes, here, examples_per_step)
                    yield Window(began, data)

    def _gather(
        self, outcomes: Iterator[tuple[StreamRow, Outcome]], start: Places, per_step: int
    ) -> tuple[PreferenceData, Places]:
        """Read one window; returns it and where every lane stands behind it."""
        count = 0
        here = start

        def examples() -> Iterator[Example]:
            nonlocal count, here
            for row, outcome in outcomes:
                here = row.after
                self._enter(row, outcome)
                made = 0 if outcome.ids is None else _made_of(outcome, self.form, self._asked)
                if made:
                    count += made
                    yield outcome.example(row.raw.where)
                round_ = all(now.came_round(then) for now, then in zip(here, start, strict=True))
                if round_ and not count:
                    self._books.check_rejected()
                    raise DataError("No row of the sources makes an example that this loss can use.")
                if made and count % per_step == 0 and (count >= self.window or round_):
                    return

        asked, data = self._asked, self._data(examples())
        try:
            if asked is not None:
                data = data.for_loss(
                    asked.form,
                    needs_mismatched=asked.mismatched,
                    scores=asked.scores,
                    needs_preference=asked.preference,
                )
        except DataError as error:
            raise DataError(f"In a window of {len(data)} examples of the stream: {error}") from error
        assert len(data) == count
        return data, here

    def _enter(self, row: StreamRow, outcome: Outcome) -> None:
        """Keep the books: each row counts once, the first time that it is read."""
        books = self._books
        if row.new:
            books.read += 1 + len(row.raw.joined)
            if outcome.comparison is None:
                books.reject_unread(row.raw, outcome.error())
            elif (ids := outcome.ids) is None:
                books.reject(row.raw, outcome.error())
            else:
                books.use(row.raw)
                books.fallbacks += ids.fallback
                books.altered += ids.altered
                self._cuts[0] += ids.prompt_cut
                self._cuts[1] += sum(ids.cut)
        judged = outcome.ids is None and books.read >= JUDGED_FROM
        ended = row.new and all(place.passes for place in row.after)
        if ended or (row.new and judged):
            books.check_rejected()

    def _outcomes(self, start: Places) -> Generator[tuple[StreamRow, Outcome], None, None]:
        """Yield rows from `start` on with what became of them."""

        def batches() -> Iterator[list[tuple[StreamRow, Task]]]:
            with closing(interleaved(self._lanes, start)) as rows:
                while batch := list(islice(rows, BATCH)):
                    yield [(row, row.task) for row in batch]

        workers = self.options.workers or 0
        after = "go on from the last checkpoint by --resume"
        with closing(encoded(self._encode, batches(), workers, after_death=after)) as rows:
            for row, outcome in rows:
                yield row, self._ruled(row, outcome)

    def _ruled(self, row: StreamRow, outcome: Outcome) -> Outcome:
        """Return what the rules make of a row."""
        try:
            if outcome.comparison is not None:
                self._rules.check(row, outcome.comparison)
        except LeftOut as left:
            return refused(left, outcome.comparison)
        return outcome

    def _kept(self) -> State:
        books = self._books
        counts = {name: getattr(books, name) for name in _COUNTS}
        return {**counts, "cuts": list(self._cuts), **books.rejected.state_dict()}

    def _restore(self, kept: Mapping[str, Any]) -> None:
        for name in _COUNTS:
            setattr(self._books, name, kept[name])
        self._cuts[:] = kept["cuts"]
        self._books.rejected.load_state_dict(kept)

    def _recognise(self, source: NamedRows, head: list[Example]) -> Format:
        """Find out the format of a source by its first rows, and keep those as examples in `head`."""
        with closing(source.read(None)) as rows:
            found = list(islice(rows, SAMPLE))
            sample = [raw.row for raw in found if raw.row is not None]
            while not sample and (raw := next(rows, None)) is not None:
                found, sample = [raw], [raw.row] if raw.row is not None else []
        if not sample:
            raise DataError(f"{source.name} has no row that can be read.")
        format_ = recognise(sample, self.options, source=source.name)
        self._books._agree(source.name, format_)
        tasks = [*tasks_of(found, format_)]
        outcomes = self._encode([task for _, task in tasks]).outcomes
        for (raw, _), outcome in zip(tasks, outcomes, strict=True):
            if outcome.ids is not None and not (self.options.ties == "drop" and _is_tie(outcome)):
                head.append(outcome.example(raw.where))
        return format_

    def _identify(self) -> str:
        names = [[(source.name, _size(source.name)) for source in lane.sources] for lane in self._lanes]
        weights = [lane.weight for lane in self._lanes]
        said = json.dumps(
            [names, weights, self.window, self.options.model_dump(mode="json", exclude={"workers"})], sort_keys=True
        )
        return hashlib.sha256(f"prefopt-stream-2:{said}:{self._head.fingerprint}".encode()).hexdigest()


def _size(name: str) -> int:
    """Bytes of a file: a place in one of another size is no place."""
    return Path(name).stat().st_size if Path(name).is_file() else 0


@dataclass(frozen=True)
class _Asked:
    """What `PreferenceData.for_loss` is asked for, window by window."""

    form: str
    mismatched: bool = False
    scores: Scores = "unused"
    preference: bool = False


def _check_rules(options: DataOptions) -> None:
    """Refuse the rule that would have to know rows of a stream before they are read."""
    if options.contradictions == "drop":
        raise DataError(
            "data.contradictions = drop leaves out a row for what a later one says, which a stream doesn't know yet: "
            "write keep_first, apply the rule once with `prefopt data convert`, or set data.streaming=false."
        )


def _state(here: Places, books: State, rules: Callable[[], State]) -> State:
    return {"lanes": to_json(here), "books": books, "rules": rules()}


def _is_tie(outcome: Outcome) -> bool:
    return outcome.comparison is not None and outcome.comparison.tie is not None


def _made_of(row: Outcome, form: Form, asked: _Asked | None) -> int:
    """Return how many examples `PreferenceData.for_loss` makes of a row."""
    wanted = asked.form if asked else form
    if wanted == "demonstration":
        return int(row.label is not False)
    made = 1
    if form == "listwise" and (wanted != "listwise" or (asked and asked.preference)):
        made = int(np.float32(row.scores[0]) > np.float32(row.scores[-1]))
    return 2 * made if wanted == "unpaired" and form != "unpaired" else made
