"""What a run of rounds came to, read from its manifests, measures and events: of a run that goes on, too."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import RunError
from prefopt.rounds.evaluating import METRICS
from prefopt.rounds.events import read_events
from prefopt.rounds.files import read_json
from prefopt.rounds.stage import Manifest, read_manifest

_STAGES = ("sample", "score", "select", "train", "evaluate")
_EVALUATE = ("eval-sample", "eval-score", "evaluate")
_HINTS = ("hint-sample", "hint-score")
_MADE_OF = {
    "score": {"rollouts": "sample"},
    "hint-score": {"rollouts": "hint-sample"},
    "select": {
        "rollouts": "sample",
        "scores": "score",
        "hinted rollouts": "hint-sample",
        "hinted scores": "hint-score",
    },
    "train": {"groups": "select"},
    "eval-sample": {"policy": "train"},
    "eval-score": {"rollouts": "eval-sample"},
    "evaluate": {"rollouts": "eval-sample", "scores": "eval-score"},
}
"""Stage -> its inputs that other stages of the round made; those of hints it has with `rounds.rationalise` alone."""


@dataclass(frozen=True)
class RoundStatus:
    """One round, or the start."""

    name: str
    done: tuple[str, ...]
    """Stages that are done."""
    prompts: int | None
    rollouts: int | None
    tokens: int | None
    reward: float | None
    """Mean of what was sampled to learn from."""
    hinted: int | None
    """Rollouts of prompts that were asked again with the answer."""
    hinted_right: float | None
    """Share of them that is right."""
    acceptance: float | None
    """Share of candidates that the selector took."""
    selected: int | None
    """Examples that were made of them."""
    examples: int | None
    """That were trained on, replayed ones included."""
    replayed: int | None
    """Of them, those of earlier rounds."""
    replay_wanted: int | None
    """How many the recipe's share asks for; more than there were to replay, where it can't be met."""
    accuracy: float | None
    """Of implicit rewards, over the last steps of training."""
    held_out: Mapping[str, Any] | None
    """Mean reward of held-out prompts, with its interval."""
    right: Mapping[str, Any] | None
    """Their pass@1."""
    kl: Mapping[str, Any] | None
    """To the first reference, nats a completion."""
    length: Mapping[str, Any] | None
    seconds: float
    """Of all starts of its stages that came to an end."""


@dataclass(frozen=True)
class RunStatus:
    """A run."""

    path: str
    rounds: tuple[RoundStatus, ...]
    starts: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able copy."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Say it in plain lines."""
        return [line for one in self.rounds for line in _lines(one)] + list(self.notes)


def rounds_status(run: Path) -> RunStatus:
    """Return what a run directory holds.

    Raises:
        RunError: it is no directory of rounds.
    """
    folders = [run / "start", *sorted(run.glob("round-*"))]
    events = read_events(run)
    if not events:
        raise RunError(f"{run} is no run of rounds (it has no events.jsonl); name one that `prefopt rounds` made.")
    seconds: dict[Any, float] = {}
    for event in events:
        if event["event"] == "end":
            seconds[event["round"]] = seconds.get(event["round"], 0.0) + event["seconds"]
    rounds: list[RoundStatus] = []
    policy: str | None = "start"
    for number, folder in enumerate(folders):
        if folder.is_dir():
            found = _current(folder, policy)
            rounds.append(_round(folder, found, seconds.get(number - 1, 0.0)))
            policy = policy if number == 0 else _content(found["train"])
    starts = [at for at, event in enumerate(events) if event["event"] == "start"]
    events = events[starts[-1] :] if starts else events  # what an earlier start ended by is over
    began, ended = ([event for event in events if event["event"] == word] for word in ("begin", "end"))
    notes = []
    if reason := next((event.get("reason") for event in reversed(events) if event["event"] == "stop"), None):
        notes.append(f"stopped: {reason}")
    last = began[-1] if began else None
    if last and not any((e["stage"], e["round"]) == (last["stage"], last["round"]) and e["time"] >= last["time"]
                        for e in ended):  # fmt: skip
        place = "the start" if last["round"] < 0 else f"round {last['round']}"
        notes.append(f"under way, or interrupted: {last['stage']} of {place}")
    return RunStatus(str(run), tuple(rounds), len(starts), tuple(notes))


