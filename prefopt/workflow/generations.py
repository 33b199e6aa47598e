"""Samples of finished runs: which prompts, which weights, what was drawn and what it is worth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants
from pydantic import TypeAdapter, ValidationError

from prefopt.data import Example
from prefopt.errors import DataError, RecipeError, RunError
from prefopt.losses.config import LossConfig
from prefopt.models import ReferenceConfig, load_policy
from prefopt.models.adapters import copy_weights
from prefopt.models.config import ModelConfig
from prefopt.models.dtypes import resolve_device, resolve_dtype
from prefopt.models.packed import PackedModel
from prefopt.models.references import build_reference
from prefopt.models.scoring import example_divergences
from prefopt.models.source import Source, find_adapter, find_model
from prefopt.recipe.paths import RECIPE_PATHS, resolved
from prefopt.recipe.source import read
from prefopt.rewards import Attempt, Reward, RewardConfig, ScoreFailure, absolute_files, make_attempt, opens_thinking
from prefopt.sampling import HfEngine, Prompt, Rollout, Sampler, prompt_key, read_prompts
from prefopt.train.checkpoint import checkpoints, missing_parts
from prefopt.workflow.directory import ADAPTER, MODEL, RECIPE


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
    seed: int
    """Of the run, which decides a new adapter's first weights."""
    loss: str | None
    beta: float | None


@dataclass(frozen=True)
class Drawn:
    """A sample, how far it is from the reference, and what it is worth."""

    rollout: Rollout
    kl: float
    """Sum over its tokens of the exact divergence of the next token, nats."""
    score: float | None
    failure: str | None
    """Why there is no score."""


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
        raise RunError(f"{run} has no trained weights yet; finish it by prefopt train {run / RECIPE} --resume.")
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


def load_weights(weights: Weights) -> tuple[PackedModel, Any, Any]:
    """Return the policy with these weights, its tokenizer, and the reference: what the run began with.

    Where the run's recipe names another model to compare with, that is the reference.
    """
    model, tokenizer = load_policy(weights.model, seed=weights.seed)
    packed = PackedModel(model)
    wanted: Any = weights.reference if weights.reference.kind == "model" else "auto"
    reference = build_reference(wanted, packed, needed=True, tokenizer=tokenizer)
    if weights.folder is not None:
        copy_weights(model, weights.folder)
    return packed, tokenizer, reference


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
    return Weights(path, path.stem if path.suffix else path.name, None, None, model, ReferenceConfig(), 42, None, None)


def load_sampler(weights: Weights) -> tuple[PackedModel, Any]:
    """Return the policy with these weights and its tokenizer, without anything to compare it with."""
    if weights.folder is None:
        model, tokenizer = load_policy(weights.model, trainable=False)
    else:
        model, tokenizer = load_policy(weights.model, seed=weights.seed)
        copy_weights(model, weights.folder)
    return PackedModel(model), tokenizer


def run_prompts(
    run: Path | None,
    tokenizer: Any,
    *,
    source: str | Sequence[str] | None = None,
    column: str | None = None,
    limit: int | None = None,
) -> list[Prompt]:
    """Return the prompts of a file, or those that a run (None: there is none) holds out, each once.

    Of preferences (a training run's `data.eval`) the same prompt stands in many rows: the first one counts.

    Raises:
        RecipeError: the run holds nothing out and no file is named.
        DataError: the file can't be read, or has no prompts.
    """
    said = {} if run is None else read_run_recipe(run)
    rounds = "rounds" in said
    held_out = (said.get("prompts") or {}).get("eval") if rounds else (said.get("data") or {}).get("eval")
    named = source if source is not None else held_out
    if named is None:
        raise RecipeError(
            f"{run or 'A model by itself'} holds no prompts out (there is no data.eval); name some by --prompts FILE."
        )
    own_column = (said.get("prompts") or {}).get("column") if rounds and source is None else None
    found = list(read_prompts(named, tokenizer, column=column or own_column or "prompt"))
    if source is None and not rounds:
        found = list({prompt_key(prompt.prompt): prompt for prompt in reversed(found)}.values())[::-1]
    return found[:limit]


