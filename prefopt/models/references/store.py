"""Log-probs on disk: an SQLite database that many runs and processes read and fill at once.

The first stored value wins. Every value carries a checksum; one that does not match is as good as absent. A database
that is damaged as a whole is set aside, and one that can't be written is read only: neither ends a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from huggingface_hub import constants
from numpy.typing import NDArray

from prefopt.errors import RunError

FORMAT = 1
"""Of the tables; part of the folder's name, so that versions of prefopt don't meet in one database."""
WAIT = 60.0
"""Seconds to wait for another process' write."""
_AT_ONCE = 400
"""Keys of one query: SQLite allows so many parameters."""
_TABLES = """
CREATE TABLE IF NOT EXISTS reference (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE NOT NULL, setting TEXT NOT NULL, weights TEXT NOT NULL,
    about TEXT NOT NULL, used REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS source (
    key TEXT PRIMARY KEY, setting TEXT NOT NULL, weights TEXT NOT NULL, about TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS value (
    reference INTEGER NOT NULL, completion BLOB NOT NULL, per_token INTEGER NOT NULL, length INTEGER NOT NULL,
    data BLOB NOT NULL, checksum BLOB NOT NULL, PRIMARY KEY (reference, completion, per_token)
) WITHOUT ROWID;
"""

Result = TypeVar("Result")


@dataclass(frozen=True)
class ReferenceRow:
    """A reference that has values in the store."""

    key: str
    setting: str
    weights: str
    about: str


@dataclass(frozen=True)
class Value:
    """What is stored of one completion: its log-prob, or those of its tokens."""

    completion: bytes
    """Key of the token ids."""
    length: int
    """Completion tokens."""
    data: bytes
    """Little-endian floats: one, or one a token."""
    per_token: bool = False

    def checksum(self, reference: str) -> bytes:
        """Return 8 bytes that belong to this value of this reference alone."""
        about = f"{reference} {self.length} {self.per_token} ".encode()
        return hashlib.blake2b(about + self.completion + self.data, digest_size=8).digest()

    @property
    def is_logprob(self) -> bool:
        """Whether the numbers can be log-probs: what a broken model gives is not kept."""
        count = self.length if self.per_token else 1
        if len(self.data) not in (4 * count, 8 * count):
            return False
        numbers = numbers_of(self.data, count)
        return bool((np.isfinite(numbers) & (numbers <= 0)).all())


@dataclass(frozen=True)
class Usage:
    """What the store holds of one reference."""

    key: str
    about: str
    completions: int
    bytes: int
    used: float
    """Seconds since the epoch."""


def default_folder() -> Path:
    """Return where the cache lies: beside what Hugging Face libraries keep."""
    return Path(constants.HF_HOME) / "prefopt" / "references"


