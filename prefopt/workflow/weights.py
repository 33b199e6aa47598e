"""The weights that runs made: which there are, and the way to load them beside what they are compared with."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants
from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase

from prefopt.errors import RecipeError, RunError
from prefopt.losses.config import LossConfig
from prefopt.models import ReferenceConfig, load_policy
from prefopt.models.adapters import copy_weights
from prefopt.models.config import ModelConfig
from prefopt.models.dtypes import resolve_device, resolve_dtype
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference, build_reference
from prefopt.models.source import Source, find_adapter, find_model
from prefopt.recipe.paths import RECIPE_PATHS, resolved
from prefopt.recipe.source import read
from prefopt.train.checkpoint import checkpoints, missing_parts
from prefopt.workflow.directory import ADAPTER, MODEL, RECIPE, without_weights


@dataclass(frozen=True)
class Weights:
    """One set of weights that a run made, and what it began with."""

    run: Path
    """The directory that was named."""
    label: str
    """For people: the run, and which of its checkpoints or rounds."""
    step: int | None
    """Optimizer steps of a checkpoint, rounds of a run of rounds; None for the weights at the end."""
    folder: Path | None
    """Where the weights lie; None for the model that the run began with."""
    model: ModelConfig
    """That model."""
    reference: ReferenceConfig
    """What the run's recipe compares with: another model, or the one that it began with."""
    seed: int | None
    """Of the run, which decides a new adapter's first weights; None for a model as it is, which gets no new adapter."""
    loss: str | None
    beta: float | None


def weights_of_run(run: Path, *, every_checkpoint: bool = False) -> list[Weights]:
    """Return the weights that a run of `prefopt train` or `prefopt rounds` made, in the order of their making.

    Args:
        run: the run directory.
        every_checkpoint: also those of its checkpoints that are whole; of rounds every round is there anyway.

    Raises:
        RunError: `run` is no run directory, or has no weights yet.
    """
    said = read_run_recipe(run)
    loss = LossConfig.model_validate(said.get("loss") or {}).build()
    model = ModelConfig.model_validate(said["model"])
    reference: ReferenceConfig = TypeAdapter(ReferenceConfig).validate_python(said.get("reference") or {})
    seed = int((said.get("train") or {}).get("seed", 42))
    common: dict[str, Any] = {"run": run, "model": model, "reference": reference, "seed": seed, "loss": loss.name,
                              "beta": float(loss.beta) if loss.needs_reference else None}  # fmt: skip
    found = []
    if "rounds" in said:
        for at, folder in enumerate(sorted(run.glob("round-*/train")), start=1):
            if (weights := _result(folder)) is not None:
                found.append(Weights(label=f"{run.name} round {at}", step=at, folder=weights, **common))
    else:
        if every_checkpoint:
            for folder in checkpoints(run):
                if not missing_parts(folder):
                    step = int(folder.name.rpartition("-")[2])
                    found.append(Weights(label=f"{run.name} step {step}", step=step, folder=folder, **common))
        if (weights := _result(run)) is not None and not _already(found, weights):
            found.append(Weights(label=run.name, step=None, folder=weights, **common))
    if not found:
        if "rounds" in said:
            raise RunError(f"{run} has no trained weights yet; go on with it by prefopt rounds {run / RECIPE}.")
        raise without_weights(run)
    return found


def start_of(weights: Weights) -> Weights:
    """Return the model that a run began with, as a set of weights of its own."""
    return replace(weights, label="start", step=0, folder=None, loss=None, beta=None)


def read_run_recipe(run: Path) -> dict[str, Any]:
    """Return the recipe that a run of either kind began with, as it was saved. Raises `RunError` without one."""
    try:
        said = yaml.safe_load((run / RECIPE).read_text())
    except OSError as error:
        raise RunError(
            f"{run} is no run directory (it has no {RECIPE}); name one that `prefopt train` or `prefopt rounds` made."
        ) from error
    if not isinstance(said, dict) or "model" not in said:
        raise RunError(f"{run / RECIPE} is not the recipe of a run of a policy: it has no section model.")
    return said


