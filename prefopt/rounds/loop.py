"""The loop: sample, score, select, train, evaluate, repeat. Running and resuming are one thing."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from prefopt.errors import RunError
from prefopt.recipe import dump_recipe
from prefopt.rounds.evaluating import metrics_of, plan_evaluation, why_stop
from prefopt.rounds.events import FILE, OF_A_START, Events, locked
from prefopt.rounds.files import write_text
from prefopt.rounds.hinting import check_hints, plan_hint_sampling, plan_hint_scoring
from prefopt.rounds.recipe import RoundsRecipe
from prefopt.rounds.run import START, Plan, Run
from prefopt.rounds.sampling import plan_eval_sampling, plan_sampling
from prefopt.rounds.scoring import plan_eval_scoring, plan_scoring
from prefopt.rounds.select import build_selector
from prefopt.rounds.selecting import bound_of, plan_selection
from prefopt.rounds.training import plan_training
from prefopt.train.ranks import ranks_of_this_run
from prefopt.workflow.directory import RECIPE

Planner = Callable[[Run, int], Plan | None]
"""Gives a stage of a round; None where the recipe doesn't ask for it."""
StageName = Literal["sample", "score", "select", "train", "evaluate"]

STAGES: dict[str, tuple[Planner, ...]] = {
    "sample": (plan_sampling,),
    "score": (plan_scoring, plan_hint_sampling, plan_hint_scoring),
    "select": (plan_selection,),
    "train": (plan_training,),
    "evaluate": (plan_eval_sampling, plan_eval_scoring, plan_evaluation),
}
"""What a round is made of, in order."""


@dataclass(frozen=True)
class RoundsResult:
    """What a call came to."""

    path: Path
    rounds: int
    """Rounds that are whole."""
    stopped: str | None
    """Why it ended before the last round, in words."""


def run_rounds(
    recipe: RoundsRecipe,
    *,
    until: StageName | None = None,
    console: Console | None = None,
    after_round: Callable[[Path], object] | None = None,
) -> RoundsResult:
    """Do what the recipe asks for and is not done yet.

    What is there and was made of the same inputs with the same settings stays; everything else is made again. Started
    as one of several processes (torchrun), it samples and trains together with the others.

    Args:
        recipe: a validated recipe.
        until: end after this stage of the first round that is not finished.
        console: where progress is shown; None shows nothing.
        after_round: called with the run directory, on the first process, when a round has become whole.

    Raises:
        RunError: the directory can't be written, another process works on it, or nothing was selected.
        PrefoptError: what the rooms below say of models, data and settings.
    """
    recipe.train.arguments()  # which joins the processes that a launcher started
    ranks = ranks_of_this_run()
    with ranks.together():
        shown = console if ranks.main else None
        say = shown.print if shown else _silent
        run = Run(recipe, ranks, Events(recipe.run / FILE if ranks.main else None), say, shown)
        if not ranks.main:
            return _whole_run(run, until, None)
        _check_directory(recipe.run)
        with locked(recipe.run):
            # First what says whose directory it is: a recipe that lies there may be a user's own.
            run.events.add("start", processes=ranks.size)
            write_text(recipe.run / RECIPE, dump_recipe(recipe))
            result = _whole_run(run, until, after_round)
            run.events.add("stop", reason=result.stopped)
            return result


def _whole_run(run: Run, until: StageName | None, after_round: Callable[[Path], object] | None) -> RoundsResult:
    run.ranks.meet()  # the directory is there
    with run.ranks.main_first():  # it fetches what the others then find
        _check(run)
    run.say(f"prompts: {len(run.prompts[0]):,} to learn from, {len(run.prompts[1]):,} held out")
    for number in range(run.recipe.rounds.count):
        made = False
        for name in STAGES:
            if name == "evaluate":  # what every round is compared with
                made |= _do(run, START, name)
            made |= _do(run, number, name)
            if name == "evaluate" and made and after_round is not None:
                after_round(run.folder)
            if name == until and (made or not _rest_is_done(run, number, name)):
                return RoundsResult(run.folder, number + (name == "evaluate"), f"--until {until} was asked for")
        if reason := _stop(run, number):
            run.say(f"stopped after round {number}: {reason}")
            return RoundsResult(run.folder, number + 1, reason)
    return RoundsResult(run.folder, run.recipe.rounds.count, None)


def _do(run: Run, number: int, name: str) -> bool:
    """Do a stage of a round, unless it is done; return whether there was anything to do."""
    did = False
    for planner in STAGES[name]:
        plan = planner(run, number)
        if plan is None:
            continue
        stage = plan.stage
        if (number, stage.name) in run.made:
            continue
        found = run.ranks.of_main(stage.done)
        if found is None:
            did = True
            title = "start" if number == START else f"round {number}"
            changes = run.ranks.of_main(stage.changes)
            why = f", again: {', '.join(changes)} changed" if changes else ""
            run.say(f"{title}: {stage.name}{why}")
            with run.events.timed(stage.name, round=number):
                made = plan.make()
            found = run.ranks.of_main(lambda made=made: made)  # type: ignore[misc]
            gc.collect()  # a model is a web of references, and the next stage loads its own
        assert found is not None
        run.made[number, stage.name] = found
        if run.ranks.main:  # also what a kill left, between the manifest and this
            for folder in plan.spent():
                shutil.rmtree(folder, ignore_errors=True)
    return did


def _rest_is_done(run: Run, number: int, name: str) -> bool:
    """Whether the stages behind this one are done in a round."""
    names = list(STAGES)
    later = [planner for after in names[names.index(name) + 1 :] for planner in STAGES[after]]
    return _is_done(run, START, STAGES["evaluate"]) and _is_done(run, number, later)


def _is_done(run: Run, number: int, planners: Sequence[Planner]) -> bool:
    """Whether stages are done, one after the other; those that are known as such then."""
    for planner in planners:
        plan = planner(run, number)
        if plan is None:
            continue
        stage = plan.stage
        found = run.ranks.of_main(stage.done)
        if found is None:
            return False
        run.made[number, stage.name] = found
    return True


def _stop(run: Run, number: int) -> str | None:
    """Return why the run ends here, if it does: of what is measured, so that a resume decides the same."""
    if number + 1 == run.recipe.rounds.count:
        return None
    measured = [metrics_of(run, one) for one in range(START, number + 1)]
    sampled = [name for name in ("sample", "hint-sample") if (number, name) in run.made]
    tokens = sum(run.made[one, name].counts["tokens"] for one in range(number + 1) for name in sampled)
    return why_stop(run.recipe.rounds.stop, measured, tokens)


def _check(run: Run) -> None:
    """Refuse what can be known to be wrong before a model loads."""
    build_selector(run.recipe.select, n=run.recipe.sample.n, high=bound_of(run))
    for number in range(run.recipe.rounds.count):
        prompts = run.round_prompts(number)
        if run.recipe.rounds.rationalise is not None:
            check_hints(prompts, run.recipe.rounds.rationalise)
    _ = run.scoring


def _check_directory(run: Path) -> None:
    """Refuse a directory that holds something else than rounds."""
    if run.exists() and not run.is_dir():
        raise RunError(f"train.output_dir {run} is a file; name a directory that is new, empty, or a run of rounds.")
    if run.is_dir() and not (run / FILE).is_file() and {path.name for path in run.iterdir()} - OF_A_START:
        raise RunError(
            f"train.output_dir {run} is not empty and no run of rounds (it has no {FILE}); name another directory."
        )


def _silent(text: str) -> None:
    """Say nothing."""
