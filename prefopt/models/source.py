"""Find the files of a model, tokenizer or adapter: a directory, a .gguf file, or a snapshot of a Hub repository."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from prefopt.errors import ModelError
from prefopt.models.gguf import converted, packaged_gguf

_WANTED = ("*.json", "*.jinja", "*.model", "*.txt", "*.safetensors")
_UNWANTED = ("*/*", "consolidated*.safetensors", "*.fp16.safetensors", "*.bf16.safetensors")
"""Other copies of the same weights (ONNX, original, variants) that a repository may hold."""

_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)[/\\]snapshots")
"""A folder of the Hub's own cache, which says whose it is."""
_ON_HUB = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Where a model's files lie on this machine, and what it is called."""

    name: str
    """What the user wrote: goes into saved configurations, so that another machine can find the model."""
    folder: Path
    """A directory in Hugging Face format."""


def find_model(name: str, *, revision: str | None, remote_code: bool, dtype: str, cache: Path) -> Source:
    """Return the directory that holds the model called `name`, downloading or converting it once if need be.

    Args:
        name: a directory, a .gguf file, or a Hub name; a Hub name whose GGUF file an installed package ships is
            taken from there unless a revision is asked for.
        revision: of the Hub repository.
        remote_code: also fetch the Python files of the repository.
        dtype: what a GGUF file is converted to.
        cache: folder of converted GGUF files.

    Raises:
        ModelError: when there is no such model, it can't be fetched, or its weights are not safetensors.
    """
    gguf = Path(name).expanduser() if name.endswith(".gguf") else None
    if gguf is None and revision is None and not Path(name).is_dir():
        gguf = packaged_gguf(name)
    if gguf is not None:
        if not gguf.is_file():
            raise ModelError(f"there is no file {gguf}: check model.name, or name a model on the Hugging Face Hub.")
        return Source(name, converted(gguf, dtype=dtype, cache=cache))
    folder = find_folder(name, "model", revision=revision, remote_code=remote_code)
    _check_model_folder(name, folder)
    return Source(name, folder)


def public_name(name: str) -> str:
    """Return what a model is called elsewhere: its name on the Hub where that is known, else the last of its path."""
    if cached := _CACHED.search(name):
        return "/".join(cached.groups())
    path = Path(name).expanduser()
    if not path.is_dir():
        return path.name if path.is_absolute() or name.startswith((".", "~")) or name.endswith(".gguf") else name
    try:
        said = json.loads((path / "config.json").read_text()).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        said = None
    return said if isinstance(said, str) and _ON_HUB.fullmatch(said) else path.resolve().name


def find_adapter(name: str) -> Source:
    """Return the directory of a PEFT adapter; raise `ModelError` when it is none or its weights are a pickle."""
    folder = find_folder(name, "adapter", revision=None, remote_code=False)
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{name} is not a PEFT adapter: it has no adapter_config.json.")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"the adapter {name} has no adapter_model.safetensors; prefopt never loads pickled weights (.bin): "
            "save the adapter again with a current version of PEFT."
        )
    return Source(name, folder)


def find_folder(name: str, what: str, *, revision: str | None, remote_code: bool) -> Path:
    """Return a local directory called `name`, or the snapshot of the Hub repository of that name."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{name} is a file; a {what} is a directory, a name on the Hugging Face Hub or a .gguf file.")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no directory {name}: check the path, or write a name on the Hugging Face Hub.")
    return _snapshot(name, what, revision, remote_code)


def _snapshot(name: str, what: str, revision: str | None, remote_code: bool) -> Path:
    wanted = [*_WANTED, "*.py"] if remote_code else list(_WANTED)
    at = f" at revision {revision}" if revision else ""
    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=wanted, ignore_patterns=list(_UNWANTED)
        )
    except GatedRepoError as error:
        raise ModelError(
            f"the {what} {name} needs its owner's permission: ask for it on https://huggingface.co/{name}, then log in "
            "with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"the {what} {name} has no revision {revision} on the Hugging Face Hub.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no {what} {name} on the Hugging Face Hub and no such directory here (a private one needs "
            "`hf auth login`)."
        ) from error
    except HFValidationError as error:
        raise ModelError(f"'{name}' is neither a directory here nor a name that the Hub allows.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"the {what} {name}{at} is not on this machine and the Hugging Face Hub can't be reached: go online once, "
            "or name a directory or a .gguf file."
        ) from error
    return Path(found)


def _check_model_folder(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
            raise ModelError(
                f"{name} is an adapter, not a model: write {base or 'its base model'} as model.name and {name} as "
                "model.adapter."
            )
        raise ModelError(f"{name} is not a model in Hugging Face format: it has no config.json.")
    if not any(folder.glob("*.safetensors")):
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        held = f"only pickled ones ({pickles[0].name})" if pickles else "none at all"
        raise ModelError(
            f"{name} has no weights in safetensors format, {held}; prefopt never loads a pickle, since it can run any "
            "code: save the model as safetensors, or name a revision that has them."
        )
