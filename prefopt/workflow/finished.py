"""The way back into a run: what it produced, and what that is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.errors import RunError
from prefopt.models import ReferenceConfig, load_policy
from prefopt.models.adapters import save_weights
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.recipe import Recipe, load_recipe
from prefopt.recipe.source import read
from prefopt.train.checkpoint import staged
from prefopt.workflow.directory import ADAPTER, MODEL, RECIPE, without_weights
from prefopt.workflow.weights import as_it_is, load_weights, weights_of_run


def save_result(
    model: Any, tokenizer: PreTrainedTokenizerBase, run: Path, weights: dict[str, Tensor] | None = None
) -> Path:
    """Write the adapter (or, after full fine-tuning, the model) and the tokenizer, whole or not at all.

    `weights`: those that trained, where the model has them in parts.
    """
    final = run / (ADAPTER if hasattr(model, "peft_config") else MODEL)
    with staged(final) as folder:
        save_weights(model, folder, weights)
        tokenizer.save_pretrained(folder)
    return final


def load_run(run: Path) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, Recipe]:
    """Load what a run produced: its model with the trained adapter, its tokenizer and its recipe.

    Raises `RunError` when `run` is not a run directory, or its training has not finished.
    """
    recipe = run_recipe(run)
    if (run / MODEL).is_dir():
        model, tokenizer = load_policy(recipe.model, trainable=False, name=str(run / MODEL), lora=None)
    elif (run / ADAPTER).is_dir():
        lora = {} if recipe.model.lora is None else {"dtype": recipe.model.lora.dtype}
        model, tokenizer = load_policy(recipe.model, trainable=False, adapter=str(run / ADAPTER), lora=lora, peft=None)
    else:
        raise without_weights(run)
    return model, tokenizer, recipe


def run_recipe(run: Path) -> Recipe:
    """Return the recipe that a run of `prefopt train` began with. Raises `RunError` when `run` is no such directory."""
    if not (run / RECIPE).is_file():
        raise RunError(f"{run} is no run directory (it has no {RECIPE}); name one that `prefopt train` made.")
    refuse_rounds(run)
    return load_recipe(run / RECIPE, check_files=False)


def refuse_rounds(run: Path) -> None:
    """Raise `RunError` where a run directory is one of `prefopt rounds`, whose trainings lie in its rounds."""
    if "rounds" in read(run / RECIPE).data:
        trained = [path.parent for path in sorted(run.glob("round-*/train/*")) if path.name in (ADAPTER, MODEL)]
        what = f": name the training of one, such as {trained[-1]}" if trained else ", and none has trained yet"
        raise RunError(f"{run} is a run of `prefopt rounds`, which trains once a round{what}.")


@dataclass(frozen=True)
class Measured:
    """A model that is to be measured, and what its implicit reward is taken against."""

    packed: PackedModel
    reference: Reference | None
    """None for a recipe's model, which is its own reference, and where the loss or the recipe has none."""
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe


def load_measured(run_or_recipe: Path) -> Measured:
    """Load a run with what it was compared with, or the model that a recipe names, as it is. Raises as `load_run`."""
    if run_or_recipe.is_dir():
        recipe = run_recipe(run_or_recipe)
        loaded = load_weights(weights_of_run(run_or_recipe)[-1], _compared(recipe))
    else:
        recipe = load_recipe(run_or_recipe)
        loaded = load_weights(as_it_is(run_or_recipe, recipe.model))
    return Measured(loaded.packed, loaded.reference, loaded.tokenizer, recipe)


def _compared(recipe: Recipe) -> ReferenceConfig | None:
    """Return what a run's measures are taken against: of a reference that moved, where it began."""
    if not recipe.loss.build().needs_reference or recipe.reference.kind == "none":
        return None
    return ReferenceConfig() if recipe.reference.kind == "moving" else recipe.reference
