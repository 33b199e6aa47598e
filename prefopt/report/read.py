"""A run directory, read for its report: whatever is there, and a sentence for each file that can't be read.

A run may still be going, or have been killed: files are missing, half written, or end in a torn line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prefopt.errors import RunError

Json = dict[str, Any]

_REJECTED_SHOWN = 10


@dataclass(frozen=True)
class Rejected:
    """Rows of the data that could not be used."""

    count: int = 0
    first: tuple[Json, ...] = ()
    """The first few, as written: source, line, reason, row."""


@dataclass(frozen=True)
class Evaluations:
    """The two halves of one evaluation of pairs."""

    name: str
    before: Json | None
    after: Json | None


@dataclass(frozen=True)
class RunFiles:
    """What stands in a run directory. What is missing or unreadable is None or empty."""

    path: Path
    recipe_text: str | None
    recipe: Json
    environment: Json | None
    metrics: tuple[Json, ...]
    """Training rows, one a logged step, ascending; where a resumed run logged a step twice, the later one."""
    held_out: tuple[Json, ...]
    """Evaluation rows during training, the same way; keys begin with `eval_`."""
    reference: Json | None
    """What the policy was compared with: kind, reason."""
    data: Json | None
    before: Json | None
    after: Json | None
    further: tuple[Evaluations, ...]
    """Of other pairs: `eval/NAME_before.json` and `eval/NAME_after.json`."""
    evals: Mapping[str, Json]
    """What else was measured, by the name of its file in `eval/`; each says its `kind`."""
    samples: tuple[Json, ...]
    during: tuple[Json, ...]
    """Samples of evaluations during training: step, prompt, completions."""
    alarms: tuple[Json, ...]
    """What the run said while it went: step, kind, sentence."""
    rejected: Rejected
    finished: bool
    """Whether its weights are saved, and the evaluation, where one began, has its other half."""
    problems: tuple[str, ...] = field(default=())
    """A sentence for each file that is there and can't be read whole."""


def read_run(run: Path) -> RunFiles:
    """Read a run directory. Raises RunError when it is no directory or holds none of a run's files."""
    if not run.is_dir():
        raise RunError(f"There is no run directory {run}: name a directory that `prefopt train` wrote.")
    problems: list[str] = []
    recipe_text = text_file(run / "recipe.yaml", problems)
    records = _lines(run / "metrics.jsonl", problems)
    if recipe_text is None and not records:
        raise RunError(f"{run} holds neither recipe.yaml nor metrics.jsonl, so it is no run: name the run's directory.")
    before, after = (_object(run / "eval" / f"{name}.json", problems) for name in ("before", "after"))
    weights = any((run / name).is_dir() for name in ("adapter", "model"))
    samples = _json(run / "samples.json", problems)
    return RunFiles(
        path=run,
        recipe_text=recipe_text,
        recipe=parsed_recipe(recipe_text, problems),
        environment=_object(run / "environment.json", problems),
        metrics=_by_step(row for row in records if "loss" in row),
        held_out=_by_step(row for row in records if any(key.startswith("eval_") for key in row)),
        reference=_object(run / "reference.json", problems),
        data=_object(run / "data.json", problems),
        before=before,
        after=after,
        further=_further(run / "eval", problems),
        evals=read_evals(run / "eval", problems),
        samples=tuple(s for s in samples if isinstance(s, dict)) if isinstance(samples, list) else (),
        during=tuple(_lines(run / "samples_during.jsonl", problems)),
        alarms=tuple(_lines(run / "alarms.jsonl", problems)),
        rejected=_rejected(run / "rejected_rows.jsonl", problems),
        finished=weights and (before is None or after is not None),
        problems=tuple(problems),
    )


def _further(folder: Path, problems: list[str]) -> tuple[Evaluations, ...]:
    halves = [*folder.glob("*_before.json"), *folder.glob("*_after.json")]
    names = sorted({path.name.rpartition("_")[0] for path in halves} - {""})
    found = (
        Evaluations(
            name.replace("_", " "),
            *(_object(folder / f"{name}_{half}.json", problems) for half in ("before", "after")),
        )
        for name in names
    )
    return tuple(one for one in found if one.before or one.after)


def read_evals(folder: Path, problems: list[str]) -> dict[str, Json]:
    """Return every object of a run's `eval/` that says what kind it is, by its file's stem."""
    stems = [path.stem for path in sorted(folder.glob("*.json")) if not re.search(r"(^|_)(before|after)$", path.stem)]
    found = {stem: _object(folder / f"{stem}.json", problems) for stem in stems}
    return {stem: one for stem, one in found.items() if one is not None and isinstance(one.get("kind"), str)}


def text_file(path: Path, problems: list[str]) -> str | None:
    """Return what a file holds, or None; one that is there and can't be read is a problem."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{path.name} can't be read: {error.strerror}.")
        return None


def _json(path: Path, problems: list[str]) -> Any:
    """Return the file's value, or None for a missing file and, with a problem, for one that is not whole."""
    text = text_file(path, problems)
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        problems.append(f"{path.name} is not whole JSON; it may be being written.")
        return None


def _object(path: Path, problems: list[str]) -> Json | None:
    """Return the file's value when it is an object, else None."""
    value = _json(path, problems)
    if value is not None and not isinstance(value, dict):
        problems.append(f"{path.name} holds no object and is left out.")
        return None
    return value


def _lines(path: Path, problems: list[str]) -> list[Json]:
    """Return the objects of a JSON Lines file, without lines that are torn."""
    records, torn = [], 0
    for line in (text_file(path, problems) or "").splitlines():
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            torn += 1
            continue
        if isinstance(value, dict):
            records.append(value)
        else:
            torn += 1
    if torn:
        problems.append(
            f"{torn} line{'s' if torn > 1 else ''} of {path.name} could not be read and {'are' if torn > 1 else 'is'} "
            "left out: a run that is killed while it writes leaves a torn line."
        )
    return records


def _by_step(rows: Any) -> tuple[Json, ...]:
    steps: dict[float, Json] = {}
    for row in rows:
        if isinstance(row.get("step"), (int, float)):
            steps[row["step"]] = row
    return tuple(steps[step] for step in sorted(steps))


def parsed_recipe(text: str | None, problems: list[str]) -> Json:
    """Return a recipe as it was written; what is none is a problem and empty."""
    if text is None:
        return {}
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        problems.append("recipe.yaml is not valid YAML.")
        return {}
    return value if isinstance(value, dict) else {}


def _rejected(path: Path, problems: list[str]) -> Rejected:
    rows = _lines(path, problems)
    return Rejected(len(rows), tuple(rows[:_REJECTED_SHOWN]))
