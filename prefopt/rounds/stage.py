"""A stage: a function from files to files, which is done when its manifest is renamed into place."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefopt.rounds.files import bytes_hash, content_hash, read_json, write_text

FORMAT = 1
"""Raised whenever a stage makes something else of the same inputs, so that what is there is made again."""


@dataclass(frozen=True)
class Output:
    """What a stage wrote."""

    content: str
    """Hash of what must be the same after a resume: token ids, scores, groups, tensors."""
    bytes: str
    """sha256 of the file as it lies there: tells whether it is damaged."""


@dataclass(frozen=True)
class Manifest:
    """What a finished stage was made of, and what came of it. Times and hosts stand in the run's events."""

    stage: str
    key: str
    inputs: Mapping[str, str]
    """Name -> content hash."""
    parameters: Mapping[str, Any]
    seed: int
    counts: Mapping[str, Any]
    outputs: Mapping[str, Output]
    """File in the stage's folder -> what it holds."""
    format: int
    version: str
    """Of prefopt; for people, no part of the key."""

    def content(self, name: str) -> str:
        """Return the content hash of an output: what the next stage has as its input."""
        return self.outputs[name].content


@dataclass(frozen=True)
class Stage:
    """One stage that is to be done: where, from which inputs, with which parameters.

    Its key is a hash of all that but the folder, so a stage whose inputs and parameters are what they were is done
    already, wherever the change of a recipe was.
    """

    name: str
    folder: Path
    inputs: Mapping[str, str]
    """Name -> content hash."""
    parameters: Mapping[str, Any]
    """JSON-able."""
    seed: int = 0

    @cached_property
    def key(self) -> str:
        """32 hexadecimal digits."""
        said = [FORMAT, self.name, dict(self.inputs), self._parameters, self.seed]
        return content_hash([said])[:32]

    @property
    def manifest(self) -> Path:
        """Where its manifest lies once it is done."""
        return self.folder / f"{self.name}.json"

    def done(self) -> Manifest | None:
        """Return the manifest if the stage is done with these inputs and parameters and its files are sound.

        A manifest or a file that is damaged is a warning, and the stage is not done.
        """
        found = read_manifest(self.manifest)
        if found is None or found.key != self.key:
            return None
        for name, output in found.outputs.items():
            if bytes_hash(self.folder / name) != output.bytes:
                what = "is damaged" if (self.folder / name).exists() else "is missing"
                warnings.warn(f"{self.folder / name} {what}, so {self.name} is done again.", stacklevel=2)
                return None
        return found

    def changes(self) -> list[str]:
        """Return which inputs and parameters differ from those that the folder's manifest was made with, by name."""
        found = read_manifest(self.manifest)
        if found is None:
            return []
        pairs = [
            (_flat(found.parameters), _flat(self._parameters)),
            (found.inputs, self.inputs),
            ({"seed": found.seed}, {"seed": self.seed}),
        ]
        return sorted({name for old, new in pairs for name in {*old, *new} if old.get(name, "") != new.get(name, "")})

    def commit(self, outputs: Mapping[str, str], counts: Mapping[str, Any]) -> Manifest:
        """Say that the stage is done. Its files must be there, whole and flushed.

        Args:
            outputs: file in the folder -> content hash.
            counts: what to tell people of it; JSON-able.

        Raises:
            RunError: the manifest can't be written.
        """
        made = {name: Output(content, bytes_hash(self.folder / name)) for name, content in outputs.items()}
        found = Manifest(
            self.name, self.key, self.inputs, self._parameters, self.seed, counts, made, FORMAT, version("prefopt")
        )
        write_text(self.manifest, json.dumps(asdict(found), indent=1, sort_keys=True))
        return found

    @cached_property
    def _parameters(self) -> dict[str, Any]:
        """The parameters as they come back from a file: tuples are lists there."""
        said: dict[str, Any] = json.loads(json.dumps(dict(self.parameters)))
        return said


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest in a file; None where there is none, with a warning where it can't be read."""
    if not path.is_file():
        return None
    try:
        said = dict(read_json(path))
        said["outputs"] = {name: Output(**output) for name, output in said["outputs"].items()}
        return Manifest(**said)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        warnings.warn(f"{path} is damaged ({error}), so what it speaks of is made again.", stacklevel=2)
        return None


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, child in tree.items() for k, v in _flat(child, f"{prefix}.{key}" if prefix else key).items()}
