"""A run directory: what lies where, who may write into it, and files that are whole or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefopt.errors import RunError
from prefopt.recipe import Recipe, dump_recipe, load_recipe
from prefopt.train.callbacks import replace_text

RECIPE, ENVIRONMENT, DATA, METRICS = "recipe.yaml", "environment.json", "data.json", "metrics.jsonl"
REJECTED, SAMPLES, ADAPTER, MODEL = "rejected_rows.jsonl", "samples.json", "adapter", "model"
SAMPLES_DURING, ALARMS = "samples_during.jsonl", "alarms.jsonl"
BEFORE, AFTER = "eval/before.json", "eval/after.json"
REFERENCE = "reference.json"
INPUTS = "inputs"  # data that was made for this run
BEFORE_TRAINING = {INPUTS, RECIPE, ENVIRONMENT, DATA, REFERENCE, REJECTED, f"eval_{REJECTED}"}

FREE = frozenset(
    {
        "data.workers", "eval.token_budget", "reference.cache", "reference.cache_dir", "train.activation_checkpointing",
        "train.activation_offload", "train.non_finite", "train.output_dir", "train.token_budget",
    }
)  # fmt: skip
"""Keys that may change when a run goes on: where things lie, and what costs memory or time but is not what a run
computes (sums may be taken in another order, so the last bits may differ)."""


def claim_directory(run: Path, recipe: Recipe, *, resume: bool) -> None:
    """Make the run directory and write its recipe, or check that it holds a run of this very recipe."""
    kept = run / RECIPE
    if run.exists() and not run.is_dir():
        raise RunError(f"train.output_dir {run} is a file; name a directory that is new or empty.")
    # What a start that failed before the first step leaves behind is not a run that could be lost.
    if run.is_dir() and {path.name for path in run.iterdir()} - BEFORE_TRAINING:
        if not resume:
            raise RunError(
                f"train.output_dir {run} is not empty; name another directory, or go on with the run in it by --resume."
            )
        if not kept.is_file():
            raise RunError(f"{run} has no {RECIPE}, so it is not a run to resume; name another train.output_dir.")
        if changed := _changed(load_recipe(kept), recipe):
            raise RunError(
                f"{run} began with another recipe: {', '.join(changed)} changed. A run goes on as it began; "
                f"restore the values in {kept}, or name another train.output_dir."
            )
    try:
        run.mkdir(parents=True, exist_ok=True)
        replace_text(kept, dump_recipe(recipe))  # a resume reads it, so a kill must not tear it
    except OSError as error:
        raise RunError(
            f"train.output_dir {run} can't be written: {error.strerror}; name a directory you may write to."
        ) from error


def _changed(old: Recipe, new: Recipe) -> list[str]:
    """Return the dotted keys whose values differ, of those that a run must go on with."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = sorted((before.keys() | after.keys()) - FREE)
    return [key for key in keys if before.get(key) != after.get(key) and not key.startswith("alarms.")]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, child in tree.items() for k, v in _flat(child, f"{prefix}.{key}" if prefix else key).items()}


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader, or a kill, never meets half of it."""
    replace_text(path, json.dumps(content, indent=1))
