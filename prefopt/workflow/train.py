"""A recipe in, a run directory out: the main job from loading to the last evaluation."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from prefopt import environment
from prefopt.data import PreferenceData, PreferenceStream
from prefopt.errors import DataError
from prefopt.eval import PairEvaluation, evaluate_pairs, held_out_pairs
from prefopt.models import load_policy
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.recipe import Recipe, dump_recipe
from prefopt.train.alarms import Alarms
from prefopt.train.callbacks import MetricsFile, ProgressLine
from prefopt.train.feed import Feed
from prefopt.train.trainer import PreferenceTrainer
from prefopt.workflow.budget import begun_with, settle_budget
from prefopt.workflow.directory import (
    AFTER,
    ALARMS,
    BEFORE,
    DATA,
    ENVIRONMENT,
    METRICS,
    RECIPE,
    SAMPLES,
    SAMPLES_DURING,
    claim_directory,
    write_json,
)
from prefopt.workflow.finished import save_result
from prefopt.workflow.inputs import load_data, weights_of
from prefopt.workflow.reference import note_reference
from prefopt.workflow.samples import SampleWatch, sample_texts


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    path: Path
    before: PairEvaluation | None
    """Held-out pairs before training; None without held-out data that compare completions."""
    after: PairEvaluation | None
    """The same pairs after training."""
    train_seconds: float
    """Wall time of the optimizer steps, seconds."""


def train_run(
    recipe: Recipe,
    *,
    resume: bool = False,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> RunResult:
    """Train what the recipe says into its `train.output_dir` and evaluate it before and after.

    Args:
        recipe: a validated recipe.
        resume: go on from the newest whole checkpoint of the directory, with the recipe it began with.
        console: where progress is shown; None shows nothing.
        callbacks: more transformers.TrainerCallback objects.

    Raises:
        RunError: the directory is not empty (without `resume`), not writable, or holds a run of another recipe.
        PrefoptError: what the rooms below say of models, data and settings.
    """
    run = recipe.train.output_dir
    if resume:
        recipe = begun_with(recipe, run)
    args = recipe.train.arguments()
    loss = recipe.loss.build()
    claim_directory(run, recipe, resume=resume)
    say = console.print if console else _silent
    model, tokenizer = load_policy(recipe.model, seed=args.seed)
    write_json(run / ENVIRONMENT, environment.describe())
    data, held_out = load_data(recipe, tokenizer, run)

    progress = [ProgressLine(console)] if console else []
    alarms = Alarms(recipe.alarms, console.print if console else warnings.warn, run / ALARMS)
    trainer = PreferenceTrainer(
        model,
        data,
        loss,
        recipe.reference,
        args,
        eval_data=held_out,
        tokenizer=tokenizer,
        callbacks=[MetricsFile(run / METRICS), *progress, alarms, *callbacks],
        group_prompts=recipe.data.group_prompts,
        weights=() if isinstance(data, PreferenceStream) else weights_of(recipe),
        workers=0 if isinstance(data, PreferenceStream) else recipe.data.workers or 0,
        measures=[SampleWatch(run / SAMPLES_DURING, tokenizer, held_out, recipe.eval)],
    )
    pairs = _pairs(held_out, say)
    measured = pairs or held_out
    say(f"data: {_counted(trainer.data)} to learn from, {_counted(measured) if measured else 'none'} held out")
    epoch = _epoch(trainer, say)
    summaries = {"eval": measured and measured.summary.to_dict()}
    write_json(run / DATA, {"train": {**trainer.data.summary.to_dict(), **epoch}, **summaries})
    if (settled := settle_budget(trainer, recipe, say)) != recipe:
        recipe = settled
        (run / RECIPE).write_text(dump_recipe(recipe))  # what a resume goes on with
    say(f"policy: {trainer.packed.admission.reason}")
    say(f"reference: {trainer.reference.reason}")

    if not (run / SAMPLES).is_file():  # written last, so a resumed run has its measures before training or takes them
        say("measuring before training")
        _evaluate(trainer.packed, trainer.reference.start, pairs, recipe, run / BEFORE)
        untrained = sample_texts(recipe.eval, model, tokenizer, held_out, "before")
        write_json(run / SAMPLES, [{**sample, "after": []} for sample in untrained])
    try:
        output = trainer.train(resume_from_checkpoint=resume)
    finally:
        for line in progress:
            line.close()
    if isinstance(data, PreferenceStream):  # only now it is known what was read
        write_json(run / DATA, {"train": trainer.data.summary.to_dict(), **summaries})
    save_result(model, tokenizer, run)
    say("measuring after training")
    after = _evaluate(trainer.packed, trainer.reference.start, pairs, recipe, run / AFTER)
    drawn = json.loads((run / SAMPLES).read_text())
    tuned = sample_texts(recipe.eval, model, tokenizer, held_out, "after")
    write_json(run / SAMPLES, [{**old, **new} for old, new in zip(drawn, tuned, strict=True)])
    if asked := note_reference(trainer.reference, run):
        say(asked)
    before = PairEvaluation.from_dict(json.loads((run / BEFORE).read_text())) if after else None
    return RunResult(run, before, after, float(output.metrics.get("train_runtime", 0.0)))


def _counted(data: PreferenceData | PreferenceStream) -> str:
    """Say how many examples there are and which were left out."""
    if isinstance(data, PreferenceStream):
        return "; ".join(data.summary.notes)
    return f"{len(data)} examples" + "".join(f" ({note})" for note in data.summary.notes)


def _epoch(trainer: PreferenceTrainer, say: Callable[[str], None]) -> dict[str, Any]:
    """Say what an epoch is made of, and return it for the summary: each weighted source's share, and what is saved."""
    if not isinstance(trainer.feed, Feed):
        return {}
    plan = trainer.feed.plan
    made: dict[str, Any] = {}
    if plan.shares:
        made["shares"] = [asdict(share) for share in plan.shares]
        parts = ", ".join(
            f"{share.drawn:,} of {', '.join(share.names)} (each {share.drawn / share.examples:.3g} times)"
            for share in plan.shares
        )
        say(f"mixture: {plan.examples_per_epoch:,} examples an epoch: {parts}")
    saving = plan.saving() if trainer.packed.admission.shared else None
    if saving is not None:
        made["tokens"] = asdict(saving)
        say(f"steps: {saving}")
    return made


def _pairs(held_out: PreferenceData | None, say: Callable[[str], None]) -> PreferenceData | None:
    """Return the pairs to measure: labelled completions have none, and where no list prefers anything, say so."""
    if held_out is None or held_out.form == "unpaired":
        return None
    try:
        return held_out_pairs(held_out)
    except DataError as error:
        say(f"held out: no pair to measure. {error}")
        return None


def _evaluate(
    packed: PackedModel, reference: Reference, pairs: PreferenceData | None, recipe: Recipe, path: Path
) -> PairEvaluation | None:
    """Measure held-out pairs, where there are any, and keep the numbers in `path`."""
    if pairs is None:
        return None
    evaluation = evaluate_pairs(packed, reference, pairs, recipe.eval, beta=recipe.loss.build().beta)
    write_json(path, evaluation.to_dict())
    return evaluation


def _silent(text: str) -> None:
    """Say nothing."""