class Store:
    """Values of references in a folder, made on first use.

    Args:
        folder: where the database lies.
        required: raise `RunError` when the folder can't be written, instead of going on without.
    """

    def __init__(self, folder: Path, *, required: bool = False) -> None:
        self.folder = folder / f"v{FORMAT}"
        self._ids: dict[str, int] = {}
        self._writes = True
        self._reads_alone = False
        self._inode: int | None = None
        self._connection: sqlite3.Connection | None = None
        try:
            self._connect()
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, sqlite3.Error) and _is_damage(error):
                self._set_aside(error)
            elif required:
                raise RunError(
                    f"reference.cache is true, but {self.folder} can't be used: {_words(error)}. Make room there or "
                    "mend its permissions, name another folder by reference.cache_dir, or write reference.cache: auto."
                ) from error
            else:
                self._give_up(error)
                self._connect_to_read()

    @property
    def path(self) -> Path:
        return self.folder / "values.sqlite"

    @property
    def works(self) -> bool:
        """Whether values can be kept."""
        return self._connection is not None and self._writes

    def remembered(self, source: str) -> tuple[str, str, str] | None:
        """Return the setting (JSON), the weights' key and the name of the model that files of this key give."""
        query = "SELECT setting, weights, about FROM source WHERE key = ?"
        found: tuple[str, str, str] | None = self._run(lambda c: c.execute(query, (source,)).fetchone())
        return found

    def remember(self, source: str, setting: str, weights: str, about: str) -> None:
        """Keep what files give once they are loaded, so that another run need not load them to know."""
        insert = "INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?)"
        self._run(lambda c: c.execute(insert, (source, setting, weights, about)).rowcount, writes=True)

    def forget(self, source: str) -> None:
        """Forget what files of this key gave."""
        self._run(lambda c: c.execute("DELETE FROM source WHERE key = ?", (source,)).rowcount, writes=True)

    def knows(self, setting: str) -> list[ReferenceRow]:
        """Return the references that compute by `setting` and have values, whatever their weights."""
        query = (
            "SELECT key, setting, weights, about FROM reference r WHERE setting = ? "
            "AND EXISTS (SELECT 1 FROM value WHERE reference = r.id)"
        )
        return [ReferenceRow(*row) for row in self._run(lambda c: c.execute(query, (setting,)).fetchall()) or []]

    def read(
        self, reference: ReferenceRow, lengths: Mapping[bytes, int], *, per_token: bool
    ) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
        """Return what is stored of completions, by key: sound data, and the checksums of what is not sound.

        Args:
            reference: whose values.
            lengths: tokens of each completion.
            per_token: one value a token, or one a completion.
        """
        rows = self._run(lambda c: self._select(c, reference, lengths, per_token)) or []
        good: dict[bytes, bytes] = {}
        damaged: dict[bytes, bytes] = {}
        for completion, length, data, checksum in rows:
            if _sound(reference.key, Value(completion, lengths[completion], data, per_token), length, checksum):
                good[completion] = data
            else:
                damaged[completion] = checksum
        return good, damaged

    def write(
        self, reference: ReferenceRow, values: Sequence[Value], damaged: Mapping[bytes, bytes]
    ) -> dict[tuple[bytes, bool], bytes]:
        """Store values where there are none, and return what holds for each now: the first that was stored.

        Args:
            reference: whose values.
            values: computed ones.
            damaged: checksums of unsound entries to replace, by completion, as `read` gave them.
        """
        own = {(value.completion, value.per_token): value.data for value in reversed(values)}
        if not self._writes:
            return own
        won = self._run(lambda c: self._insert(c, reference, values, damaged), writes=True)
        return {**own, **(won or {})}

    def usage(self) -> list[Usage]:
        """Return what is held of each reference, last used first."""
        query = (
            "SELECT key, about, COUNT(DISTINCT completion), COALESCE(SUM(LENGTH(data)), 0), used FROM reference "
            "LEFT JOIN value ON reference = id GROUP BY id ORDER BY used DESC"
        )
        return [Usage(*row) for row in self._run(lambda c: c.execute(query).fetchall()) or []]

    def clear(self, unused_for: float = 0.0) -> int:
        """Forget references that no run has used for so many seconds; returns how many."""

        def remove(connection: sqlite3.Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            old = "SELECT id FROM reference WHERE used <= ?"
            connection.execute(f"DELETE FROM value WHERE reference IN ({old})", (time.time() - unused_for,))
            gone = connection.execute("DELETE FROM reference WHERE used <= ?", (time.time() - unused_for,)).rowcount
            connection.execute("COMMIT")
            connection.execute("VACUUM")
            return gone

        self._ids.clear()
        return self._run(remove, writes=True) or 0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # ---- what it stands on ----

    def _select(
        self, connection: sqlite3.Connection, reference: ReferenceRow, completions: Iterable[bytes], per_token: bool
    ) -> list[tuple[bytes, int, bytes, bytes]]:
        number = self._number(connection, reference)
        keys = list(completions)
        rows: list[tuple[bytes, int, bytes, bytes]] = []
        for first in range(0, len(keys), _AT_ONCE):
            part = keys[first : first + _AT_ONCE]
            rows += connection.execute(
                "SELECT completion, length, data, checksum FROM value WHERE reference = ? AND per_token = ? "
                f"AND completion IN ({','.join('?' * len(part))})",
                (number, per_token, *part),
            )
        return rows

    def _insert(
        self,
        connection: sqlite3.Connection,
        reference: ReferenceRow,
        values: Sequence[Value],
        damaged: Mapping[bytes, bytes],
    ) -> dict[tuple[bytes, bool], bytes]:
        connection.execute("BEGIN IMMEDIATE")
        self._ids.pop(reference.key, None)  # another process may have cleared the store
        number = self._number(connection, reference)
        # Only what is still as it was found: another process may have mended it since.
        connection.executemany(
            "DELETE FROM value WHERE reference = ? AND completion = ? AND checksum IS ?",
            [(number, completion, checksum) for completion, checksum in damaged.items()],
        )
        connection.executemany(
            "INSERT OR IGNORE INTO value VALUES (?, ?, ?, ?, ?, ?)",
            [(number, v.completion, v.per_token, v.length, v.data, v.checksum(reference.key)) for v in values],
        )
        won: dict[tuple[bytes, bool], bytes] = {}
        for per_token in {value.per_token for value in values}:
            lengths = {value.completion: value.length for value in values if value.per_token == per_token}
            for completion, length, data, checksum in self._select(connection, reference, lengths, per_token):
                value = Value(completion, lengths[completion], data, per_token)
                if _sound(reference.key, value, length, checksum):
                    won[completion, per_token] = data
        connection.execute("COMMIT")
        return won

    def _number(self, connection: sqlite3.Connection, reference: ReferenceRow) -> int:
        """Return the id of a reference; one that is new, or used for the first time by this run, is written down."""
        if reference.key not in self._ids:
            now = time.time()
            if self._writes:
                connection.execute(
                    "INSERT INTO reference (key, setting, weights, about, used) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (key) DO UPDATE SET used = excluded.used",
                    (reference.key, reference.setting, reference.weights, reference.about, now),
                )
            found = connection.execute("SELECT id FROM reference WHERE key = ?", (reference.key,)).fetchone()
            if found is None:
                return -1
            if connection.in_transaction:  # it may yet be rolled back
                return int(found[0])
            self._ids[reference.key] = int(found[0])
        return self._ids[reference.key]

    def _run(self, work: Callable[[sqlite3.Connection], Result], *, writes: bool = False) -> Result | None:
        """Return what `work` does on the database; None where there is none. A damaged one is replaced first."""
        for _ in range(2):
            if self._connection is None or (writes and not self._writes):
                return None
            try:
                return work(self._connection)
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.rollback()
                if self._reads_alone:  # it is not ours to mend
                    self.close()
                elif _is_damage(error):
                    self._set_aside(error)
                else:
                    self._give_up(error)
        return None

    def _connect(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._inode = self.path.stat().st_ino if self.path.exists() else None
        until = time.monotonic() + WAIT
        while True:
            connection = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last values, not tear any
                connection.executescript(_TABLES)
            except sqlite3.OperationalError as error:
                connection.close()
                # Two processes that make the database at once: SQLite does not wait for the other one here.
                if error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) and time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                raise
            except sqlite3.Error:
                connection.close()
                raise
            break
        self._connection = connection
        self._inode = self.path.stat().st_ino
        self._ids.clear()

    def _connect_to_read(self) -> None:
        """Open a database that can't be written, so that what is there is read; leave it where that fails too."""
        name = self.path.absolute().as_uri()
        for options in ("mode=ro", "mode=ro&immutable=1"):
            with contextlib.suppress(sqlite3.Error, OSError):
                log = self.path.with_name(f"{self.path.name}-wal")
                if "immutable" in options and log.exists() and log.stat().st_size:
                    return  # somebody writes: only with the log is it whole
                connection = sqlite3.connect(f"{name}?{options}", uri=True, timeout=WAIT, isolation_level=None)
                try:
                    connection.execute("SELECT 1 FROM reference, source, value LIMIT 1").fetchone()
                except sqlite3.Error:
                    connection.close()
                    raise
                self._connection, self._reads_alone = connection, True
                return

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Move a damaged database out of the way, unless another process did, and begin a new one."""
        known = self._inode
        self.close()
        aside = self.folder.with_name(f"damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        try:
            if known is None or self.path.stat().st_ino == known:
                # The folder, not the file: what lies beside a database is part of it.
                self.folder.rename(aside)
                warnings.warn(
                    f"The reference cache {self.path} is damaged ({_words(error)}); it now lies in {aside}, and its "
                    "values are computed anew.",
                    stacklevel=2,
                )
            self._connect()
        except (sqlite3.Error, OSError) as second:
            self._give_up(second)

    def _give_up(self, error: Exception) -> None:
        """Go on without storing anything, and say so once."""
        if self._writes:
            warnings.warn(
                f"Log-probs of the reference can't be kept in {self.folder} ({_words(error)}): the run goes on and "
                "computes what is not there already.",
                stacklevel=2,
            )
        self._writes = False


def numbers_of(data: bytes, count: int) -> NDArray[Any]:
    """Return stored values as (count,) floats, of 4 or 8 bytes each."""
    return np.frombuffer(data, dtype=f"<f{len(data) // count}")


def _sound(reference: str, value: Value, length: object, checksum: object) -> bool:
    return (
        isinstance(value.data, bytes)
        and length == value.length
        and checksum == value.checksum(reference)
        and value.is_logprob
    )


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is no database of ours; otherwise it can't be reached, which another moment may mend."""
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or (
        name == "SQLITE_ERROR" and "no such" in str(error)  # a table or column
    )


def _words(error: Exception) -> str:
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)
