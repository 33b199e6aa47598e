"""`train.token_budget: auto` of a run: planned from what the device has left, then tried."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from prefopt import environment
from prefopt.errors import PrefoptError
from prefopt.models.plan.machine import CPU_SLACK, CUDA_SLACK
from prefopt.models.plan.policy import PlannedPolicy
from prefopt.recipe import Recipe, load_recipe
from prefopt.train.budget import rounded_down, try_budget
from prefopt.train.config import DEFAULT_BUDGET
from prefopt.train.feed import Feed
from prefopt.train.trainer import PreferenceTrainer
from prefopt.workflow.directory import RECIPE
from prefopt.workflow.footprint import Footprint
from prefopt.workflow.lengths import Lengths, lengths_of


def with_budget(recipe: Recipe, budget: int) -> Recipe:
    """Return the recipe with this budget."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"token_budget": budget})})


def begun_with(recipe: Recipe, run: Path) -> Recipe:
    """Return the recipe with the budget that the run in this directory found, if its own says auto and there is one."""
    if recipe.train.token_budget != "auto" or not (run / RECIPE).is_file():
        return recipe
    kept = load_recipe(run / RECIPE, check_files=False).train.token_budget
    return recipe if kept == "auto" else with_budget(recipe, kept)


def settle_budget(trainer: PreferenceTrainer, recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    """Find the budget for a trainer that is ready to train, and let it use that; returns the recipe that says so.

    A stream tells no lengths, so it keeps the default budget; packs that don't fit are cut while it trains.
    """
    if recipe.train.token_budget != "auto":
        return recipe
    budget = DEFAULT_BUDGET
    if isinstance(trainer.feed, Feed):
        lengths = lengths_of(trainer.feed, trainer.arguments)
        guess, spare = _planned(trainer, recipe, lengths, say)
        # More than the longest step has no point; what is less is rounded, so that it doesn't change with the weather.
        guess = lengths.longest_step if guess >= lengths.longest_step else max(lengths.longest, rounded_down(guess))
        # All ranks cut a step into the same packs before they share them out.
        budget = min(trainer.ranks.gather(guess))
        if not trainer.ranks.sharded:  # of which none can try a pass alone
            budget = min(trainer.ranks.gather(try_budget(trainer, trainer.feed.plan.groups(0, 0), budget, spare=spare)))
    trainer.arguments.token_budget = budget
    say(f"token budget: {budget:,} (train.token_budget: auto)")
    return with_budget(recipe, budget)


def _planned(
    trainer: PreferenceTrainer, recipe: Recipe, lengths: Lengths, say: Callable[[str], None]
) -> tuple[int, int]:
    """Return the budget to begin with, and the bytes of the optimizer's state.

    Where no plan can be made, that is the default budget, and as many bytes as Adam keeps for what trains.
    """
    try:
        footprint = _footprint(trainer, recipe, lengths)
        found = footprint.largest_budget(_room(trainer, footprint))
        return found or lengths.longest, footprint.weights.optimizer_bytes
    except (PrefoptError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        say(f"this run can't be planned ({reason}), so the search for a token budget begins with {DEFAULT_BUDGET:,}.")
        trained = [p for p in trainer.packed.model.parameters() if p.requires_grad]
        return DEFAULT_BUDGET, sum(2 * p.numel() * p.itemsize for p in trained)


def _footprint(trainer: PreferenceTrainer, recipe: Recipe, lengths: Lengths) -> Footprint:
    policy = PlannedPolicy.of(
        recipe.model,
        trainer.packed.head_weight.dtype,
        gpu=trainer.args.device.type == "cuda",
        checkpointing=bool(trainer.args.activation_checkpointing),
    )
    return Footprint(policy, recipe, trainer.loss_module, lengths, trainer.arguments, str(trainer.args.optim.value))


def _room(trainer: PreferenceTrainer, footprint: Footprint) -> float:
    """Return the bytes that weights and passes may take together; weights and reference are there already."""
    gc.collect()
    there = footprint.lasting - footprint.weights.optimizer_bytes
    device = trainer.args.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return float(free) * (1 - CUDA_SLACK) + there
    free_memory = environment.available_memory()
    return float("inf") if free_memory is None else free_memory * (1 - CPU_SLACK) + there
