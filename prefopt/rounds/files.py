"""What files hold, as a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from prefopt.data.files import written
from prefopt.models.references.identity import digest


def write_text(final: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written(final) as aside:
        aside.write_text(text)


def bytes_hash(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's files and their names; of what is not there, an empty string."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return content_hash([file.relative_to(path).as_posix(), bytes_hash(file)] for file in files)
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(records: Iterable[Any]) -> str:
    """Return the sha256 of JSON-able records in their order: equal for equal numbers and texts, bit for bit."""
    found = hashlib.sha256()
    for record in records:
        found.update(json.dumps(record, sort_keys=True).encode() + b"\n")
    return found.hexdigest()


def weights_hash(folder: Path) -> str:
    """Return a hash of the tensors that a saved adapter or model holds: names, dtypes, shapes and bits."""
    tensors = {
        name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
    return digest(tensors.items())


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file. Raises `ValueError` when it holds none, `OSError` when it can't be read."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found
