"""The data that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from prefopt.data import PreferenceData, PreferenceStream, Weighted, load_preferences, weighted
from prefopt.data.load import parse_options
from prefopt.recipe import Recipe
from prefopt.workflow.directory import REJECTED


def load_data(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, run: Path
) -> tuple[PreferenceData | PreferenceStream, PreferenceData | None]:
    """Return what the recipe trains on, and what it holds out; rows that can't be used are listed in `run`."""
    options = recipe.data
    data: PreferenceData | PreferenceStream
    if options.streaming:
        data = PreferenceStream(
            options.train_names,
            tokenizer,
            weights=weights_of(recipe),
            window=options.window,
            rejected_to=run / REJECTED,
            **options.options("train"),
        )
    else:
        weights_of(recipe)  # what is named twice is told before all of it is read
        data = load_preferences(options.train_names, tokenizer, rejected_to=run / REJECTED, **options.options("train"))
    held_out = None
    if options.eval is not None:
        held_out = load_held_out(recipe, tokenizer, options.eval, rejected_to=run / f"eval_{REJECTED}")
    return data, held_out


def load_held_out(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    source: str | Sequence[str],
    *,
    rejected_to: Path | None = None,
) -> PreferenceData:
    """Load held-out preferences as the recipe's `data` section says, from `source`."""
    return load_preferences(source, tokenizer, rejected_to=rejected_to, **recipe.data.options("eval"))


def weights_of(recipe: Recipe) -> tuple[Weighted, ...]:
    """Return how much of an epoch each source of `data.train` makes, where the recipe says it."""
    return weighted(recipe.data.train_weights, parse_options(recipe.data.options("train")))
