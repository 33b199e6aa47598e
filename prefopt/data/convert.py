"""`prefopt data convert`: any recognised source as one Parquet file in prefopt's own form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefopt.data.load import parse_options
from prefopt.data.loading import Loading
from prefopt.data.own_form import OwnForm
from prefopt.data.parquet import ParquetWriter, write_whole
from prefopt.data.rejected import FILE_NAME, RejectedRows
from prefopt.data.sources import Source
from prefopt.errors import DataError


@dataclass(frozen=True)
class Converted:
    """What was read and written."""

    path: str
    rows_read: int
    rows_written: int
    rejected: Mapping[str, int]
    """Reason -> rows."""
    rejected_path: str | None
    """The list of rejected rows, where there are any."""
    read_with: Mapping[str, str]
    """The `data.columns` to read the file with; mostly none."""
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able copy."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Say it in plain lines."""
        return [
            f"{self.path}: {self.rows_written} of {self.rows_read} rows",
            *rejected_lines(self.rejected, self.rejected_path),
            *self.notes,
            *reading_lines(self.read_with),
        ]


def convert_source(source: Source, out: str | Path, *, overwrite: bool = False, **options: Any) -> Converted:
    """Write a source as Parquet with prefopt's columns; loading it gives what loading the source gives.

    Args:
        source: as for `load_preferences`.
        out: the file, which must end in .parquet. Rows that can't be used are listed beside it.
        overwrite: replace a file that is there.
        options: as for `load_preferences`; what they say of format, columns and turns is settled in the file.

    Raises:
        DataError: `out` exists or can't be written, too many rows can't be used, or rows no Parquet file can hold.
    """
    path = Path(out)
    check_outputs([path], overwrite=overwrite)
    listed = path.with_suffix(f".{FILE_NAME}")
    form = OwnForm()
    with ExitStack() as stack:
        rejected = stack.enter_context(listing(listed))
        writer = stack.enter_context(ParquetWriter(path))
        loading = Loading(source, parse_options(options), rejected)
        for raw, format_, row in loading.rows():
            loading.use(raw)
            writer.add(form.record(raw, format_, row), row)
        loading.check_rejected()
        columns = write_whole([writer])
    return Converted(
        path=str(path),
        rows_read=loading.read,
        rows_written=writer.rows,
        rejected=dict((rejected.reasons + rejected.left_out).most_common()),
        rejected_path=str(listed) if rejected.total or rejected.left_out else None,
        read_with=columns,
        notes=(*form.notes(), *writer.notes),
    )


def check_outputs(paths: list[Path], *, overwrite: bool) -> None:
    """Refuse outputs that are no Parquet files, or are there already.

    Raises:
        DataError: with the path.
    """
    for path in paths:
        if path.suffix != ".parquet":
            raise DataError(f"{path} doesn't end in .parquet, and Parquet is what is written; name it so.")
        if path.is_dir():
            raise DataError(f"{path} is a directory; name a file that doesn't exist yet.")
        if path.exists() and not overwrite:
            raise DataError(f"{path} exists already; name another file, or replace it with --overwrite.")


@contextmanager
def listing(path: Path) -> Iterator[RejectedRows]:
    """List rejected rows in a file, which stays where there are any, whatever becomes of the rest."""
    rejected = RejectedRows(path)
    try:
        with rejected:
            yield rejected
    finally:
        if not rejected.total:
            path.unlink(missing_ok=True)


def rejected_lines(rejected: Mapping[str, int], path: str | None) -> list[str]:
    """Say which rows were rejected and where they are listed."""
    lines = [f"  {count} x {reason}" for reason, count in rejected.items()]
    if not lines:
        return []
    return [f"{sum(rejected.values())} rows can't be used, and are listed in {path}:", *lines]


def reading_lines(columns: Mapping[str, str]) -> list[str]:
    """Say what the file must be read with."""
    if not columns:
        return []
    named = ", ".join(f"data.columns.{field}={column}" for field, column in columns.items())
    return [f"most of its first rows have no scores: read it with {named}"]
