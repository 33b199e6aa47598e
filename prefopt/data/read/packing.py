"""Compressed files: told by their first bytes, and unpacked as they are read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tempfile
import zlib
from typing import IO, Any, cast

BUFFER = 1 << 16
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
"""What reading a compressed file raises where it is cut off or damaged."""

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2"}


def buffered(file: Any) -> io.BufferedReader:
    """Return `file` with a buffer that can be peeked into."""
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(file, BUFFER)


def unpacked(file: io.BufferedReader) -> io.BufferedReader:
    """Return what a compressed file holds; any other file as it is."""
    start = file.peek(8)[:8]
    kind = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    if kind == "gzip":
        return buffered(gzip.open(file))
    if kind == "xz":
        return buffered(lzma.open(file))
    if kind == "bzip2":
        return buffered(_Checked(bz2.open(file)))
    if kind == "zstd":
        import pyarrow

        return buffered(_Checked(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")))
    return file


def seekable(file: io.BufferedReader) -> IO[bytes]:
    """Return a file that can be read in any order: what was compressed is unpacked to a temporary file."""
    if file.seekable() and not isinstance(file.raw, gzip.GzipFile | lzma.LZMAFile):
        return file
    whole = tempfile.TemporaryFile()  # noqa: SIM115 - the caller reads it; it goes with its last reference
    while block := file.read(1 << 20):
        whole.write(block)
    whole.seek(0)
    return whole


def skip_to(file: io.BufferedReader, byte: int) -> None:
    """Go to a byte behind the present one, by reading where the file can do nothing else."""
    if file.seekable():
        file.seek(byte)
        return
    while byte > 0 and (block := file.read(min(byte, 1 << 20))):
        byte -= len(block)


class _Checked(io.RawIOBase):
    """A decompressor whose every error says that the file is damaged."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = cast(bytes, self._inner.read(len(buffer)))
        except (OSError, ValueError) as error:
            raise EOFError(str(error)) from error
        buffer[: len(block)] = block
        return len(block)
