"""A run directory: what lies where, who may write into it, and files that are whole or absent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefopt.errors import RunError
from prefopt.recipe import Recipe, dump_recipe, load_recipe
from prefopt.train.callbacks import replace_text

RECIPE, ENVIRONMENT, DATA, METRICS = "recipe.yaml", "environment.json", "data.json", "metrics.jsonl"
REJECTED, SAMPLES, ADAPTER, MODEL = "rejected_rows.jsonl", "samples.json", "adapter", "model"
REWARD_ADAPTER, REWARD_MODEL = "reward_adapter", "reward_model"
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


def without_weights(run: Path) -> RunError:
    """Return the error of a run directory that holds no trained weights of a policy: what it is, and what to do."""
    if (run / REWARD_MODEL).is_dir():
        return RunError(
            f"{run} trained a reward model, which gives scores and writes nothing: name {run / REWARD_MODEL} as a "
            "scorer of kind model, and here a run of `prefopt train`."
        )
    return RunError(f"{run} has not finished training; finish it by prefopt train {run / RECIPE} --resume.")


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


def each_once(runs: Sequence[Path]) -> list[Path]:
    """Return the directories in their order, one that is named twice, in whatever way, once."""
    found: dict[Path, Path] = {}
    for run in runs:
        found.setdefault(run.resolve(), run)
    return [*found.values()]


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader, or a kill, never meets half of it."""
    replace_text(path, json.dumps(content, indent=1))


def evaluation_json(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return measures as every file of `eval/` has them: first of which kind they are and which version measured."""
    return {"kind": kind, "prefopt": version("prefopt"), **content}


def write_evaluation(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write `evaluation_json`, whole or not at all. Raises RunError where it can't be written."""
    try:
        write_json(path, evaluation_json(kind, content))
    except OSError as error:
        raise RunError(f"{path} can't be written ({error.strerror}); name another place by --out.") from error


def keep_evaluation(
    path: Path | None, kind: str, content: Mapping[str, Any], say: Callable[[str], object] = lambda _: None
) -> None:
    """Write `write_evaluation`, unless `path` is None, and say where, and whether a report shows it."""
    if path is None:
        say("kept nowhere; name a file by --out to keep it")
        return
    write_evaluation(path, kind, content)
    shown = path.parent.name == "eval" and (path.parent.parent / RECIPE).is_file()
    say(f"kept in {path}" + ("" if shown else "; a report shows only what lies in eval of a run"))
