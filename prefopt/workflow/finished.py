"""The way back into a run: what it produced, and measuring it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.data.sources import open_sources
from prefopt.errors import DataError, RecipeError, RunError
from prefopt.eval import PairEvaluation, evaluate_pairs
from prefopt.models import load_policy
from prefopt.models.adapters import save_weights
from prefopt.models.packed import PackedModel
from prefopt.models.references import FrozenModel, Reference, build_reference
from prefopt.recipe import Recipe, load_recipe
from prefopt.train.checkpoint import staged
from prefopt.workflow.directory import (
    ADAPTER,
    MODEL,
    RECIPE,
)
from prefopt.workflow.inputs import load_held_out


def save_result(model: Any, tokenizer: PreTrainedTokenizerBase, run: Path) -> Path:
    """Write the adapter (or, after full fine-tuning, the model) and the tokenizer, whole or not at all."""
    final = run / (ADAPTER if hasattr(model, "peft_config") else MODEL)
    with staged(final) as folder:
        save_weights(model, folder)
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
        raise RunError(f"{run} has not finished training; finish it by prefopt train {run / RECIPE} --resume.")
    return model, tokenizer, recipe


def run_recipe(run: Path) -> Recipe:
    """Return the recipe that a run began with. Raises `RunError` when `run` is no run directory."""
    if not (run / RECIPE).is_file():
        raise RunError(f"{run} is no run directory (it has no {RECIPE}); name one that `prefopt train` made.")
    return load_recipe(run / RECIPE, check_files=False)


def eval_pairs_run(
    run_or_recipe: Path, *, data: str | Sequence[str] | None = None, token_budget: int | None = None
) -> PairEvaluation:
    """Measure a run, or the model a recipe names, on held-out pairs.

    Args:
        run_or_recipe: a run directory, or a recipe file, whose model is measured as it is.
        data: pairs, or scored lists, to measure on instead of the recipe's `data.eval`.
        token_budget: tokens computed at once; None takes `eval.token_budget`.

    Raises:
        RecipeError: there is no data to measure on.
        DataError: the data is missing, or has no pairs and no lists that prefer one completion to another.
    """
    is_run = run_or_recipe.is_dir()
    recipe = run_recipe(run_or_recipe) if is_run else load_recipe(run_or_recipe)
    source = data or recipe.data.eval
    if source is None:
        raise RecipeError(
            f"{run_or_recipe} names no data.eval to measure on; give pairs or scored lists by --data FILE."
        )
    open_sources(source, recipe.data)  # a missing file is told before a model loads
    if is_run:
        model, tokenizer, _ = load_run(run_or_recipe)
    else:
        model, tokenizer = load_policy(recipe.model, trainable=False)
    held_out = load_held_out(recipe, tokenizer, source)
    if held_out.form == "unpaired":
        raise DataError(f"{source} holds labelled completions, not pairs; give pairs or scored lists by --data FILE.")
    packed = PackedModel(model)
    loss = recipe.loss.build()
    compared = is_run and loss.needs_reference and recipe.reference.kind != "none"
    reference = _run_reference(recipe, packed) if compared else None
    config = recipe.eval.model_copy(update={"token_budget": token_budget} if token_budget else {})
    return evaluate_pairs(packed, reference, held_out, config, beta=loss.beta)


def _run_reference(recipe: Recipe, packed: PackedModel) -> Reference:
    """Return what a finished run was compared with: for a new LoRA adapter its base, otherwise the model it was."""
    if recipe.reference.kind == "model":
        return build_reference(recipe.reference, packed, needed=True)
    new = isinstance(packed.model, PeftModel) and recipe.model.adapter is None
    if new and (recipe.reference.kind == "adapter_off" or _starts_as_base(recipe)):
        return build_reference("adapter_off", packed, needed=True)
    start, _ = load_policy(recipe.model, trainable=new, seed=recipe.train.arguments().seed)
    return FrozenModel(packed, PackedModel(start), "the model that the run began with.")


def _starts_as_base(recipe: Recipe) -> bool:
    """Whether the recipe's new adapter changes nothing at first and takes over nothing of the base weights."""
    model = recipe.model
    start = None if model.lora is None else model.lora.passthrough().get("init_lora_weights", True)
    return model.peft is None and start in (True, "gaussian", "orthogonal")
