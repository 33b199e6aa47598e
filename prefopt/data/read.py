"""Rows out of files: JSON Lines, JSON arrays and Parquet, gzipped or not. A row that can't be read is kept as that."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from prefopt.errors import DataError

PARQUET_BATCH = 1024
GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"


Place: TypeAlias = "Mapping[str, int]"
"""Where reading goes on, as JSON can hold it: `{"byte", "line"}` of a text file, `{"row"}` of anything else."""


@dataclass(frozen=True)
class RawRow:
    """One row as it was read: its columns, or the reason why it has none."""

    source: str
    """The file or dataset."""
    line: int
    """Line of the file, counted from 1; row number where there are no lines."""
    row: Mapping[str, Any] | None
    problem: str = ""
    """Why `row` is None."""
    text: str = ""
    """The line as it stands, where `row` is None."""
    after: Place | None = None
    """Where the next row of the source begins; None for rows in memory."""

    @property
    def where(self) -> str:
        return f"{self.source}:{self.line}"


def read_file(path: Path, start: Place | None = None) -> Generator[RawRow, None, None]:
    """Read one file, lazily; what it holds is told by its first bytes, not by its name.

    Args:
        path: the file.
        start: go on behind the row that gave this place; what comes before is skipped, at best without reading it.

    Raises:
        DataError: the file can't be opened, is empty, cut off or damaged, or is of another kind.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            if magic == PARQUET_MAGIC:
                yield from _parquet(path, 0 if start is None else start["row"])
            elif magic.startswith(GZIP_MAGIC):
                with gzip.open(file) as inner:
                    yield from _text(path, cast(IO[bytes], inner), start)
            else:
                yield from _text(path, file, start)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is cut off or damaged: {error}. Fetch or compress it again.") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error


def read_rows(rows: Iterable[Any], source: str = "rows", start: Place | None = None) -> Generator[RawRow, None, None]:
    """Number rows that are in memory already."""
    skipped = 0 if start is None else start["row"]
    for line, row in enumerate(islice(rows, skipped, None), start=skipped + 1):
        yield _checked(source, line, row, "", {"row": line})


def _checked(source: str, line: int, value: Any, text: str, after: Place) -> RawRow:
    if isinstance(value, Mapping):
        return RawRow(source, line, value, after=after)
    problem = f"not an object with columns: {_kind(value)}"
    return RawRow(source, line, None, problem, text or repr(value)[:1000], after)


def _kind(value: Any) -> str:
    names = {str: "a string", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _text(path: Path, file: IO[bytes], place: Place | None) -> Generator[RawRow, None, None]:
    lines = io.BufferedReader(cast(Any, file)) if not isinstance(file, io.BufferedReader) else file
    start = lines.peek(1024)[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        yield from _array(path, lines, place)
        return
    seen = parsed = 0
    byte = number = 0
    if place is not None:
        byte, number = place["byte"], place["line"]
        lines.seek(byte)
    for line in lines:
        byte, number = byte + len(line), number + 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        raw = _parse_line(str(path), number, line, {"byte": byte, "line": number})
        seen += 1
        parsed += raw.row is not None
        yield raw
    if not seen and place is None:
        raise DataError(f"{path} is empty.")
    if seen and not parsed and place is None:
        raise DataError(
            f"{path} is not JSON Lines: none of its {seen} lines is a JSON object. prefopt reads JSON Lines (one "
            "object a line), a JSON array of objects, and Parquet; JSON may be gzipped."
        )


def _parse_line(source: str, number: int, line: bytes, after: Place) -> RawRow:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return RawRow(source, number, None, f"not UTF-8: at byte {error.start}", line.decode("utf-8", "replace"), after)
    try:
        return _checked(source, number, json.loads(text), text, after)
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        problem = "not JSON that can be read: nested too deeply"
    except ValueError:  # an integer of more than 4,300 digits
        problem = "not JSON that can be read: a number is too long"
    return RawRow(source, number, None, problem, text, after)


def _array(path: Path, file: IO[bytes], place: Place | None) -> Generator[RawRow, None, None]:
    try:
        rows = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} begins like a JSON array but is not one: {error}.") from error
    if not rows:
        raise DataError(f"{path} is an empty array.")
    yield from read_rows(rows, str(path), place)


def _parquet(path: Path, skipped: int) -> Generator[RawRow, None, None]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if not file.metadata.num_rows:
                raise DataError(f"{path} has no rows.")
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            starts = [0, *accumulate(sizes)]
            groups = [i for i in range(file.num_row_groups) if starts[i + 1] > skipped]  # the others are not read
            first = starts[groups[0]] if groups else 0
            for batch in file.iter_batches(PARQUET_BATCH, row_groups=groups) if groups else ():
                own = batch.slice(max(0, skipped - first))
                for number, row in enumerate(own.to_pylist(), start=first + batch.num_rows - own.num_rows + 1):
                    yield RawRow(str(path), number, row, after={"row": number})
                first += batch.num_rows
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is a damaged Parquet file: {error}.") from error
