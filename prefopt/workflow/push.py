"""What a run made, on the Hugging Face Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from prefopt.errors import RunError
from prefopt.models.source import public_name
from prefopt.train.checkpoint import MANIFEST
from prefopt.workflow.directory import ADAPTER, MODEL, RECIPE, without_weights
from prefopt.workflow.finished import refuse_rounds


def weights_of(path: Path) -> Path:
    """Return the folder with the weights: of a finished run its adapter or model, otherwise the folder itself.

    Raises `RunError` when there are none.
    """
    if (path / RECIPE).is_file():
        for name in (ADAPTER, MODEL):
            if (path / name).is_dir():
                return path / name
        refuse_rounds(path)
        raise without_weights(path)
    if not any(path.glob("*.safetensors")):
        raise RunError(f"{path} holds no weights: name a finished run, or a folder that `prefopt merge` wrote.")
    return path


def push_folder(folder: Path, repo: str, *, public: bool = False, revision: str | None = None) -> str:
    """Upload a folder with weights to the Hub as one commit and return its address.

    Args:
        folder: with weights and a model card.
        repo: `owner/name`; it is made where there is none.
        public: whether a new repository may be seen by everybody; one that is there stays as it is.
        revision: a branch to commit to, instead of the main one.

    Raises:
        RunError: nobody is logged in, the Hub can't be reached, or it refuses.
    """
    api = huggingface_hub.HfApi()
    try:
        made = api.create_repo(repo, private=not public, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        with _for_others(folder) as shown:
            commit = api.upload_folder(
                repo_id=made.repo_id,
                folder_path=shown,
                ignore_patterns=[MANIFEST],
                revision=revision,
                commit_message="Weights and card by prefopt",
            )
    except HFValidationError as error:
        raise RunError(f"'{repo}' is no name of a repository on the Hub: write owner/name.") from error
    except LocalTokenNotFoundError as error:
        raise RunError("the Hub asks who you are: log in with `hf auth login`, with a token that may write.") from error
    except (HfHubHTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"{folder} could not be pushed to {repo}: {reason}") from error
    return str(commit.commit_url)


@contextmanager
def _for_others(folder: Path) -> Iterator[Path]:
    """Give the folder, or a copy whose adapter names its base as others know it and not by a path on this machine."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    base = config.get("base_model_name_or_path")
    if not base or public_name(base) == base:
        yield folder
        return
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / folder.name
        shutil.copytree(folder, copy)
        config["base_model_name_or_path"] = public_name(base)
        (copy / file.name).write_text(json.dumps(config, indent=2), encoding="utf-8")
        yield copy
