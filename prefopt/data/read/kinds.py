"""One file -> its rows: what it holds is told by its first bytes, by its name only where they leave it open."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Any

from prefopt.data.read.delimited import delimiter_of, read_delimited
from prefopt.data.read.packing import DAMAGED, buffered, seekable, unpacked
from prefopt.data.read.row import Place, RawRow
from prefopt.data.read.tables import read_arrow_file, read_arrow_stream, read_parquet
from prefopt.data.read.text import BOM, read_array, read_lines
from prefopt.errors import DataError

READABLE = (
    "JSON Lines (one object a line), a JSON array of objects, Parquet, Arrow, and CSV or TSV with a header; each may "
    "be compressed by gzip, zstd, xz or bzip2"
)
PEEKED = 4096
UNREADABLE = {
    b"PK\x03\x04": "a ZIP archive (name a file in it, as zip://FILE::ARCHIVE.zip)",
    b"SQLite format 3": "an SQLite database",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"\x89HDF\r\n": "an HDF5 file",
    b"\xff\xfe": "text in UTF-16 (save it as UTF-8)",
    b"\xfe\xff": "text in UTF-16 (save it as UTF-8)",
    b"%PDF": "a PDF",
}


def read_file(path: Path, start: Place | None = None) -> Generator[RawRow, None, None]:
    """Read one file, lazily.

    Args:
        path: the file.
        start: go on behind the row that gave this place; what comes before is skipped, at best without reading it.

    Raises:
        DataError: the file can't be opened, is empty, cut off or damaged, or is of another kind.
    """
    yield from read_opened(str(path), lambda: path.open("rb"), start)


def read_opened(
    name: str, opener: Callable[[], IO[bytes]], start: Place | None = None
) -> Generator[RawRow, None, None]:
    """Read what `opener` opens as `read_file` reads a file; `name` is what messages call it."""
    try:
        with opener() as opened:
            yield from _rows(name, unpacked(buffered(opened)), start)
    except DAMAGED as error:
        raise DataError(f"{name} is cut off or damaged: {error}. Fetch or compress it again.") from error
    except OSError as error:
        raise DataError(f"{name} can't be read: {error.strerror or error}.") from error


def _rows(name: str, file: Any, start: Place | None) -> Generator[RawRow, None, None]:
    head = file.peek(PEEKED)[:PEEKED]
    skipped = 0 if start is None else start.get("row", 0)
    if head.startswith(b"PAR1"):
        yield from read_parquet(name, seekable(file), skipped)
    elif head.startswith(b"ARROW1"):
        yield from read_arrow_file(name, seekable(file), skipped)
    elif head.startswith(b"\xff\xff\xff\xff"):
        yield from read_arrow_stream(name, file, skipped)
    elif head.removeprefix(BOM).lstrip().startswith(b"["):
        yield from read_array(name, file, start)
    elif (kind := _unreadable(head)) is not None:
        raise DataError(f"{name} is {kind}. prefopt reads {READABLE}.")
    elif (delimiter := delimiter_of(name, head)) is not None:
        yield from read_delimited(name, file, delimiter, start)
    else:
        yield from read_lines(name, file, start, READABLE)


def _unreadable(head: bytes) -> str | None:
    """Name the kind of a file that can't be read, where its first bytes tell."""
    for magic, kind in UNREADABLE.items():
        if head.startswith(magic):
            return kind
    is_text = b"\0" not in head or head.lstrip().startswith(b"{")  # a line of JSON may hold any damage
    return None if is_text else "a binary file of a kind that prefopt doesn't know"
