"""Columns as Arrow files: written once, and then read where they lie, so that they take disk and no memory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefopt.data.columns import Columns, ColumnWriter, Texts

FILES = ("tokens.arrow", "sequences.arrow", "completions.arrow", "examples.arrow")


def write_columns(writer: ColumnWriter, folder: Path) -> Columns:
    """Write what a writer with a folder of its own has taken, and return it from there; its own files are removed."""
    assert isinstance(writer.sources, Texts)
    assert isinstance(writer.meta, Texts)
    writer.tokens.flush()
    tokens = np.memmap(writer.tokens, dtype=np.int32, mode="r")
    _write(folder / "tokens.arrow", {"token": _held(tokens)})
    _write(folder / "sequences.arrow", {"length": _numbers(writer.lengths), "cut": _numbers(writer.cut)})
    _write(folder / "completions.arrow", {"score": _numbers(writer.scores)})
    _write(
        folder / "examples.arrow",
        {
            "count": _numbers(writer.counts),
            "label": _numbers(writer.labels),
            "source": _texts(writer.sources),
            "meta": _texts(writer.meta),
        },
    )
    del tokens
    writer.close()
    for name in writer.file_names:
        (folder / name).unlink()
    return read_columns(folder)


def read_columns(folder: Path) -> Columns:
    """Return columns that lie on disk."""
    (token,) = _read(folder / "tokens.arrow")
    length, cut = _read(folder / "sequences.arrow")
    (score,) = _read(folder / "completions.arrow")
    count, label, source, meta = _read(folder / "examples.arrow")
    return Columns(
        tokens=_array(token),
        lengths=_array(length).astype(np.int64),
        cut=_array(cut).view(np.bool_),
        counts=_array(count).astype(np.int64),
        scores=_array(score),
        labels=_array(label).view(np.bool_),
        sources=_Strings(source),
        meta=_Mappings(meta),
    )


class _Strings(Sequence[str]):
    def __init__(self, held: Any) -> None:
        self._held = held

    def __len__(self) -> int:
        return len(self._held)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return str(self._held[index].as_py().decode("utf-8", "surrogatepass"))


class _Mappings(Sequence[Mapping[str, Any] | None]):
    def __init__(self, held: Any) -> None:
        self._texts = _Strings(held)

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any] | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[Mapping[str, Any] | None]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | list[Mapping[str, Any] | None] | None:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        text = self._texts[index]
        return dict(json.loads(text)) if text else None


# By their buffers, since pyarrow imports pandas to look at an array: half a second, and nobody else needs it.
_TYPES: dict[Any, Any] = {"u1": pa.uint8(), "i4": pa.int32(), "f8": pa.float64()}


def _numbers(values: array[Any]) -> Any:
    held: NDArray[Any] = np.frombuffer(values, dtype=values.typecode)
    return _held(held.view(np.uint8) if values.typecode == "b" else held)


def _held(values: NDArray[Any]) -> Any:
    kind = _TYPES[f"{values.dtype.kind}{values.dtype.itemsize}"]
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _array(column: Any) -> NDArray[Any]:
    """Return a column of numbers, all of them known, where it lies."""
    assert column.null_count == 0
    kind = next(name for name, own in _TYPES.items() if own == column.type)
    held: NDArray[Any] = np.frombuffer(column.buffers()[1], dtype=kind)
    return held[column.offset : column.offset + len(column)]


def _texts(texts: Texts) -> Any:
    texts.file.flush()
    size = texts.stops[-1]
    data = pa.py_buffer(np.memmap(texts.file, dtype=np.uint8, mode="r")) if size else pa.py_buffer(b"")
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(texts.stops) - 1, [None, pa.py_buffer(texts.stops), data]
    )


def _write(path: Path, columns: Mapping[str, Any]) -> None:
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _read(path: Path) -> list[Any]:
    """Return the columns of a file in their order; they refer to the file, which stays mapped while one lives."""
    with pa.memory_map(str(path)) as file:
        return list(pa.ipc.open_file(file).get_batch(0).columns)
