"""CSV and TSV with a header: quoted newlines, cells of any size, empty cells as missing values."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Generator, Iterator

from prefopt.data.read.cells import Cell
from prefopt.data.read.packing import skip_to
from prefopt.data.read.row import Place, RawRow
from prefopt.errors import DataError

DELIMITERS = ",\t;"
LARGEST_CELL = 2**31 - 1
BOM = b"\xef\xbb\xbf"
NAMED = re.compile(r"\.(csv|tsv)(\.\w+)?$", re.IGNORECASE)
COLUMN = re.compile(r"[A-Za-z_][\w .-]*")


def delimiter_of(name: str, head: bytes) -> str | None:
    """Tell what parts the cells of a file that begins with `head`; None where it is no table.

    A table's first line holds two or more names; a file that is called .csv or .tsv is believed, and its
    first line may then hold one name.
    """
    line = head.removeprefix(BOM).lstrip().partition(b"\n")[0].decode("utf-8", "replace").strip()
    found = [d for d in DELIMITERS if len(_names(line, d)) > 1]
    looks = [d for d in found if all(COLUMN.fullmatch(column) for column in _names(line, d))]
    if NAMED.search(name) and line:
        return next(iter((*looks, *found)), ",")
    return looks[0] if looks else None


def read_delimited(
    name: str, file: io.BufferedReader, delimiter: str, place: Place | None
) -> Generator[RawRow, None, None]:
    """Read a table whose first line names its columns; a row is at the line on which it begins.

    Raises:
        DataError: a header without names or with one twice, a quote that is never closed, or no rows at all.
    """
    # The limit belongs to the whole process; a larger one takes nothing from anybody.
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_CELL))
    lines = _Lines(file)
    columns = _header(name, lines, delimiter)
    if place is not None:
        lines.go_to(place["byte"], place["line"])
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    rows = 0
    while True:
        first = lines.number + 1
        try:
            cells = next(table, None)
            problem = ""
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(
                    f"{name} has a quote that opens in the row at line {first} and is never closed; everything behind "
                    "it would be one cell. Close it, or write a quote inside a cell twice."
                ) from error
            cells, problem = [], f"not {_kind(delimiter)}: {error}"
        except UnicodeDecodeError as error:
            cells, problem = [], f"not UTF-8: at byte {error.start}"
        if cells is None:
            break
        if not cells and not problem:
            continue  # a blank line
        rows += 1
        if not problem and len(cells) != len(columns):
            problem = f"not a row of the table: {len(cells)} cells, and the header names {len(columns)} columns"
        after = {"byte": lines.byte, "line": lines.number}
        if problem:
            yield RawRow(name, first, None, problem, delimiter.join(cells) or lines.last, after)
        else:
            row = {column: Cell(cell) if cell else None for column, cell in zip(columns, cells, strict=True)}
            yield RawRow(name, first, row, after=after)
    if not rows and place is None:
        raise DataError(f"{name} has a header and no rows.")


class _Lines(Iterator[str]):
    """The lines of a file as text, with how far they have been read."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.byte = self.number = 0
        self.last = ""

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        self.byte, self.number = self.byte + len(line), self.number + 1
        self.last = line.decode("utf-8", "replace").rstrip("\r\n")
        return (line.removeprefix(BOM) if self.number == 1 else line).decode("utf-8")

    def go_to(self, byte: int, number: int) -> None:
        skip_to(self._file, byte if self._file.seekable() else byte - self.byte)
        self.byte, self.number = byte, number


def _header(name: str, lines: _Lines, delimiter: str) -> list[str]:
    try:
        columns = next((row for row in csv.reader(lines, delimiter=delimiter, strict=True) if row), [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"The first line of {name} is no header of a table: {error}.") from error
    columns = [column.strip() for column in columns]
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None or not all(columns):
        raise DataError(
            f"The header of {name} names {f'the column {twice!r} twice' if twice else 'a column without a name'}; its "
            "first line must hold a name for each column."
        )
    return columns


def _names(line: str, delimiter: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.split(delimiter)]


def _kind(delimiter: str) -> str:
    return "TSV" if delimiter == "\t" else "CSV"
