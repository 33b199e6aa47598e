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
    _write(folder / "tokens.arrow", {"token": pa.array(tokens)})
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
        tokens=token.to_numpy(zero_copy_only=True),
        lengths=length.to_numpy().astype(np.int64),
        cut=cut.to_numpy(zero_copy_only=True).view(np.bool_),
        counts=count.to_numpy().astype(np.int64),
        scores=score.to_numpy(zero_copy_only=True),
        labels=label.to_numpy(zero_copy_only=True).view(np.bool_),
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


def _numbers(values: array[Any]) -> Any:
    held: NDArray[Any] = np.frombuffer(values, dtype=values.typecode)
    return pa.array(held.view(np.uint8) if values.typecode == "b" else held)


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
