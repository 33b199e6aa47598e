"""A run of rounds, read for its report: measures, counts, samples of each round; whatever is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from prefopt.errors import RunError
from prefopt.report.read import Json, RunFiles, parsed_recipe, read_evals, read_run, text_file
from prefopt.rounds.events import FILE, read_events
from prefopt.rounds.stage import read_manifest
from prefopt.rounds.status import RoundStatus, RunStatus, rounds_status

_PROMPTS = 8
"""Held-out prompts whose samples are shown."""
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Sampled:
    """One completion of a round's evaluation."""

    text: str
    score: float | None
    correct: bool | None


@dataclass(frozen=True)
class RoundPrompt:
    """A held-out prompt and what each round answered to it."""

    prompt_id: str
    text: str
    answers: Mapping[str, tuple[Sampled, ...]]
    """Name of a round -> its samples."""


@dataclass(frozen=True)
class RoundsFiles:
    """What stands in a directory of rounds."""

    path: Path
    recipe_text: str | None
    recipe: Json
    status: RunStatus
    measures: Mapping[str, Json]
    """Name of a round -> its metrics.json, of those that are evaluated."""
    counts: Mapping[str, Mapping[str, Json]]
    """Name of a round -> stage -> its counts."""
    rewards: Mapping[str, Mapping[str, float]]
    """Name of a round -> held-out prompt -> mean reward of its samples."""
    prompts: tuple[RoundPrompt, ...]
    training: tuple[tuple[str, RunFiles], ...]
    """(round, its training) of every round that trained."""
    seconds: Mapping[str, float]
    """Stage -> seconds, of all rounds and starts."""
    evals: Mapping[str, Json]
    """What `prefopt eval` measured of it, by the name of its file in `eval/`; each says its `kind`."""
    problems: tuple[str, ...] = field(default=())

    @property
    def evaluated(self) -> list[RoundStatus]:
        """The start and the rounds that are measured."""
        return [one for one in self.status.rounds if one.name in self.measures]


def is_rounds(run: Path) -> bool:
    """Whether a directory holds rounds rather than one training."""
    return (run / FILE).is_file()


def read_rounds(run: Path) -> RoundsFiles:
    """Read a directory of rounds. Raises RunError when it is none."""
    problems: list[str] = []
    status = rounds_status(run)
    text = text_file(run / "recipe.yaml", problems)
    folders = {one.name: _folder(run, one.name) for one in status.rounds}
    measures = {
        one.name: found
        for one in status.rounds
        if "evaluate" in one.done and (found := _json(folders[one.name] / "metrics.json", problems))
    }
    counts: dict[str, dict[str, Json]] = {}
    for one in status.rounds:
        manifests = {
            stage: read_manifest(folders[one.name] / f"{stage}.json") for stage in one.done if stage != "evaluate"
        }
        counts[one.name] = {stage: dict(found.counts) for stage, found in manifests.items() if found is not None}
    scored = {name: _scored(folders[name], problems) for name in measures}
    seconds: dict[str, float] = {}
    for event in read_events(run):
        if event.get("event") == "end" and isinstance(event.get("seconds"), (int, float)):
            stage = str(event.get("stage"))
            seconds[stage] = seconds.get(stage, 0.0) + event["seconds"]
    training = []
    for one in status.rounds:
        folder = folders[one.name] / "train"
        if (folder / "metrics.jsonl").is_file() or (folder / "recipe.yaml").is_file():
            training.append((one.name, read_run(folder)))
    recipe = parsed_recipe(text, problems)
    return RoundsFiles(
        path=run,
        recipe_text=text,
        recipe=recipe,
        status=status,
        measures=measures,
        counts=counts,
        rewards={name: _means(rows) for name, rows in scored.items()},
        prompts=_prompts(run, recipe, folders, scored, problems),
        training=tuple(training),
        seconds=seconds,
        evals=read_evals(run / "eval", problems),
        problems=tuple(dict.fromkeys(problems)),
    )


def _folder(run: Path, name: str) -> Path:
    return run / ("start" if name == "start" else f"round-{int(name):03d}")


def _json(path: Path, problems: list[str]) -> Json | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        problems.append(f"{path.parent.name}/{path.name} can't be read.")
        return None
    return found if isinstance(found, dict) else None


def _scored(folder: Path, problems: list[str]) -> list[Any]:
    from prefopt.rounds.tables import read_scores

    try:
        return list(read_scores(folder / "eval-scores.parquet"))
    except RunError:
        problems.append(f"{folder.name}/eval-scores.parquet can't be read.")
        return []


def _means(rows: Sequence[Any]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.score is not None:
            found.setdefault(row.prompt_id, []).append(row.score)
    return {prompt: sum(scores) / len(scores) for prompt, scores in found.items()}


def _prompts(
    run: Path, recipe: Json, folders: Mapping[str, Path], scored: Mapping[str, Sequence[Any]], problems: list[str]
) -> tuple[RoundPrompt, ...]:
    """Return the first held-out prompts with what each evaluated round answered."""
    from prefopt.sampling import read_rollouts

    texts: dict[str, tuple[int, ...]] = {}
    answers: dict[str, dict[str, tuple[Sampled, ...]]] = {}
    for name, rows in scored.items():
        said = {(row.prompt_id, row.sample): row for row in rows}
        try:
            rollouts = read_rollouts(folders[name] / "eval-rollouts.parquet")
        except (RunError, OSError, ValueError):
            problems.append(f"{folders[name].name}/eval-rollouts.parquet can't be read.")
            continue
        for rollout in rollouts:
            if rollout.prompt_id not in texts and len(texts) >= _PROMPTS:
                continue
            texts.setdefault(rollout.prompt_id, rollout.prompt_ids)
            row = said.get((rollout.prompt_id, rollout.sample))
            one = Sampled(rollout.text, row.score if row else None, row.correct if row else None)
            mine = answers.setdefault(rollout.prompt_id, {})
            mine[name] = (*mine.get(name, ()), one)
    decode = _decoder(run, recipe)
    return tuple(RoundPrompt(key, decode(ids), answers[key]) for key, ids in islice(texts.items(), _PROMPTS))


def _decoder(run: Path, recipe: Json) -> Any:
    """Return what makes text of a prompt's tokens: a tokenizer that a round saved, or the model's."""
    from huggingface_hub import try_to_load_from_cache
    from tokenizers import Tokenizer

    section = recipe.get("model")
    name = str(section.get("name") if isinstance(section, Mapping) else section)
    try:
        cached = try_to_load_from_cache(name, _TOKENIZER)
    except ValueError:  # a path is no name of the Hub
        cached = None
    places = [*sorted(run.glob(f"round-*/train/*/{_TOKENIZER}")), Path(name) / _TOKENIZER, cached]
    for place in places:
        if isinstance(place, (str, Path)) and Path(place).is_file():
            try:
                tokenizer = Tokenizer.from_file(str(place))
            except Exception:  # noqa: BLE001 - the library raises nothing more precise
                continue
            return lambda ids: str(tokenizer.decode(list(ids))).strip()
    return lambda ids: f"({len(ids)} tokens; the tokenizer that would make them text is not here)"