def read_reward(scorer: str | None, file: Path | None, runs: Sequence[Path]) -> RewardConfig:
    """Return what samples are scored by: a kind of scorer by name, a section in a YAML file, or the first rounds' own.

    Args:
        scorer: a kind with its defaults, such as "sentiment".
        file: a YAML file that is a `score` section, or has one (a recipe of rounds).
        runs: where neither is given, the first of these that is a run of rounds says it.

    Raises:
        RecipeError: both or nothing is given, or the section is wrong.
    """
    if scorer is not None and file is not None:
        raise RecipeError("--scorer and --reward are both given; name one of them.")
    where, section, base = "--scorer", scorer, Path.cwd()
    if file is not None:
        where, base = str(file), file.parent
        section = read_yaml(file)
        if isinstance(section, dict):
            section = section.get("score", section.get("reward", section))
    elif scorer is None:
        own = next(((run, said) for run in runs if "score" in (said := read_run_recipe(run))), None)
        if own is None:
            raise RecipeError(
                "Nothing says what samples are worth: name a scorer by --scorer (such as sentiment) or a file with "
                "a score section, as recipes of rounds have it, by --reward FILE."
            )
        where, section = str(own[0] / RECIPE), own[1]["score"]
    try:
        return RewardConfig.model_validate(absolute_files(section, base))
    except ValidationError as error:
        more = f"; give the keys of {scorer} by --reward FILE" if section is scorer else ""
        raise RecipeError(f"{where}: {first_problem(error)}{more}") from None


def read_yaml(file: Path) -> Any:
    """Return what a YAML file holds. Raises `RecipeError` where it is missing, or no YAML."""
    try:
        return yaml.safe_load(file.read_text())
    except OSError as error:
        raise RecipeError(f"{file} can't be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{file} can't be read as YAML: {' '.join(str(error).split())[:200]}") from error


def first_problem(error: ValidationError) -> str:
    """Return the first thing that is wrong with a section: key and what is wrong with it."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def draw(
    packed: PackedModel,
    tokenizer: Any,
    reference: Any,
    prompts: Sequence[Prompt],
    *,
    n: int,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 64,
    token_budget: int = 8192,
) -> list[tuple[Rollout, float]]:
    """Return n samples of each prompt at temperature 1, in order, each with its sequence KL to the reference, nats.

    Raises:
        DataError: a prompt can't be encoded, or leaves no room for a completion.
        ModelError: a log-prob is not finite.
    """
    engine = HfEngine(packed, tokenizer, Sampler(max_new_tokens), batch_size=batch_size, token_budget=token_budget)
    rollouts = engine.sample(prompts, n=n, seed=seed)
    examples = [Example(one.prompt_ids, (one.token_ids,)) for one in rollouts]
    kl, policy, compared = example_divergences(examples, packed, reference, token_budget)
    return [
        (replace(one, policy=float(policy[at]), reference=float(compared[at])), float(kl[at]))
        for at, one in enumerate(rollouts)
    ]


def score(
    drawn: Sequence[tuple[Rollout, float]],
    prompts: Sequence[Prompt],
    config: RewardConfig,
    reward: Reward,
    tokenizer: Any,
) -> list[Drawn]:
    """Return the samples with their scores; one that the scorer refuses has the reason instead."""
    attempts = attempts_of([rollout for rollout, _ in drawn], prompts, config, tokenizer)
    found = []
    for (rollout, kl), said in zip(drawn, reward.score(attempts), strict=True):
        if isinstance(said, ScoreFailure):
            found.append(Drawn(rollout, kl, None, said.reason))
        else:
            found.append(Drawn(rollout, kl, float(said), None))
    return found


def attempts_of(
    rollouts: Sequence[Rollout], prompts: Sequence[Prompt], config: RewardConfig | None, tokenizer: Any
) -> list[Attempt]:
    """Return what a scorer sees of samples, their thinking split off as the section says."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    thinking = None if config is None else config.thinking
    attempts = []
    for rollout in rollouts:
        prompt = by_id[rollout.prompt_id]
        opened = thinking is not None and opens_thinking(tokenizer.decode(list(rollout.prompt_ids)), thinking.open)
        attempts.append(
            make_attempt(prompt.prompt, rollout.text, row=prompt.row, thinking=thinking, opened=opened, rollout=rollout)
        )
    return attempts


def check_columns(prompts: Sequence[Prompt], config: RewardConfig, source: Any) -> None:
    """Raise `DataError` when a row lacks a column that a scorer needs."""
    for prompt in prompts:
        if missing := sorted(config.columns - prompt.row.keys()):
            raise DataError(
                f"{source}: the scorer needs the column '{missing[0]}' of every row, and one has "
                f"{', '.join(map(str, prompt.row)) or 'no other column than the prompt'}."
            )


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
