"""A run directory -> report.html: one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefopt.report import figures, tables
from prefopt.report.bins import bin_sections
from prefopt.report.cost import train_cost
from prefopt.report.document import render_page, write_page
from prefopt.report.measured import measured_sections, with_measured
from prefopt.report.pairs import pair_figures
from prefopt.report.read import RunFiles, read_run
from prefopt.report.rounds_page import render_rounds
from prefopt.report.rounds_read import RoundsFiles, is_rounds, read_rounds
from prefopt.report.samples import is_shaded, kinds_of, run_samples, text_of
from prefopt.report.several import render_several
from prefopt.report.verdict import judge, names_held_out
from prefopt.report.words import NONE, duration, is_number, number, percent
from prefopt.workflow.directory import each_once

REPORT = "report.html"
_TABLE_ROWS = 12


def write_report(run: Path) -> Path:
    """Write `report.html` into a run directory, of training or of rounds, and return its path.

    An older one is replaced whole. Works on a run that is still going: what is not there yet is said in its section.

    Raises:
        RunError: the directory is no run, or can't be written.
    """
    return write_reports([Path(run)])


def write_reports(runs: Sequence[Path], out: Path | None = None, measured: Sequence[Path] = ()) -> Path:
    """Write one page of one run, or of several over one another, and return its path.

    Args:
        runs: run directories, of training or of rounds; one that is named twice counts once.
        out: the file to write; None writes `report.html` into the one run, or beside the first of several.
        measured: files that `prefopt eval` wrote elsewhere, or folders of a frontier; of several runs only frontiers
            are shown.

    Raises:
        RunError: a directory is no run, a file no measurement, or the page can't be written.
    """
    paths = each_once([Path(run) for run in runs])
    found = [_read(run) for run in paths]
    found[0] = replace(found[0], evals=with_measured(found[0].evals, measured, several=len(paths) > 1))
    if len(paths) > 1:
        return write_page(out or paths[0].parent / REPORT, render_several(found))
    [run] = found
    page = render_rounds(run) if isinstance(run, RoundsFiles) else render(run)
    return write_page(out or paths[0] / REPORT, page)


def _read(run: Path) -> RunFiles | RoundsFiles:
    return read_rounds(run) if is_rounds(run) else read_run(run)


def report_softly(run: Path) -> tuple[Path | None, str | None]:
    """Write a run's report and return its path, or a sentence on why there is none: a page is never worth a run."""
    try:
        return write_report(run), None
    except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
        said = " ".join(str(error).split()) or type(error).__name__
        return None, f"The report of {run} was not written: {said}"


def render(run: RunFiles) -> str:
    """Return the page of training. All text that comes from data, a model or a recipe is escaped by the template."""
    measured, problems = measured_sections(run)
    samples = run_samples(run)
    nav = [
        ("training", "Training"),
        ("held-out", "Held-out pairs"),
        *((part.id, part.short) for part in measured),
        ("samples", "Samples"),
        ("data", "Data"),
        ("cost", "Cost"),
        ("recipe", "Recipe"),
        ("environment", "Environment"),
    ]
    return render_page(
        "page.html.j2",
        scripted=True,
        name=run.path.resolve().name,
        facts=_facts(run),
        verdict=judge(run),
        problems=[*run.problems, *problems],
        nav=nav,
        curves=figures.training_curves(run),
        steps=_steps(run),
        held_out=tables.held_out(run),
        held_out_missing=_held_out_missing(run),
        samples_missing=_samples_missing(run),
        bins=bin_sections(run),
        pair_figures=pair_figures(run),
        measured=measured,
        after_missing=run.after is None,
        samples=samples,
        kinds=kinds_of(samples),
        shaded=is_shaded(samples),
        alarms=[f"At step {number(alarm.get('step'))}: {text_of(alarm.get('sentence'))}" for alarm in run.alarms],
        data_lines=tables.data_lines(run),
        data_columns=tables.data_columns(run),
        data_notes=tables.data_notes(run),
        rejected=run.rejected,
        rejected_rows=[tables.flat(row) for row in run.rejected.first],
        cost=train_cost(run),
        recipe=run.recipe_text,
        environment=tables.flat(run.environment) if run.environment else [],
        finished=run.finished,
    )


def _held_out_missing(run: RunFiles) -> str:
    if not names_held_out(run):
        return "The recipe names no held-out pairs (data.eval), so whether it got better is not measured."
    return "No held-out evaluation yet: it is made before the first step and after the last."


def _samples_missing(run: RunFiles) -> str:
    section = run.recipe.get("eval")
    asked = section.get("samples") if isinstance(section, Mapping) else None
    if asked == 0 or run.finished:
        return "The recipe asks for no samples (eval.samples), or has no held-out prompts to take them from."
    return "No samples yet: they are written when training ends."


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """Return what the run is, in a line: model, loss, reference, data, steps, time."""
    recipe = run.recipe
    last: Mapping[str, Any] = run.metrics[-1] if run.metrics else {}
    facts = [
        ("Model", tables.place(recipe.get("model"), "name")),
        ("Loss", tables.loss(recipe.get("loss"))),
        ("Reference", tables.place(recipe.get("reference"), "model")),
        ("Data", tables.place(recipe.get("data"), "train")),
        ("Steps", number(last["step"]) if last else NONE),
        ("Training time", duration(last.get("time"))),
        ("Tokens", number(last.get("tokens"))),
    ]
    return [(label, value) for label, value in facts if value != NONE]


def _steps(run: RunFiles) -> list[list[str]]:
    """Return at most a dozen logged steps, evenly taken, first and last among them."""
    rows = run.metrics
    if len(rows) > _TABLE_ROWS:
        rows = tuple(rows[round(i * (len(rows) - 1) / (_TABLE_ROWS - 1))] for i in range(_TABLE_ROWS))
    return [
        [
            number(row["step"]),
            number(row.get("loss")),
            percent(row.get("rewards/accuracies")),
            number(row.get("rewards/margins")),
            number(row.get("log_ratios/chosen")),
            number(row.get("log_ratios/rejected")),
            f"{row['learning_rate']:.2g}" if is_number(row.get("learning_rate")) else NONE,
        ]
        for row in rows
    ]
