"""Parquet and Arrow IPC: tables with types, read a piece at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from itertools import accumulate
from typing import IO, Any

from prefopt.data.read.row import RawRow
from prefopt.errors import DataError

PIECE = 1024
"""Rows that become Python objects at once."""


def read_parquet(name: str, opened: IO[bytes], skipped: int) -> Generator[RawRow, None, None]:
    """Read a Parquet file behind its first `skipped` rows; row groups before them are not read.

    Raises:
        DataError: the file is damaged or has no rows.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(opened) as file:
            if not file.metadata.num_rows:
                raise DataError(f"{name} has no rows.")
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            starts = [0, *accumulate(sizes)]
            groups = [i for i in range(file.num_row_groups) if starts[i + 1] > skipped]
            if groups:
                batches = file.iter_batches(PIECE, row_groups=groups)
                yield from _numbered(name, batches, starts[groups[0]], skipped)
    except pyarrow.ArrowException as error:
        raise DataError(f"{name} is a damaged Parquet file: {error}.") from error


def read_arrow_file(name: str, opened: IO[bytes], skipped: int) -> Generator[RawRow, None, None]:
    """Read an Arrow IPC file behind its first `skipped` rows.

    Raises:
        DataError: the file is damaged or has no rows.
    """
    import pyarrow

    def batches() -> Generator[Any, None, None]:
        file = pyarrow.ipc.open_file(opened)
        yield from (file.get_batch(i) for i in range(file.num_record_batches))

    yield from _arrow(name, batches(), skipped)


def read_arrow_stream(name: str, opened: IO[bytes], skipped: int) -> Generator[RawRow, None, None]:
    """Read an Arrow IPC stream, such as the cache files of `datasets`, behind its first `skipped` rows.

    Raises:
        DataError: the stream is damaged or has no rows.
    """
    import pyarrow

    def batches() -> Generator[Any, None, None]:
        yield from pyarrow.ipc.open_stream(opened)

    yield from _arrow(name, batches(), skipped)


def _arrow(name: str, batches: Iterable[Any], skipped: int) -> Generator[RawRow, None, None]:
    import pyarrow

    rows = 0
    try:
        for raw in _numbered(name, batches, 0, skipped):
            rows += 1
            yield raw
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name} is a damaged Arrow file: {error}.") from error
    if not rows and not skipped:
        raise DataError(f"{name} has no rows.")


def _numbered(name: str, batches: Iterable[Any], first: int, skipped: int) -> Generator[RawRow, None, None]:
    """Number the rows of `batches`, the first of which has `first` rows before it, and leave out those skipped."""
    for batch in batches:
        for at in range(max(0, skipped - first), batch.num_rows, PIECE):
            for number, row in enumerate(batch.slice(at, PIECE).to_pylist(), start=first + at + 1):
                yield RawRow(name, number, row, after={"row": number})
        first += batch.num_rows
