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

SCORES = 1
"""Raised whenever a scorer of prefopt itself gives another score to the same completion."""
_PACKAGES: dict[str, tuple[str, ...]] = {
    "math": ("math-verify", "latex2sympy2_extended", "sympy"),
    "sentiment": ("vaderSentiment",),
    "reasoning_gym": ("reasoning-gym", "sympy"),
}
"""Kind -> the packages whose versions decide what it says."""


def reward_identity(config: RewardConfig) -> str:
    """Return a digest (64 hex digits) that changes when scores could: no model is loaded and nothing is run.

    It is of every setting that decides a score, of the content of files of the user's and of reward models, and of the
    versions of prefopt's scorers and of the packages that score. A judge may answer otherwise tomorrow, and another
    version of torch may change the last bits of a reward model's scores: those it can't know.

    Raises:
        RecipeError: a file or package that is not there.
        ModelError: a reward model that is not there.
    """
    content = {name: _content(section) for name, section in config.scorers.items()}
    whole = json.dumps([SCORES, score_settings(config), content], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def score_settings(config: RewardConfig) -> dict[str, Any]:
    """Return the section without what decides no score, such as a judge's budget and how often it is tried again."""
    said = config.model_dump(mode="json")
    for name, part in config.scorers.items():
        said["scorers"][name] = {key: value for key, value in said["scorers"][name].items() if key not in part.free}
    return said


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
        return {package: _version(section.kind, package) for package in _PACKAGES[section.kind]}
    return None


def _version(kind: str, package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise RecipeError(f"the scorer {kind} needs the package {package}.") from error


def _file(path: Path) -> str:
    """Return the digest of a file's content; files of the Hub's cache are called by theirs."""
    if path.is_symlink() and path.resolve().parent.name == "blobs":
        return path.resolve().name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
