"""Records into one Parquet file: in row groups, with a schema that may grow, whole or not at all.

A Parquet file has one schema from its first row group on. Where later records need more (a further column, another
type), a further part is begun, and the parts are joined at the end: memory stays that of a row group.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from prefopt.data.config import DataOptions
from prefopt.data.formats import PAIR_SCORES, SAMPLE, recognise
from prefopt.data.loading import Loading
from prefopt.data.own_form import OWN, Record, row_digest
from prefopt.data.rejected import RejectedRows
from prefopt.data.rows import Dialogue, Document
from prefopt.errors import DataError

if TYPE_CHECKING:
    import pyarrow

ROW_GROUP = 1024
_SIZE = 8  # bytes of a row's digest


class ParquetWriter:
    """Writes records beside `path` and renames the whole to it; a context manager that leaves nothing half done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.notes: dict[str, None] = {}
        self._buffer: list[Record] = []
        self._digests = bytearray()
        self._parts: list[Path] = []
        self._schema: pyarrow.Schema | None = None
        self._file: Any = None
        self._repeats = False
        self._scored = False

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        for part in self._parts:
            part.unlink(missing_ok=True)

    def add(self, record: Record, row: Document | Dialogue) -> None:
        """Take a record, and the row that it is to be read back as."""
        self._buffer.append(record)
        self._digests += row_digest(row)
        self._scored |= bool(row.scores)
        self.rows += 1
        if len(self._buffer) == ROW_GROUP:
            self._flush()

    def finish(self) -> dict[str, str]:
        """Write what is left, join the parts and read them back; `commit` is all that remains to be done.

        Returns:
            The `data.columns` that the file must be read with; mostly none.

        Raises:
            DataError: nothing was added, values that no Parquet column holds, or rows that would be read otherwise.
        """
        self._flush()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._join()
        columns = self._needed_columns()
        self._check(columns)
        return columns

    def commit(self) -> None:
        self._parts.pop().replace(self.path)

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._buffer:
            return
        if self._schema is None:
            # The reader looks at as many rows to tell whether completions repeat their prompt.
            self._repeats = recognise(self._buffer[:SAMPLE], DataOptions(), source=str(self.path)).repeats_prompt
        records = [_repeating(record) for record in self._buffer] if self._repeats else self._buffer
        try:
            schema = self._widened(_schema(records))
            if self._file is None or schema != self._schema:
                self._begin(schema)
            self._file.write_table(_table(records, schema))
        except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError, TypeError) as error:
            raise DataError(
                f"Rows {self.rows - len(records) + 1} to {self.rows} can't be written to {self.path}: their messages "
                f"hold something besides role and content that no Parquet column can hold ({error}). Leave it out."
            ) from error
        self._buffer = []

    def _begin(self, schema: pyarrow.Schema) -> None:
        import pyarrow.parquet

        if self._file is not None:
            self._file.close()
            self._file = None
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.{len(self._parts)}.part")
        self._parts.append(part)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pyarrow.parquet.ParquetWriter(part, schema, compression="zstd")
        except OSError as error:
            raise DataError(f"{self.path} can't be written: {error.strerror or error}.") from error
        self._schema = schema

    def _widened(self, schema: pyarrow.Schema) -> pyarrow.Schema:
        """Return the narrowest schema that holds what was written and what is to be."""
        import pyarrow

        if self._schema is None:
            return schema
        types = {field.name: field.type for field in self._schema}
        for field in schema:
            known = types.get(field.name)
            if known is None or known == field.type:
                types[field.name] = known or field.type
            elif field.name in OWN:
                one, other = (pyarrow.schema([pyarrow.field(field.name, kind)]) for kind in (known, field.type))
                merged = pyarrow.unify_schemas([one, other], promote_options="permissive")
                types[field.name] = merged.field(0).type
            else:
                types[field.name] = self._mixed(field.name)
        return pyarrow.schema(list(types.items()))

    def _mixed(self, column: str) -> pyarrow.DataType:
        import pyarrow

        self.notes[f"the column '{column}' holds values of several types, and is written as text"] = None
        return pyarrow.string()

    def _join(self) -> None:
        """Make one part of several, under the last one's schema, which is the widest."""
        import pyarrow.parquet

        if not self._parts:
            raise DataError(f"There is no row to write to {self.path}.")
        if len(self._parts) == 1:
            return
        before, schema = list(self._parts), self._schema
        self._begin(schema)
        for part in before:
            with pyarrow.parquet.ParquetFile(part) as file:
                for batch in file.iter_batches(ROW_GROUP):
                    self._file.write_table(_table(batch.to_pylist(), schema))
            part.unlink()
            self._parts.remove(part)
        self._file.close()
        self._file = None

    def _needed_columns(self) -> dict[str, str]:
        """Pairs whose first rows mostly lack scores are taken for pairs without, unless the columns are named."""
        import pyarrow.parquet

        assert self._schema is not None
        if not self._scored or self._schema.get_field_index("chosen") < 0:
            return {}
        with pyarrow.parquet.ParquetFile(self._parts[0]) as file:
            head = next(file.iter_batches(SAMPLE)).to_pylist()
        found = recognise(head, DataOptions(), source=str(self.path))
        return {} if found.score_columns else {name: name for name in PAIR_SCORES}

    def _check(self, columns: dict[str, str]) -> None:
        """Read everything back and compare it, row by row."""
        options = DataOptions.model_validate({"columns": columns, "max_rejected": 1.0})
        loading = Loading(self._parts[0], options, RejectedRows())
        count = 0
        for raw, _, row in loading.rows():
            if raw.line != count + 1 or row_digest(row) != self._digests[count * _SIZE : (count + 1) * _SIZE]:
                break
            count += 1
        if count != self.rows:
            raise DataError(
                f"{self.path} is not written: its row {count + 1} would be read otherwise than the row that it comes "
                "from. Messages with nested values besides role and content are the usual reason; leave these out."
            )


