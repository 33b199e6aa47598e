"""What scores are a function of, besides the completions: to know whether they must be taken again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from prefopt.errors import RecipeError
from prefopt.models.source import find_model
from prefopt.rewards.config import RewardConfig, ScorerSection
from prefopt.rewards.kinds import ModelSection, PythonSection

_PACKAGES = {"math": "math-verify", "sentiment": "vaderSentiment", "reasoning_gym": "reasoning-gym"}


def reward_identity(config: RewardConfig) -> str:
    """Return a digest (64 hex digits) that changes when scores could: no model is loaded and nothing is run.

    It is of every setting, of the content of files of the user's and of reward models, and of the versions of the
    packages that score. A judge may answer otherwise tomorrow: that it can't know.

    Raises:
        RecipeError: a file or package that is not there.
        ModelError: a reward model that is not there.
    """
    content = {name: _content(section) for name, section in config.scorers.items()}
    whole = json.dumps([config.model_dump(mode="json"), content], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _content(section: ScorerSection) -> Any:
    if isinstance(section, PythonSection):
        path = Path(section.function.rpartition(":")[0]).expanduser()
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise RecipeError(f"function names {path}, which can't be read: {error.strerror}.") from error
    if isinstance(section, ModelSection):
        cache = Path(constants.HF_HOME) / "prefopt"
        source = find_model(
            section.name,
            revision=section.revision,
            remote_code=section.trust_remote_code,
            dtype="float32" if section.dtype == "auto" else section.dtype,
            cache=cache,
        )
        return {path.name: _file(path) for path in sorted(source.folder.iterdir()) if path.is_file()}
    if section.kind in _PACKAGES:
        try:
            return importlib.metadata.version(_PACKAGES[section.kind])
        except importlib.metadata.PackageNotFoundError as error:
            raise RecipeError(f"the scorer {section.kind} needs the package {_PACKAGES[section.kind]}.") from error
    return None


def _file(path: Path) -> str:
    """Return the digest of a file's content; files of the Hub's cache are called by theirs."""
    if path.is_symlink() and path.resolve().parent.name == "blobs":
        return path.resolve().name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
