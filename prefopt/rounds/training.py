"""The stage that trains: the groups of a round, and of rounds before, through the training that every run has."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.data import DataConfig
from prefopt.errors import RunError
from prefopt.eval import EvalConfig
from prefopt.recipe import Recipe
from prefopt.rounds.files import weights_hash, write_text
from prefopt.rounds.run import START, Plan, Run
from prefopt.rounds.selecting import GROUPS
from prefopt.rounds.stage import Manifest, Stage
from prefopt.rounds.tables import GroupRow, finite_mean, preferences, read_groups
from prefopt.train.callbacks import read_metrics
from prefopt.train.checkpoint import checkpoints
from prefopt.train.config import TrainConfig
from prefopt.workflow import Start, train_run
from prefopt.workflow.directory import ADAPTER, BEFORE_TRAINING, FREE, METRICS, MODEL

FOLDER = "train"
_KEY = ".train-key"
"""Which training the folder holds: what lies there of another one is of no use."""
_STREAM = 0x4E94A7  # tells the choice of replayed groups and the rounds' seeds from all other random numbers of the run
_LAST = 10
"""Logged steps whose accuracy is shown."""


def plan_training(run: Run, number: int) -> Plan:
    """Train on what a round selected."""
    recipe = run.recipe
    before = range(number) if recipe.rounds.replay else ()
    start = _start(run, number)
    stage = Stage(
        "train",
        run.round_folder(number),
        inputs={
            "model": run.model_hash,
            "groups": run.made[number, "select"].content(GROUPS),
            **{f"groups of round {old}": run.made[old, "select"].content(GROUPS) for old in before},
            "policy": run.weights_hash(number - 1) if start.policy else "start",
            "reference": run.weights_hash(number - 1) if start.reference else "start",
        },
        parameters=_parameters(run, number),
        seed=recipe.rounds.seed,
    )
    return Plan(stage, lambda: _train(run, stage, number, start), lambda: checkpoints(stage.folder / FOLDER))


def _start(run: Run, number: int) -> Start:
    """Return where a round's training begins and what it is compared with, by the rules of the recipe."""
    if number == 0:
        return Start()
    rounds, previous = run.recipe.rounds, run.weights(number - 1)
    policy = previous if rounds.policy == "continues" else None
    # One that moves begins as the policy does.
    reference = {"fixed": None, "previous": previous, "moving": policy}[rounds.reference]
    return Start(policy=policy, reference=reference)


def _parameters(run: Run, number: int) -> dict[str, Any]:
    """Return the settings that decide what is trained, without those that cost memory and time alone."""
    recipe = run.recipe
    said = {name: getattr(recipe, name).model_dump(mode="json") for name in ("loss", "reference", "train")}
    for dotted in FREE:
        section, _, key = dotted.partition(".")
        said.get(section, {}).pop(key, None)
    said["train"]["seed"] = seed_of(recipe.train, number)
    rounds = recipe.rounds.model_dump(mode="json", include={"policy", "reference", "replay"})
    return {**said, "rounds": rounds, "form": recipe.select.made_as}


def seed_of(train: TrainConfig, number: int) -> int:
    """Return what a round's training draws its order and dropout with: train.seed, and of later rounds one made of it.

    With one seed for all, rounds of as many examples would go through them in the same order of places.
    """
    seed = train.arguments().seed
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{_STREAM} {seed} {number}".encode()).digest()[:4], "big")


def training_recipe(run: Run, number: int) -> Recipe:
    """Return the recipe by which a round trains."""
    recipe, folder = run.recipe, run.round_folder(number)
    return Recipe(
        model=recipe.model,
        data=DataConfig(train=str(folder / GROUPS)),
        loss=recipe.loss,
        reference=recipe.reference,
        train=recipe.train.model_copy(update={"output_dir": folder / FOLDER, "seed": seed_of(recipe.train, number)}),
        alarms=recipe.alarms,
        eval=EvalConfig(samples=0),
    )


def _train(run: Run, stage: Stage, number: int, start: Start) -> Manifest | None:
    """Train, or go on from the last checkpoint of this very training."""
    folder = stage.folder / FOLDER
    resume = run.ranks.of_main(lambda: _prepared(stage, folder))
    rows = read_groups(stage.folder / GROUPS)
    replayed, wanted = replay(run, number, len(rows))
    data = preferences(run.recipe.select.made_as, [*rows, *replayed])
    run.say(f"  train: {len(rows):,} examples of this round and {len(replayed):,} of rounds before")
    if len(replayed) < wanted:
        run.say(f"  train: rounds.replay asks for {wanted:,} of rounds before, which have no more")
    # An adapter begins as the one that was sampled from, whatever the order is drawn with.
    start = replace(start, seed=run.recipe.train.arguments().seed)
    train_run(training_recipe(run, number), resume=resume, console=run.console, data=data, start=start)
    run.ranks.meet()
    if not run.ranks.main:
        return None
    name = next(name for name in (ADAPTER, MODEL) if (folder / name).is_dir())
    records = [record for record in read_metrics(folder / METRICS) if "loss" in record]
    counts = {
        "examples": len(rows),
        "replayed": len(replayed),
        "replay_wanted": wanted,
        "steps": records[-1]["step"] if records else 0,
        "loss": finite_mean(record["loss"] for record in records[-_LAST:]),
        "accuracy": finite_mean(record.get("rewards/accuracies") for record in records[-_LAST:]),
    }
    return stage.commit({f"{FOLDER}/{name}": weights_hash(folder / name)}, counts)


def _prepared(stage: Stage, folder: Path) -> bool:
    """Clear away another training's files; returns whether there is something of this one to go on from."""
    key = stage.folder / _KEY
    if not key.is_file() or key.read_text() != stage.key:
        if folder.exists():
            try:
                shutil.rmtree(folder)
            except OSError as error:  # what is left of it must not be taken for a checkpoint of this training
                raise RunError(
                    f"{folder} is of another training and can't be removed: {error.strerror}; remove it, or name "
                    "another train.output_dir."
                ) from error
        write_text(key, stage.key)
    return folder.is_dir() and bool({path.name for path in folder.iterdir()} - BEFORE_TRAINING)


def replay(run: Run, number: int, new: int) -> tuple[list[GroupRow], int]:
    """Return groups of earlier rounds, and how many make up the recipe's share of all that is trained on.

    Where the rounds before have fewer, those are all of them.
    """
    share = run.recipe.rounds.replay
    if not share or number == START + 1:
        return [], 0
    earlier = [row for old in range(number) for row in read_groups(run.round_folder(old) / GROUPS)]
    wanted = round(new * share / (1 - share))
    seed = np.random.SeedSequence([_STREAM, run.recipe.rounds.seed, number])
    order = np.argsort(np.random.Generator(np.random.PCG64(seed)).random(len(earlier)), kind="stable")
    return _in_order(earlier, order[:wanted].tolist()), wanted


def _in_order(rows: Sequence[GroupRow], which: Sequence[int]) -> list[GroupRow]:
    return [rows[at] for at in sorted(which)]