def write_whole(writers: Iterable[ParquetWriter]) -> dict[str, str]:
    """Finish all, and let them take their names only when all are sound; returns the columns to read them with."""
    writers = list(writers)
    columns: dict[str, str] = {}
    for writer in writers:
        columns |= writer.finish()
    for writer in writers:
        writer.commit()
    return columns


def _repeating(record: Record) -> Record:
    """Write the prompt before each completion, where the reader would cut it off a completion that begins alike."""
    answers = ("chosen", "rejected", "completion")
    return {name: record["prompt"] + value if name in answers else value for name, value in record.items()}


def _schema(records: list[Record]) -> pyarrow.Schema:
    """Infer what the records need: own columns in their order, then the others as they appear."""
    import pyarrow

    fixed = {"label": pyarrow.bool_(), "scores": pyarrow.list_(pyarrow.float64())}
    fixed |= dict.fromkeys(PAIR_SCORES, pyarrow.float64())
    names = dict.fromkeys(name for record in records for name in record)
    types = {}
    for name in names:
        values = [record[name] for record in records if record.get(name) is not None]
        own = name in OWN or (name in PAIR_SCORES and all(isinstance(value, float) for value in values))
        if own:
            types[name] = fixed[name] if name in fixed else pyarrow.array(values).type
        else:
            types[name] = _scalar_type(values)
    ordered = sorted(types.items(), key=lambda item: item[0] not in OWN)
    return pyarrow.schema(ordered)


def _scalar_type(values: list[Any]) -> pyarrow.DataType:
    import pyarrow

    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return pyarrow.bool_()
    if kinds == {float}:
        return pyarrow.float64()
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values):
        return pyarrow.int64()
    if kinds == {int, float} and all(abs(value) <= 2**53 for value in values if isinstance(value, int)):
        return pyarrow.float64()
    return pyarrow.string()


def _table(records: list[Record], schema: pyarrow.Schema) -> pyarrow.Table:
    import pyarrow

    text = {field.name for field in schema if field.name not in OWN and field.type == pyarrow.string()}
    rows = [
        {name: _as_text(value) if name in text and value is not None else value for name, value in record.items()}
        for record in records
    ]
    return pyarrow.Table.from_pylist(rows, schema=schema)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    with suppress(ValueError):  # an integer of more than 4,300 digits
        return json.dumps(value)
    return hex(value)
