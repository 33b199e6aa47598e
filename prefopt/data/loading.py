"""One pass over the sources: rows that can be read go on, all others are listed with the reason."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import Any

from prefopt.data.columns import Form
from prefopt.data.config import DataOptions
from prefopt.data.encode import Outcome, RowEncoder, Task, encoded, read_task
from prefopt.data.fit import TooLongError
from prefopt.data.formats import SAMPLE, Format, FormName, recognise
from prefopt.data.joining import tasks_of
from prefopt.data.read import RawRow
from prefopt.data.rejected import RejectedRows
from prefopt.data.row_error import LeftOut, RowError
from prefopt.data.rows import Dialogue, Document
from prefopt.data.rules import Rules, compare
from prefopt.data.sources import Identity, NamedRows, Source, open_sources
from prefopt.data.summary import Recognised
from prefopt.errors import DataError

BATCH = 1024
"""Rows that are rendered and tokenized in one call."""

UsableRow = tuple[RawRow, Format, Document | Dialogue]


class Loading:
    """One pass over the sources: hands out rows that can be read, and keeps the books."""

    def __init__(
        self,
        source: Source,
        options: DataOptions,
        rejected: RejectedRows,
        sources: Sequence[NamedRows] | None = None,
    ) -> None:
        """Resolve what `source` names, unless `sources` are resolved already."""
        self.options = options
        self.rejected = rejected
        self.recognised: list[Recognised] = []
        self.read = self.used = self.fallbacks = self.altered = 0
        self._sources = list(open_sources(source, options)) if sources is None else list(sources)
        self._form: FormName | None = None
        self.rules = Rules(options)
        """Counts ties and contradictions."""
        self._needed: list[int] = []  # lengths of the rows that were too long

    def rows(self) -> Iterator[UsableRow]:
        """Yield rows that are pairs, labelled completions, scored lists or demonstrations; the others are listed."""
        for raw, task in self._tasks():
            try:
                read = read_task(task, as_chat=self.options.as_chat)
            except RowError as error:
                self.reject_unread(raw, error)
                continue
            try:
                self.rules.check(compare(read, task.format.form))
            except RowError as error:
                self.reject(raw, error)
            else:
                yield raw, task.format, read

    def outcomes(self, encoder: RowEncoder) -> Iterator[tuple[RawRow, Outcome]]:
        """Yield rows that are used, tokenized; the others are listed."""
        workers = 0 if any(named.in_memory for named in self._sources) else self.options.workers
        with closing(encoded(encoder, self._batches(), workers, after_death="load again")) as rows:
            for raw, outcome in rows:
                if outcome.comparison is None:
                    self.reject_unread(raw, outcome.error())
                    continue
                try:
                    self.rules.check(outcome.comparison)
                    if outcome.ids is None:
                        raise outcome.error()
                except RowError as error:
                    self.reject(raw, error)
                else:
                    self.use(raw)
                    self.fallbacks += outcome.ids.fallback
                    self.altered += outcome.ids.altered
                    yield raw, outcome

    def identities(self) -> list[tuple[str, Identity]] | None:
        """Return the name of each source and what tells its content from any other; None if that is unknown of one."""
        found = [(named.name, named.identify()) for named in self._sources if named.identify is not None]
        return found if len(found) == len(self._sources) else None

    def changed(self, since: Mapping[str, Identity]) -> bool:
        """Whether a source was written to since it was identified, by what its file system says."""
        return any(named.state is not None and named.state() != since[named.name].state for named in self._sources)

    def state(self) -> dict[str, Any]:
        """Return what `check_rejected` goes by; JSON-able."""
        return {"read": self.read, "used": self.used, "needed": max(self._needed, default=0)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier load came to."""
        self.read, self.used = state["read"], state["used"]
        self._needed = [state["needed"]] if state["needed"] else []

    def reject(self, raw: RawRow, error: RowError) -> None:
        self.rejected.add(raw, error)
        if isinstance(error, TooLongError):
            self._needed.append(error.needed)

    def reject_unread(self, raw: RawRow, error: RowError) -> None:
        """List a row of which nobody knows what it compares."""
        self.rules.ties += isinstance(error, LeftOut)  # a preference for neither
        self.reject(raw, error)

    def use(self, raw: RawRow) -> None:
        """Count a row that became an example, and those that are joined with it."""
        self.used += 1 + len(raw.joined)

    def form(self) -> Form:
        """Return the form of the data; demonstrations are unpaired, each with the label True."""
        if self._form is None:
            raise DataError("No data was named: the list of sources is empty.")
        assert self._form != "scored"  # what is only to be scored is not recognised here
        return "unpaired" if self._form == "demonstration" else self._form

    def counts(self) -> dict[str, Any]:
        """Return the fields of a summary that are known without looking at tokens."""
        return {
            "rows_read": self.read,
            "rows_used": self.used,
            "rejected": dict(self.rejected.reasons.most_common()),
            "left_out": dict(self.rejected.left_out.most_common()),
            "ties": self.rules.ties,
            "contradictions": self.rules.contradictions,
            "form": self._form or "",
            "recognised": tuple(self.recognised),
        }

    def check_rejected(self) -> None:
        """Refuse to go on when more rows were rejected than the options allow, or all of them.

        Raises:
            DataError: with the reasons, how often and where first, and what would help.
        """
        count, share = self.rejected.total, self.rejected.total / max(self.read, 1)
        if self.used and share <= self.options.max_rejected:
            return
        if not count:
            left_out = "; ".join(f"{reason} ({times})" for reason, times in self.rejected.left_out.most_common())
            raise DataError(
                f"None of {self.read} rows is used: all are left out by the rules data.ties, data.duplicates and "
                f"data.contradictions: {left_out}. Change the rule, or give other rows."
            )
        reasons = "; ".join(
            f"{reason} ({times}, first at {self.rejected.first[reason]})"
            for reason, times in self.rejected.reasons.most_common(3)
        )
        help_ = ["mend the rows", "raise data.max_rejected"] if self.used else ["mend the rows"]
        if self._needed:
            help_.insert(0, f"raise data.max_length ({max(self._needed)} would hold the longest)")
        listed = f" All of them are listed in {self.rejected.path}." if self.rejected.path else ""
        raise DataError(
            f"{count} of {self.read} rows ({share:.1%}) can't be used, and data.max_rejected allows "
            f"{self.options.max_rejected:.1%}: {reasons}.{listed} To go on, {' or '.join(help_)}."
        )

    def _batches(self) -> Iterator[list[tuple[RawRow, Task]]]:
        with closing(self._tasks()) as tasks:
            while batch := list(islice(tasks, BATCH)):
                yield batch

    def _tasks(self) -> Generator[tuple[RawRow, Task], None, None]:
        """Yield every row, or rows that are joined, in order."""
        if self.options.contradictions == "drop":
            self.rules.drop_both(self._contradicted())
        for named in self._sources:
            with closing(named.read(None)) as rows:
                yield from self._of_source(named.name, rows)

    def _of_source(self, name: str, rows: Iterator[RawRow]) -> Iterator[tuple[RawRow, Task]]:
        head: list[RawRow] = []
        sample: list[Mapping[str, Any]] = []
        for raw in rows:
            head.append(raw)
            if raw.row is not None:
                sample.append(raw.row)
            if len(sample) == SAMPLE:
                break
        if not sample:
            raise DataError(f"{name} has no row that can be read.")
        format_ = recognise(sample, self.options, source=name)
        self._agree(name, format_)
        yield from tasks_of(self._counted(chain(head, rows)), format_)

    def _counted(self, rows: Iterable[RawRow]) -> Iterator[RawRow]:
        for raw in rows:
            self.read += 1
            yield raw

    def _contradicted(self) -> frozenset[int]:
        """Read everything once to find the comparisons that stand both ways round."""
        first = Loading((), self.options.model_copy(update={"contradictions": "keep"}), RejectedRows(), self._sources)
        for _ in first.rows():
            pass
        return first.rules.both_ways()

    def _agree(self, source: str, format_: Format) -> None:
        self.recognised.append(Recognised(source, format_.name, format_.why))
        if self._form is not None and self._form != format_.form:
            raise DataError(
                f"{source} holds {format_.form} preferences and {self.recognised[0].source} {self._form} ones; name "
                "sources of one form."
            )
        self._form = format_.form
