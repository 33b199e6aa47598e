"""Tokenized data kept on disk: named by everything that it depends on, written whole or not at all, checked when read.

An entry is a folder: the columns as Arrow files, the rejected rows, and a record of what the load reported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import tokenizers
import transformers
from huggingface_hub import constants

from prefopt.data.arrow import FILES, read_columns
from prefopt.data.columns import Columns
from prefopt.data.config import DataOptions
from prefopt.data.rejected import FILE_NAME
from prefopt.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever the same rows come out differently, so that old entries are not used."""
SMALL = 1 << 20
"""Bytes of a source below which it is quicker to read it again."""
UNUSED_DAYS = 30
"""Entries that no load has used for so long are removed when another one is written."""
RECORD = "record.json"
# Options that don't change what is read.
_IDLE = frozenset({"max_rejected", "cache", "workers"})


def default_folder() -> Path:
    """Return where entries lie: beside what Hugging Face libraries keep."""
    return Path(constants.HF_HOME) / "prefopt" / "data"


def entry_key(sources: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, options: DataOptions) -> str:
    """Return the name of the entry for sources (name, what identifies their content), a tokenizer and options."""
    template = tokenizer.chat_template
    described = {
        "format": FORMAT,
        "libraries": [transformers.__version__, tokenizers.__version__],
        "sources": [list(source) for source in sources],
        "tokenizer": [type(tokenizer).__name__, tokenizer.backend_tokenizer.to_str(), template],
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "date": date.today().isoformat() if "strftime_now" in str(template) else "",
        "options": options.model_dump(mode="json", exclude=set(_IDLE)),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:40]


class Entry:
    """One place in the cache, filled or not."""

    def __init__(self, folder: Path, key: str) -> None:
        self.path = folder / key

    def read(self) -> tuple[Columns, dict[str, Any]] | None:
        """Return what is kept: columns that lie on disk and the record; None where there is nothing that is whole."""
        if not self.path.is_dir():
            return None
        try:
            record = _checked_record(self.path)
            columns = read_columns(self.path)
            os.utime(self.path)
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
            if self.path.is_dir():  # and not removed by another process just now
                _log.warning("The tokenized data in %s is damaged (%s); it is made anew.", self.path, error)
            return None
        return columns, record

    @property
    def rejected(self) -> Path:
        """The rejected rows of the load."""
        return self.path / FILE_NAME

    @contextmanager
    def filling(self) -> Iterator[Path | None]:
        """Give a folder to fill, and remove what is left of it in the end; None where none can be made."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=self.path.parent))
        except OSError as error:
            _log.warning("Tokenized data can't be kept in %s: %s.", self.path.parent, error.strerror or error)
            yield None
            return
        try:
            yield draft
        except OSError as error:
            raise DataError(
                f"Tokenized data can't be written to {draft}: {error.strerror or error}. Make room there, set HF_HOME "
                "to another disk, or load with data.cache=false."
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def keep(self, draft: Path, record: Mapping[str, Any]) -> None:
        """Let a folder that holds columns become the entry, in one step; another process may have been quicker."""
        (draft / FILE_NAME).touch()
        files = {name: _digest(draft / name) for name in (*FILES, FILE_NAME)}
        body = json.dumps({**record, "files": files})
        (draft / RECORD).write_text(hashlib.sha256(body.encode()).hexdigest() + "\n" + body, encoding="utf-8")
        for _ in range(3):
            try:
                draft.rename(self.path)
            except OSError:  # there is one
                if self.read() is not None:
                    break
                with tempfile.TemporaryDirectory(prefix=".damaged-", dir=self.path.parent) as aside:
                    _move(self.path, Path(aside) / "entry")
            else:
                break
        _remove_unused(self.path.parent)


def _checked_record(path: Path) -> dict[str, Any]:
    digest, _, body = (path / RECORD).read_text(encoding="utf-8").partition("\n")
    if hashlib.sha256(body.encode()).hexdigest() != digest:
        raise ValueError(f"{RECORD} is not what was written")
    record: dict[str, Any] = json.loads(body)
    for name, expected in record["files"].items():
        if _digest(path / name) != expected:
            raise ValueError(f"{name} is not what was written")
    return record


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move(path: Path, target: Path) -> None:
    try:
        path.rename(target)
    except FileNotFoundError:
        return  # another process did


def _remove_unused(folder: Path) -> None:
    """Remove entries that nobody uses, and drafts that a killed process left."""
    for path in folder.iterdir():
        days = 1 if path.name.startswith(".") else UNUSED_DAYS
        try:
            if time.time() - path.stat().st_mtime > days * 86400:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # another process removed it
