"""The recipe: one YAML file that says everything about a run, put together from the section that each room owns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field, model_validator

from prefopt.config import Section
from prefopt.data.config import DataConfig
from prefopt.errors import RecipeError
from prefopt.eval.config import EvalConfig
from prefopt.losses.config import LossConfig
from prefopt.models.config import ModelConfig
from prefopt.models.reference_config import ReferenceConfig
from prefopt.recipe.paths import RECIPE_PATHS
from prefopt.recipe.reading import read_recipe
from prefopt.recipe.source import write
from prefopt.train.config import AlarmConfig, TrainConfig

__all__ = ["Recipe", "contradictions", "dump_recipe", "load_recipe"]


class Recipe(Section):
    """Everything a run needs to know. Raises `RecipeError` for sections that contradict each other."""

    model: ModelConfig = Field(description="Which model learns, in which precision, with which adapter.")
    data: DataConfig = Field(description="Which preferences it learns from, and which are held out.")
    loss: LossConfig = Field(default_factory=lambda: LossConfig.model_validate({}), description="What it minimises.")
    reference: ReferenceConfig = Field(ReferenceConfig(), description="What the policy is compared with.")
    train: TrainConfig = Field(description="How it trains, and where the run directory lies.")
    alarms: AlarmConfig = Field(AlarmConfig(), description="When it says that something goes wrong.")
    eval: EvalConfig = Field(EvalConfig(), description="How it is evaluated before and after.")

    @model_validator(mode="after")
    def _check_together(self) -> Recipe:
        for sentence in _contradictions(self):
            raise RecipeError(sentence)
        return self


def load_recipe(path: str | Path, overrides: Iterable[str] = (), *, check_files: bool = True) -> Recipe:
    """Read, complete and validate the recipe at `path`; no model and no data is loaded.

    Args:
        path: a YAML file. Relative paths of inputs in it count from its folder, `train.output_dir` and paths in
            overrides from the working directory.
        overrides: `section.key=value`, the value in YAML, as in `train.learning_rate=1e-5`.
        check_files: whether a data file or model folder that is missing is an error. The recipe of a finished run
            is read without, so that the run may move to another machine.

    Raises:
        RecipeError: one sentence a line for everything that is wrong: file and line, key, value, what is allowed.
    """
    return read_recipe(Recipe, Path(path), overrides, RECIPE_PATHS, check_files=check_files)


def dump_recipe(recipe: Section) -> str:
    """Return the recipe as YAML, defaults and absolute paths included; `load_recipe` of it gives an equal recipe."""
    return write(recipe.model_dump(mode="json"))


def _contradictions(recipe: Recipe) -> Iterator[str]:
    """Yield a sentence for every pair of settings of different sections that can't stand together."""
    yield from contradictions(recipe.model, recipe.loss, recipe.reference, recipe.train)
    if recipe.data.streaming and int((recipe.train.model_extra or {}).get("max_steps", -1)) < 1:
        yield (
            "data.streaming is true, and nobody knows how long a stream is: write train.max_steps, the number of steps "
            "to train, or data.streaming: false."
        )
    if recipe.data.eval is None:
        if (strategy := str((recipe.train.model_extra or {}).get("eval_strategy", "no"))) not in (
            "no",
            "IntervalStrategy.NO",
        ):
            yield f"train.eval_strategy is {strategy}, but there is no data.eval to evaluate on; name a file there."
        if unused := [
            f"eval.{key}" for key in ("slice_by", "human", "agreement") if getattr(recipe.eval, key) is not None
        ]:
            yield f"{unused[0]} slices held-out pairs, but there is no data.eval; name a file there, or leave it out."


def contradictions(
    model: ModelConfig, loss_section: LossConfig, reference: ReferenceConfig, train: TrainConfig
) -> Iterator[str]:
    """Yield a sentence for every two settings of what trains that can't stand together."""
    loss, kind = loss_section.build(), reference.kind
    if loss.needs_reference and kind == "none":
        yield (
            f"reference.kind is none, but the loss {loss.name} compares the policy with a reference; "
            "write reference: auto, or choose a loss that needs none."
        )
    if reference.cache is True and "divergence" in loss.extras:
        yield (
            f"reference.cache is true, but the loss {loss.name} compares whole distributions, and a cache holds "
            "log-probs of single tokens; leave reference.cache out, or choose another loss."
        )
    if kind == "adapter_off" and model.lora is None:
        yield (
            "reference.kind is adapter_off, but model.lora is null: without an adapter there is none to switch off; "
            "write reference: auto, or reference: {model: NAME}."
        )
    if train.shard_weights and model.compile:
        yield (
            "model.compile and train.shard_weights are both true, but layers whose weights lie in parts are not "
            "compiled; leave one of the two out."
        )
    if (train.model_extra or {}).get("deepspeed") and model.compile:
        yield (
            "model.compile is true and train.deepspeed is set, but the engine lays the weights anew, which compiled "
            "layers were not tried with; leave one of the two out."
        )
    if train.shard_weights and train.activation_offload:
        yield (
            "train.activation_offload and train.shard_weights are both true, but weights that are gathered for a layer "
            "would be taken for activations and moved; leave one of the two out."
        )
    if train.shard_weights and model.quantization is not None:
        yield (
            "train.shard_weights is true, but quantized weights (model.quantization) can't be cut into parts; leave "
            "one of the two out: every process can hold the quantized model."
        )
    if train.shard_weights and (kind == "moving" or reference.cache is True):
        what = "reference.kind is moving" if kind == "moving" else "reference.cache is true"
        yield (
            f"{what} and train.shard_weights is true, but processes that hold weights in parts must all pass through "
            "the model together, which such a reference does not; leave one of the two out."
        )
