"""Rows without end: sources that are read round and round, interleaved by weight, from any place."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from prefopt.data.encode import Task
from prefopt.data.formats import Format
from prefopt.data.joining import tasks_of
from prefopt.data.mixing import turn
from prefopt.data.read import Place, RawRow
from prefopt.data.sources import NamedRows
from prefopt.errors import DataError


@dataclass(frozen=True)
class LanePlace:
    """The row that a lane reads next."""

    passes: int = 0
    """Whole passes so far."""
    file: int = 0
    """Which of the lane's sources."""
    place: Place | None = None
    """Where in that source, as its reader says; None for its start."""
    row: int = 0
    """Rows of this pass so far."""
    drawn: int = 0
    """Rows of all passes so far; rows that are joined count as one."""

    def came_round(self, start: LanePlace) -> bool:
        """Whether every row was read since `start`."""
        return self.passes > start.passes + (self.row < start.row)


Places = tuple[LanePlace, ...]


def to_json(places: Places) -> list[dict[str, Any]]:
    """Return places as JSON can hold them; `from_json` reads them back."""
    return [asdict(place) for place in places]


def from_json(places: Sequence[Mapping[str, Any]]) -> Places:
    """Return the places that `to_json` wrote."""
    return tuple(LanePlace(**place) for place in places)


@dataclass(frozen=True)
class StreamRow:
    """A row of a stream, or neighbours that make one list."""

    raw: RawRow
    task: Task
    lane: int
    """Which of the lanes it is from."""
    number: int
    """Rows of this pass before it."""
    new: bool
    """Read for the first time: of its lane's first pass."""
    after: Places
    """Where every lane stands behind this row."""


@dataclass(frozen=True)
class Lane:
    """Sources that are read one behind the other, and then from the first again."""

    sources: tuple[NamedRows, ...]
    formats: tuple[Format, ...]
    """Of each source."""
    weight: float = 1.0

    def rows(self, start: LanePlace) -> Generator[tuple[RawRow, Task, LanePlace], None, None]:
        """Yield rows from `start` on, each with the place behind it, without end.

        A row that can't be read and stands in the middle of a list is no place to stop at: begin behind the list.

        Raises:
            DataError: a source can't be read, or a whole pass has no row.
        """
        here, began = start, start.place is not None or start.file > 0
        while True:
            seen = False
            for number in range(here.file, len(self.sources)):
                first = here.place if number == here.file else None
                with closing(self.sources[number].read(first)) as rows:
                    tasks = tasks_of(rows, self.formats[number])
                    ahead = next(tasks, None)
                    while ahead is not None:
                        (raw, task), ahead = ahead, next(tasks, None)
                        row = here.row + 1 + len(raw.joined)
                        here = replace(here, file=number, place=raw.after, row=row, drawn=here.drawn + 1)
                        if ahead is None and number == len(self.sources) - 1:
                            here = LanePlace(passes=here.passes + 1, drawn=here.drawn)
                        seen = True
                        yield raw, task, here
            if not (seen or began):
                raise DataError(f"{self.sources[0].name} has no rows any more; it must not change while it is read.")
            began = False
            if here.place is not None or here.file:  # a source ended earlier than it did before
                here = LanePlace(passes=here.passes + 1, drawn=here.drawn)


def interleaved(lanes: Sequence[Lane], start: Places) -> Generator[StreamRow, None, None]:
    """Yield the rows of all lanes from `start` on, so that after each row their numbers follow the weights."""
    readers = [lane.rows(place) for lane, place in zip(lanes, start, strict=True)]
    weights = [lane.weight for lane in lanes]
    here = list(start)
    try:
        while True:
            chosen = turn(weights, [place.drawn for place in here])
            before = here[chosen]
            raw, task, here[chosen] = next(readers[chosen])
            yield StreamRow(raw, task, chosen, before.row, before.passes == 0, tuple(here))
    finally:
        for reader in readers:
            reader.close()
