"""Files that are whole or absent: written aside, flushed, renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefopt.errors import RunError


@contextmanager
def written(final: Path) -> Iterator[Path]:
    """Yield the place to write a file to; on success it is flushed to the disk and renamed to `final`.

    On an exception, or a kill at any instant, `final` is what it was before. What a kill leaves beside it is
    overwritten by the next who writes it: one at a time may. Raises `RunError` when the disk refuses.
    """
    aside = final.with_name(f".writing-{final.name}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        sync(aside)
        aside.replace(final)
        sync(final.parent)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise RunError(
            f"{final} could not be written: {error.strerror or error}. What was finished before it is intact; free the "
            "disk or mend its permissions, then start the same command again."
        ) from error


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
