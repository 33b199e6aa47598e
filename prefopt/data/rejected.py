"""The rows that are not used: counted by reason, and written down one by one."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from prefopt.data.read import RawRow
from prefopt.data.row_error import LeftOut, RowError
from prefopt.errors import DataError

FILE_NAME = "rejected_rows.jsonl"


class RejectedRows:
    """Collects rejected rows, and those that a rule leaves out; a context manager around the file they go to.

    Every line is `{"source", "line", "reason", "row"}`; `row` is the text of the line where that was all there was.
    A row that a rule leaves out has its `rule` too, the key of the recipe.
    """

    def __init__(self, path: Path | None = None, *, keep: bool = False) -> None:
        """`keep` leaves what the file holds already, for `load_state_dict` to decide."""
        self._mode = "a" if keep else "w"
        self.path = path / FILE_NAME if path is not None and path.is_dir() else path
        self.reasons: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        """Reason -> where it was met first, and its detail."""
        self._file: IO[str] | None = None
        self._copy: IO[str] | None = None

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
        self.stop_copy()

    def start_copy(self, path: Path) -> None:
        """Write the rows to a second file as well."""
        self._copy = path.open("w", encoding="utf-8")

    def stop_copy(self) -> None:
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    def restore(
        self, reasons: Mapping[str, int], first: Mapping[str, str], left_out: Mapping[str, int], rows: Path
    ) -> None:
        """Take over what an earlier load has rejected: counts, first places, and the file that it wrote."""
        self.reasons.update(reasons)
        self.left_out.update(left_out)
        self.first.update(first)
        if self._file is not None:
            with rows.open(encoding="utf-8") as lines:
                shutil.copyfileobj(lines, self._file)

    def state_dict(self) -> dict[str, Any]:
        """Return the books and how long the file is with them; JSON-able."""
        if self._file is not None:
            self._file.flush()
        size = self._file.tell() if self._file is not None else 0
        books = {"reasons": dict(self.reasons), "left_out": dict(self.left_out), "first": dict(self.first)}
        return {**books, "bytes": size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to earlier books: what was written to the file since is cut off. The context must be entered."""
        self.reasons, self.left_out = Counter(state["reasons"]), Counter(state["left_out"])
        self.first = dict(state["first"])
        if self._file is not None:
            self._file.flush()
            self._file.truncate(state["bytes"])
            self._file.seek(0, os.SEEK_END)

    def add(self, raw: RawRow, error: RowError) -> None:
        """Write down a row and those that are joined with it."""
        for own in (raw, *raw.joined):
            self._add(own, error)

    def _add(self, raw: RawRow, error: RowError) -> None:
        record: dict[str, Any] = {"source": raw.source, "line": raw.line, "reason": str(error)}
        if isinstance(error, LeftOut):
            self.left_out[error.reason] += 1
            record["rule"] = error.rule
        else:
            self.reasons[error.reason] += 1
            self.first.setdefault(error.reason, f"{raw.where}: {error}")
        files = [file for file in (self._file, self._copy) if file is not None]
        if files:
            record["row"] = raw.text if raw.row is None else dict(raw.row)
            try:
                line = json.dumps(record, default=str, skipkeys=True)
            except RecursionError:
                line = json.dumps({**record, "row": "nested too deeply to be written"})
            for file in files:
                file.write(line + "\n")

    @property
    def total(self) -> int:
        """Rows that can't be used; those that a rule leaves out are not among them."""
        return sum(self.reasons.values())
