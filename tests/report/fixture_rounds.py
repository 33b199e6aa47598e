"""A run of rounds as the loop leaves it: made by the code that writes stages, with seeded answers to small sums."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from prefopt.rounds.config import RoundsEvalConfig
from prefopt.rounds.events import FILE, Events
from prefopt.rounds.files import content_hash
from prefopt.rounds.measures import drift, measure
from prefopt.rounds.sampling import counts_of as count_rollouts
from prefopt.rounds.scoring import counts_of as count_scores
from prefopt.rounds.scoring import pairs_of
from prefopt.rounds.stage import Manifest, Stage
from prefopt.rounds.tables import ScoreRow, rollouts_hash, rows_hash, write_scores
from prefopt.sampling.rollouts import Rollout, write_rollouts
from tests.report.fixture_run import training_rows

RECIPE = """\
model: {name: SmolLM2-135M-Instruct}
prompts: {train: sums.jsonl, eval: sums_held_out.jsonl}
score: {scorers: {numeric: {kind: numeric, column: answer}}}
select: {selector: correct_vs_incorrect}
loss: {name: dpo, beta: 0.1}
rounds: {count: 2}
"""


def write_rounds(run: Path, *, rounds: int = 2, right: float = 0.3, finished: bool = True, prompts: int = 12) -> Path:
    """Write the start and `rounds` rounds; each answers more of the held-out sums rightly than the one before.

    Args:
        run: the directory to make.
        rounds: whole rounds.
        right: how much more of them each round answers rightly.
        finished: whether the loop came to its end, rather than being in the middle of one more round.
        prompts: held-out prompts, of four samples each.
    """
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPE)
    events = Events(run / FILE)
    events.add("start", processes=1)
    policy = "start"
    start = _evaluated(run / "start", -1, policy, 0.1, prompts, events)
    for number in range(rounds):
        folder = run / f"round-{number:03d}"
        made = _sampled(folder, number, policy, events)
        policy = _trained(folder, number, made, events)
        _evaluated(folder, number, policy, 0.1 + right * (number + 1), prompts, events, start)
    if finished:
        events.add("stop", reason=None)
    else:
        _sampled(run / f"round-{rounds:03d}", rounds, policy, events)
        events.add("begin", stage="train", round=rounds)
    return run


def _rollouts(number: int, share: float, prompts: int) -> tuple[list[Rollout], list[ScoreRow]]:
    rng = np.random.default_rng(number + 10)
    rollouts, rows = [], []
    for at in range(prompts):
        for sample in range(4):
            right = bool(rng.random() < share)
            text = f"{at} + 1 = {at + 1}" if right else f"<b>perhaps</b> {at + int(rng.integers(2, 9))}"
            name = f"{at:016x}"
            rollouts.append(
                Rollout(name, sample, 0, (1, 2, 3 + at), tuple(text.encode()), text, "end", -3.0 - at, -3.5 - at)
            )
            rows.append(ScoreRow(name, sample, float(right), right, broken=False, failure=None))
    return rollouts, rows


def _sampled(folder: Path, number: int, policy: str, events: Events) -> Manifest:
    """Write the stages that make a round's examples, and return what was selected."""
    rollouts, rows = _rollouts(100 + number, 0.2 + 0.2 * number, 8)
    folder.mkdir()
    with events.timed("sample", round=number):
        write_rollouts(folder / "rollouts.parquet", rollouts)
        stage = Stage("sample", folder, {"policy": policy}, {})
        sampled = stage.commit({"rollouts.parquet": rollouts_hash(rollouts)}, count_rollouts(rollouts))
    with events.timed("score", round=number):
        write_scores(folder / "scores.parquet", rows)
        stage = Stage("score", folder, {"rollouts": sampled.content("rollouts.parquet")}, {})
        scored = stage.commit({"scores.parquet": rows_hash(rows)}, count_scores(rows))
    with events.timed("select", round=number):
        (folder / "groups.parquet").write_text("groups")
        inputs = {
            "rollouts": sampled.content("rollouts.parquet"),
            "scores": scored.content("scores.parquet"),
        }
        counts = {"examples": 20, "acceptance": 0.25 + 0.1 * number}
        return Stage("select", folder, inputs, {}).commit({"groups.parquet": f"groups {number}"}, counts)


def _trained(folder: Path, number: int, selected: Manifest, events: Events) -> str:
    with events.timed("train", round=number):
        (folder / "train" / "adapter").mkdir(parents=True)
        (folder / "train" / "recipe.yaml").write_text("loss: dpo\n")
        (folder / "train" / "environment.json").write_text(json.dumps({"python": "3.11.2"}))
        lines = [row for row in training_rows(12, seed=number) if "loss" in row]
        (folder / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        stage = Stage("train", folder, {"groups": selected.content("groups.parquet")}, {})
        counts = {"examples": 20, "replayed": 2, "accuracy": 0.8}
        stage.commit({"train/adapter": f"weights {number}"}, counts)
    return f"weights {number}"


def _evaluated(
    folder: Path, number: int, policy: str, share: float, prompts: int, events: Events, start: dict | None = None
) -> dict:
    rollouts, rows = _rollouts(number, share, prompts)
    folder.mkdir(exist_ok=True)
    with events.timed("evaluate", round=number):
        write_rollouts(folder / "eval-rollouts.parquet", rollouts)
        sampled = Stage("eval-sample", folder, {"policy": policy}, {}).commit(
            {"eval-rollouts.parquet": rollouts_hash(rollouts)}, count_rollouts(rollouts)
        )
        write_scores(folder / "eval-scores.parquet", rows)
        of = {"rollouts": sampled.content("eval-rollouts.parquet")}
        scored = Stage("eval-score", folder, of, {}).commit(
            {"eval-scores.parquet": rows_hash(rows)}, count_scores(rows)
        )
        found = measure(pairs_of(rollouts, rows), RoundsEvalConfig(n=4, resamples=200))
        if start is not None:
            found["drift"] = drift(found, start)
        (folder / "metrics.json").write_text(json.dumps(found))
        inputs = {**of, "scores": scored.content("eval-scores.parquet")}
        Stage("evaluate", folder, inputs, {}).commit({"metrics.json": content_hash([found])}, {})
    return found
