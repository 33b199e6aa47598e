"""Rows out of files: JSON Lines, JSON arrays and Parquet, gzipped or not. A row that can't be read is kept as that."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from prefopt.errors import DataError

PARQUET_BATCH = 1024
GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"


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

    @property
    def where(self) -> str:
        return f"{self.source}:{self.line}"


def read_file(path: Path) -> Generator[RawRow, None, None]:
    """Read one file, lazily; what it holds is told by its first bytes, not by its name.

    Raises:
        DataError: the file can't be opened, is empty, cut off or damaged, or is of another kind.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            if magic == PARQUET_MAGIC:
                yield from _parquet(path)
            elif magic.startswith(GZIP_MAGIC):
                with gzip.open(file) as inner:
                    yield from _text(path, cast(IO[bytes], inner))
            else:
                yield from _text(path, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is cut off or damaged: {error}. Fetch or compress it again.") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error


def read_rows(rows: Iterable[Any], source: str = "rows") -> Generator[RawRow, None, None]:
    """Number rows that are in memory already."""
    for line, row in enumerate(rows, start=1):
        yield _checked(source, line, row, "")


def _checked(source: str, line: int, value: Any, text: str) -> RawRow:
    if isinstance(value, Mapping):
        return RawRow(source, line, value)
    return RawRow(source, line, None, f"not an object with columns: {_kind(value)}", text or repr(value)[:1000])


def _kind(value: Any) -> str:
    names = {str: "a string", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _text(path: Path, file: IO[bytes]) -> Generator[RawRow, None, None]:
    lines = io.BufferedReader(cast(Any, file)) if not isinstance(file, io.BufferedReader) else file
    start = lines.peek(1024)[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        yield from _array(path, lines)
        return
    seen = parsed = 0
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        raw = _parse_line(str(path), number, line)
        seen += 1
        parsed += raw.row is not None
        yield raw
    if not seen:
        raise DataError(f"{path} is empty.")
    if not parsed:
        raise DataError(
            f"{path} is not JSON Lines: none of its {seen} lines is a JSON object. prefopt reads JSON Lines (one "
            "object a line), a JSON array of objects, and Parquet; JSON may be gzipped."
        )


def _parse_line(source: str, number: int, line: bytes) -> RawRow:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return RawRow(source, number, None, f"not UTF-8: at byte {error.start}", line.decode("utf-8", "replace"))
    try:
        return _checked(source, number, json.loads(text), text)
    except json.JSONDecodeError as error:
        return RawRow(source, number, None, f"not JSON: {error.msg} at column {error.colno}", text)
    except RecursionError:
        return RawRow(source, number, None, "not JSON that can be read: nested too deeply", text)
    except ValueError:  # an integer of more than 4,300 digits
        return RawRow(source, number, None, "not JSON that can be read: a number is too long", text)


def _array(path: Path, file: IO[bytes]) -> Generator[RawRow, None, None]:
    try:
        rows = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} begins like a JSON array but is not one: {error}.") from error
    if not rows:
        raise DataError(f"{path} is an empty array.")
    yield from read_rows(rows, str(path))


def _parquet(path: Path) -> Generator[RawRow, None, None]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if not file.metadata.num_rows:
                raise DataError(f"{path} has no rows.")
            first = 1
            for batch in file.iter_batches(PARQUET_BATCH):
                for offset, row in enumerate(batch.to_pylist()):
                    yield RawRow(str(path), first + offset, row)
                first += batch.num_rows
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is a damaged Parquet file: {error}.") from error
