"""Measuring a run again, and where its measures are written: `RUN/eval/NAME.json`, whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefopt.data import PreferenceData
from prefopt.data.sources import open_sources
from prefopt.errors import DataError, RecipeError, RunError
from prefopt.eval import Comparison, EvalConfig, PairEvaluation, compare_evaluations, evaluate_pairs
from prefopt.recipe import load_recipe
from prefopt.workflow.directory import AFTER, keep_evaluation
from prefopt.workflow.finished import load_measured, run_recipe
from prefopt.workflow.inputs import load_held_out

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")
_COLUMNS = ("slice_by", "human", "agreement")


def eval_pairs_run(
    run_or_recipe: Path,
    *,
    data: str | Sequence[str] | None = None,
    slice_by: str | None = None,
    token_budget: int | None = None,
    name: str | None = None,
    out: Path | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> PairEvaluation:
    """Measure a run, or the model a recipe names, on held-out pairs, and write what was found.

    Args:
        run_or_recipe: a run directory, or a recipe file, whose model is measured as it is.
        data: pairs, or scored lists, to measure on instead of the recipe's `data.eval`. Of the columns that the
            recipe's `eval` section names, those that this data has count.
        slice_by: a column of the data, instead of `eval.slice_by`.
        token_budget: tokens computed at once; None takes `eval.token_budget`.
        name: of a run, what its measures are kept as: `eval/pairs_NAME.json`; None: `eval/pairs.json`.
        out: a file to write to instead. A recipe's measures are written nowhere else.
        say: is told where they are kept.

    Raises:
        RecipeError: there is no data to measure on, or a name that can't be one.
        RunError: `run_or_recipe` is a directory but no finished run.
        DataError: the data is missing, or has no pairs and no lists that prefer one completion to another.
    """
    path = evaluation_path(run_or_recipe, "pairs", name, out)
    is_run = run_or_recipe.is_dir()
    recipe = run_recipe(run_or_recipe) if is_run else load_recipe(run_or_recipe)
    source = data or recipe.data.eval
    if source is None:
        raise RecipeError(
            f"{run_or_recipe} names no data.eval to measure on; give pairs or scored lists by --data FILE."
        )
    open_sources(source, recipe.data)  # a missing file is told before a model loads
    measured = load_measured(run_or_recipe)
    held_out = load_held_out(recipe, measured.tokenizer, source)
    if held_out.form == "unpaired":
        raise DataError(f"{source} holds labelled completions, not pairs; give pairs or scored lists by --data FILE.")
    config = recipe.eval if data is None else _with_its_columns(recipe.eval, held_out)
    changed: dict[str, Any] = {"token_budget": token_budget} if token_budget else {}
    if slice_by is not None:
        changed |= {"slice_by": slice_by}
        changed |= {} if slice_by == recipe.eval.slice_by else {"slice_edges": None}  # those of another column
    config = config.model_copy(update=changed)
    beta = recipe.loss.build().beta
    evaluation = evaluate_pairs(measured.packed, measured.reference, held_out, config, beta=beta)
    keep_evaluation(path, "pairs", evaluation.to_dict(), say)
    return evaluation


def compare_runs(
    run_a: Path,
    run_b: Path,
    *,
    name: str | None = None,
    out: Path | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Comparison:
    """Compare two runs on the same pairs by what they have measured, and write it to `eval/compare.json` of the first.

    Args:
        run_a: a finished run.
        run_b: another one.
        name: compare `eval/pairs_NAME.json` of both; None: `eval/after.json`, measured when their training ended.
        out: a file to write to instead.
        say: is told where it is kept.

    Raises:
        RunError: one of them is no run, or has not measured such pairs, or they are one run.
        DataError: they measured different pairs.
    """
    if run_a.resolve() == run_b.resolve():
        raise RunError(f"{run_a} and {run_b} are one run, which never differs from itself; name another run beside it.")
    a, b = (_measured_pairs(run, name) for run in (run_a, run_b))
    names = (run_a.name, run_b.name) if run_a.name != run_b.name else (str(run_a), str(run_b))
    comparison = replace(compare_evaluations(a, b, names), pairs=name or "after")
    keep_evaluation(out or run_a / "eval" / "compare.json", "compare", comparison.to_dict(), say)
    return comparison


def _measured_pairs(run: Path, name: str | None) -> PairEvaluation:
    run_recipe(run)
    path = evaluation_path(run, "pairs", name, None) if name is not None else run / AFTER
    assert path is not None
    again = f"measure them by prefopt eval pairs {run} --data FILE --name {name or 'NAME'}"
    if name is None:
        again += f", the same of the other run, and compare by --name {name or 'NAME'}"
    try:
        return PairEvaluation.from_dict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise RunError(f"{run} has measured no such pairs (it has no {path.relative_to(run)}); {again}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} holds no measures of pairs; {again}.") from error


def evaluation_path(run_or_recipe: Path, kind: str, name: str | None, out: Path | None) -> Path | None:
    """Return where measures are written: `out`, or in a run `eval/KIND.json` or `eval/KIND_NAME.json`; else None.

    Raises RecipeError for a name of other than letters, digits, dots and hyphens, and for one that nothing is kept as.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise RecipeError(f"--name {name!r} becomes a part of a file's name: use letters, digits, dots and hyphens.")
    if name is not None and (out is not None or not run_or_recipe.is_dir()):
        raise RecipeError(
            f"--name says under which name a run keeps its measures, but here they are not kept in a run "
            f"({run_or_recipe}); leave --name out, and write to a file by --out FILE."
        )
    if out is not None or not run_or_recipe.is_dir():
        return out
    return run_or_recipe / "eval" / (f"{kind}.json" if name is None else f"{kind}_{name}.json")


def _with_its_columns(config: EvalConfig, data: PreferenceData) -> EvalConfig:
    """Return the section without the columns that this data doesn't have: they were named for other data."""
    there = {column for example in data.examples for column in example.meta}
    missing = [key for key in _COLUMNS if (column := getattr(config, key)) is not None and column not in there]
    update: dict[str, Any] = dict.fromkeys(missing)
    if "slice_by" in missing:
        update["slice_edges"] = None
    return config.model_copy(update=update)