def _current(folder: Path, policy: str | None) -> dict[str, Manifest | None]:
    """Return the manifests of a round, without those made of what has been made anew since.

    Args:
        folder: the round's.
        policy: content of what the round before trained; None where that is to be trained again.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged manifest is one that is not there
        found = {name: read_manifest(folder / f"{name}.json") for name in (*_STAGES[:-1], *_HINTS, *_EVALUATE)}
    sampled = found["sample"]
    if sampled is not None and sampled.inputs.get("policy") != policy:
        found["sample"] = None
    for name, sources in _MADE_OF.items():
        manifest = found[name]
        if manifest is None or (folder.name == "start" and name == "eval-sample"):
            continue
        asked = {key: source for key, source in sources.items() if key in manifest.inputs or source not in _HINTS}
        if any(manifest.inputs.get(key) != (_content(found[source]) or "") for key, source in asked.items()):
            found[name] = None
    selected = found["select"]
    if selected is not None and "hinted scores" not in selected.inputs:  # of a recipe that asked for hints once
        found |= dict.fromkeys(_HINTS)
    return found


def _content(manifest: Manifest | None) -> str | None:
    """Return the content of a stage's one output."""
    return None if manifest is None else next(output.content for output in manifest.outputs.values())


def _round(folder: Path, found: Mapping[str, Manifest | None], seconds: float) -> RoundStatus:
    counts = {name: {} if manifest is None else dict(manifest.counts) for name, manifest in found.items()}
    measured: Mapping[str, Any] = {}
    if found["evaluate"] is not None:
        try:
            measured = read_json(folder / METRICS)
        except (OSError, ValueError, json.JSONDecodeError):
            measured = {}
    train = counts["train"]
    return RoundStatus(
        name="start" if folder.name == "start" else folder.name.removeprefix("round-").lstrip("0") or "0",
        done=tuple(name for name in _STAGES if found[name] is not None),
        prompts=counts["sample"].get("prompts"),
        rollouts=counts["sample"].get("rollouts"),
        tokens=counts["sample"].get("tokens"),
        reward=counts["score"].get("reward"),
        hinted=counts["hint-sample"].get("rollouts"),
        hinted_right=counts["hint-score"].get("correct"),
        acceptance=counts["select"].get("acceptance"),
        selected=counts["select"].get("examples"),
        examples=train["examples"] + train["replayed"] if train else None,
        replayed=train.get("replayed"),
        replay_wanted=train.get("replay_wanted"),
        accuracy=train.get("accuracy"),
        held_out=measured.get("reward"),
        right=measured.get("pass@1"),
        kl=measured.get("kl"),
        length=measured.get("length"),
        seconds=seconds,
    )


def _lines(one: RoundStatus) -> list[str]:
    """Say what a round came to, a line a stage."""
    start = one.name == "start"
    left = [name for name in _STAGES if name not in one.done]
    state = "whole" if not left or (start and one.done) else f"{', '.join(one.done) or 'nothing'} done"
    lines = [f"{'start' if start else f'round {one.name}'}: {state}, {_time(one.seconds)}"]
    if one.rollouts is not None:
        lines.append(f"  sampled   {one.rollouts:,} rollouts of {one.prompts:,} prompts, {one.tokens:,} tokens")
    if one.reward is not None:
        lines.append(f"  scored    mean reward {one.reward:.4g}")
    if one.hinted:
        right = "" if one.hinted_right is None else f", {one.hinted_right:.1%} of them right"
        lines.append(f"  hinted    {one.hinted:,} rollouts{right}")
    if one.acceptance is not None:
        lines.append(f"  selected  {one.acceptance:.1%} of the candidates, {one.selected:,} examples")
    if one.examples is not None:
        accuracy = "" if one.accuracy is None else f", accuracy {one.accuracy:.2f}"
        lines.append(f"  trained   on {one.examples:,} examples{_of_before(one)}{accuracy}")
    measured = (("reward", one.held_out, ".4g"), ("pass@1", one.right, ".1%"), ("KL", one.kl, ".3g"))
    parts = [
        f"{name} {_interval(value, form)}" for name, value, form in measured if value and value["value"] is not None
    ]
    if one.length and one.length["value"] is not None:
        parts.append(f"{one.length['value']:.1f} tokens")
    if parts:
        lines.append(f"  held out  {', '.join(parts)}")
    return lines


def _of_before(one: RoundStatus) -> str:
    if not one.replayed and not one.replay_wanted:
        return ""
    short = (one.replayed or 0) < (one.replay_wanted or 0)
    asked = f" where rounds.replay asks for {one.replay_wanted:,}" if short else ""
    return f", {one.replayed or 0:,} of them of rounds before{asked}"


def _interval(value: Mapping[str, Any], form: str) -> str:
    return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
