"""The rows that could not be used: counted by reason, and written down one by one."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from prefopt.data.read import RawRow
from prefopt.data.rows import RowError
from prefopt.errors import DataError

FILE_NAME = "rejected_rows.jsonl"


class RejectedRows:
    """Collects rejected rows; a context manager around the file they go to.

    Every line is `{"source", "line", "reason", "row"}`; `row` is the text of the line where that was all there was.
    """

    def __init__(self, path: Path | None = None, *, keep: bool = False) -> None:
        """`keep` leaves what the file holds already, for `load_state_dict` to decide."""
        self._mode = "a" if keep else "w"
        self.path = path / FILE_NAME if path is not None and path.is_dir() else path
        self.reasons: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        """Reason -> where it was met first, and its detail."""
        self._file: IO[str] | None = None

    def __enter__(self) -> RejectedRows:
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open(self._mode, encoding="utf-8")
            except OSError as error:
                raise DataError(
                    f"The rejected rows can't be written to {self.path}: {error.strerror or error}."
                ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the books and how long the file is with them; JSON-able."""
        if self._file is not None:
            self._file.flush()
        size = self._file.tell() if self._file is not None else 0
        return {"reasons": dict(self.reasons), "first": dict(self.first), "bytes": size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to earlier books: what was written to the file since is cut off. The context must be entered."""
        self.reasons, self.first = Counter(state["reasons"]), dict(state["first"])
        if self._file is not None:
            self._file.flush()
            self._file.truncate(state["bytes"])
            self._file.seek(0, os.SEEK_END)

    def add(self, raw: RawRow, error: RowError) -> None:
        self.reasons[error.reason] += 1
        self.first.setdefault(error.reason, f"{raw.where}: {error}")
        if self._file is not None:
            row: Any = raw.text if raw.row is None else dict(raw.row)
            record = {"source": raw.source, "line": raw.line, "reason": str(error), "row": row}
            try:
                line = json.dumps(record, default=str, skipkeys=True)
            except RecursionError:
                line = json.dumps({**record, "row": "nested too deeply to be written"})
            self._file.write(line + "\n")

    @property
    def total(self) -> int:
        return sum(self.reasons.values())
