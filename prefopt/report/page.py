"""A run directory -> report.html: one file that needs nothing else, and runs nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from prefopt.errors import RunError
from prefopt.report import figures, tables
from prefopt.report.bins import bin_sections
from prefopt.report.read import RunFiles, read_run
from prefopt.report.verdict import judge
from prefopt.report.words import NONE, duration, is_number, number, percent

REPORT = "report.html"
_HERE = Path(__file__).parent
_TABLE_ROWS = 12


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory and return its path; an older one is replaced whole.

    Works on a run that is still going: what is not there yet is said in its section.

    Raises:
        RunError: the directory is no run, or can't be written.
    """
    run = Path(run_dir)
    page = render(read_run(run))
    final, draft = run / REPORT, run / f".{REPORT}.{os.getpid()}"
    try:
        draft.write_text(page, encoding="utf-8")
        draft.replace(final)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise RunError(
            f"The report can't be written to {final}: {error.strerror}; make the directory writable."
        ) from error
    return final


def render(run: RunFiles) -> str:
    """Return the page. All text that comes from data, a model or a recipe is escaped by the template."""
    return page_template("page.html.j2").render(
        style=page_style(),
        name=run.path.resolve().name,
        facts=_facts(run),
        verdict=judge(run),
        problems=run.problems,
        curves=figures.training_curves(run),
        steps=_steps(run),
        held_out=tables.held_out(run),
        bins=bin_sections(run),
        pair_figures=figures.pair_figures(run),
        after_missing=run.after is None,
        samples=[_sample(sample, run.during) for sample in run.samples],
        alarms=[f"At step {number(alarm.get('step'))}: {_text(alarm.get('sentence'))}" for alarm in run.alarms],
        data_lines=tables.data_lines(run),
        data_columns=tables.data_columns(run),
        data_notes=tables.data_notes(run),
        rejected=run.rejected,
        rejected_rows=[tables.flat(row) for row in run.rejected.first],
        recipe=run.recipe_text,
        environment=tables.flat(run.environment) if run.environment else [],
        finished=run.finished,
    )


def page_template(name: str) -> Template:
    """Return a template of this room, which escapes whatever is put into it."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def page_style() -> Markup:
    """Return the style sheet, which is ours and holds no text from outside."""
    return Markup((_HERE / "style.css").read_text(encoding="utf-8"))


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """Return what the run is, in a line: model, loss, reference, data, steps, time."""
    recipe = run.recipe
    last: Mapping[str, Any] = run.metrics[-1] if run.metrics else {}
    facts = [
        ("Model", _named(recipe.get("model"), "name")),
        ("Loss", _loss(recipe.get("loss"))),
        ("Reference", _named(recipe.get("reference"), "model")),
        ("Data", _named(recipe.get("data"), "train")),
        ("Steps", number(last["step"]) if last else NONE),
        ("Training time", duration(last.get("time"))),
        ("Tokens", number(last.get("tokens"))),
    ]
    return [(label, value) for label, value in facts if value != NONE]


def _named(section: Any, key: str) -> str:
    value = section.get(key) if isinstance(section, Mapping) else section
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return NONE if value is None else str(value)


def _loss(section: Any) -> str:
    if not isinstance(section, Mapping):
        return _named(section, "name")
    rest = {key: value for key, value in section.items() if key != "name"}
    return ", ".join([_named(section, "name"), *(f"{key} {tables.plain(value)}" for key, value in rest.items())])


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


def _sample(sample: Mapping[str, Any], during: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a prompt and its completions before, during and after training, as texts."""
    prompt = _text(sample.get("prompt"))
    return {
        "prompt": prompt,
        "during": [
            (number(record.get("step")), [_text(text) for text in record.get("completions") or ()])
            for record in during
            if _text(record.get("prompt")) == prompt
        ],
        "before": [_text(text) for text in sample.get("before") or ()],
        "after": [_text(text) for text in sample.get("after") or ()],
    }


def _text(value: Any) -> str:
    """Return a prompt as text; of messages, each behind its role."""
    if isinstance(value, list):
        return "\n\n".join(
            f"{turn.get('role', '')}: {turn.get('content', '')}" if isinstance(turn, Mapping) else str(turn)
            for turn in value
        )
    return "" if value is None else str(value)