def weights_named(name: str) -> Weights:
    """Return what a person names: the end of a run, the model of a recipe as it is, or a model by name or folder.

    Raises:
        RunError: a run has no weights yet.
        RecipeError: a recipe without a model section.
    """
    path = Path(name)
    if (path / RECIPE).is_file():
        return weights_of_run(path)[-1]
    if path.suffix in (".yaml", ".yml"):
        source = resolved(read(path), RECIPE_PATHS)
        if "model" not in source.data:
            raise RecipeError(f"{path} has no section model, so it names nothing to sample from.")
        model = ModelConfig.model_validate(source.data["model"])
    else:
        model = ModelConfig.model_validate({"name": name})
    return as_it_is(path, model)


def as_it_is(named: Path, model: ModelConfig) -> Weights:
    """Return a model that no run made: `named` is what a person wrote, a recipe or the model itself."""
    label = named.stem if named.suffix else named.name
    return Weights(named, label, None, None, model, ReferenceConfig(), None, None, None)


@dataclass(frozen=True)
class Loaded:
    """A policy, and what it is compared with."""

    packed: PackedModel
    tokenizer: PreTrainedTokenizerBase
    reference: Reference | None


def load_weights(weights: Weights, reference: ReferenceConfig | None = None) -> Loaded:
    """Load weights, and what they are compared with. Arguments and errors as of `load_beside`."""
    return load_beside(weights.model, reference, folder=weights.folder, seed=weights.seed)


def load_beside(
    model: ModelConfig, reference: ReferenceConfig | None, *, folder: Path | None, seed: int | None
) -> Loaded:
    """Load the model that a run began with, build the reference from it, and then copy the run's weights into it.

    That is what training itself did, in its dtypes, so what is measured here is what is measured at a run's end.

    Args:
        model: what the run began with.
        reference: what the policy is compared with, `auto` being what the run began with; None: with nothing.
        folder: where the run's weights lie; None for the model that it began with.
        seed: of a new adapter's first weights; None for a model as it is, which gets no new adapter.

    Raises:
        ModelError: the model is not there any more, or the weights are not of it.
        RecipeError: the reference is none for this model.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the policy has dropout")  # which is off while anything is measured
        policy, tokenizer = load_policy(model, trainable=seed is not None, seed=seed or 0)
    packed = PackedModel(policy)
    built = None if reference is None else build_reference(reference, packed, needed=True, tokenizer=tokenizer)
    if folder is not None:
        copy_weights(policy, folder)
    return Loaded(packed, tokenizer, built)


def divergence_from(reference: ReferenceConfig) -> ReferenceConfig:
    """Return what a run's divergence is measured to: where it began, or the other model that its recipe names.

    Training may compare with something else, as with the base of an adapter that it continues.
    """
    return reference if reference.kind == "model" else ReferenceConfig()


def _result(folder: Path) -> Path | None:
    return next((folder / name for name in (MODEL, ADAPTER) if (folder / name).is_dir()), None)


def _already(found: Sequence[Weights], result: Path) -> bool:
    """Whether the weights at the end are those of the last checkpoint, file by file."""
    last = found[-1].folder if found else None
    return last is not None and weights_hash(last) == weights_hash(result)


def weights_hash(folder: Path) -> str:
    """Return a hash of the bytes of a folder's weights, 64 hexadecimal digits."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def check_model(weights: Weights) -> None:
    """Raise `ModelError` where the model that these weights belong to is not there: before anything is computed."""
    _find(weights.model, weights.model.name, weights.model)


def _find(model: ModelConfig, name: str, said: Any) -> Source:
    dtype = resolve_dtype(model.dtype, resolve_device(model.device), weights_train=False)
    return find_model(
        name,
        revision=said.revision,
        remote_code=said.trust_remote_code,
        dtype=str(dtype).removeprefix("torch."),
        cache=Path(constants.HF_HOME) / "prefopt",
    )


def reference_hash(weights: Weights) -> str:
    """Return a hash of what a run's divergence is measured to: base weights, a starting adapter, quantization.

    Raises:
        ModelError: the model is not there any more.
    """
    other = weights.reference if weights.reference.kind == "model" else None
    said: Any = weights.model if other is None else other
    source = _find(weights.model, weights.model.name if other is None else str(other.model), said)
    adapter = weights.model.adapter if other is None else None
    quantization = None if said.quantization is None else said.quantization.model_dump(mode="json")
    parts = [
        weights_hash(source.folder),
        None if adapter is None else weights_hash(find_adapter(adapter).folder),
        quantization,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
