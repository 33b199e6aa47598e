"""A recipe in, a run directory out: the main job from loading to the last evaluation."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase, TrainerCallback

from prefopt import environment
from prefopt.data import PreferenceData, PreferenceStream
from prefopt.errors import DataError
from prefopt.eval import PairEvaluation, evaluate_pairs, held_out_pairs
from prefopt.models import load_policy
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.models.sharded import trained_weights
from prefopt.recipe import Recipe, dump_recipe
from prefopt.train.alarms import Alarms
from prefopt.train.arguments import PreferenceArguments
from prefopt.train.callbacks import MetricsFile, ProgressLine, replace_text
from prefopt.train.feed import Feed
from prefopt.train.ranks import Ranks, ranks_of_this_run
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
from prefopt.workflow.reference import as_begun, note_reference
from prefopt.workflow.samples import SampleWatch, reference_texts, sample_texts, shade
from prefopt.workflow.start import Start


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


@dataclass(frozen=True)
class Given:
    """What a run is given besides its recipe."""

    data: PreferenceData | None
    start: Start

    def inputs(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, run: Path | None
    ) -> tuple[PreferenceData | PreferenceStream, PreferenceData | None]:
        """Return what is trained on and what is held out."""
        return load_data(recipe, tokenizer, run) if self.data is None else (self.data, None)


def train_run(
    recipe: Recipe,
    *,
    resume: bool = False,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    data: PreferenceData | None = None,
    start: Start | None = None,
) -> RunResult:
    """Train what the recipe says into its `train.output_dir` and evaluate it before and after.

    Args:
        recipe: a validated recipe.
        resume: go on from the newest whole checkpoint of the directory, with the recipe it began with.
        console: where progress is shown; None shows nothing.
        callbacks: more transformers.TrainerCallback objects.
        data: learned from instead of what `data.train` names; nothing is held out then.
        start: weights to begin with, instead of those of the recipe's model. A run that goes on must be given what it
            began with.

    Started as one of several processes (torchrun), it trains together with the others and returns the same on each.

    Raises:
        RunError: the directory is not empty (without `resume`), not writable, or holds a run of another recipe.
        PrefoptError: what the rooms below say of models, data and settings.
    """
    if resume:
        recipe = begun_with(recipe, recipe.train.output_dir)
    args = recipe.train.arguments()  # which joins the processes that a launcher started
    ranks = ranks_of_this_run()
    with ranks.together():
        given = Given(data, start or Start())
        return _train(recipe, args, ranks, resume, console if ranks.main else None, callbacks, given)


def _train(
    recipe: Recipe,
    args: PreferenceArguments,
    ranks: Ranks,
    resume: bool,
    console: Console | None,
    callbacks: Sequence[TrainerCallback],
    given: Given,
) -> RunResult:
    """Do what `train_run` says, on each rank; rank 0 writes, prints and, where it can alone, measures."""
    run = recipe.train.output_dir
    loss = recipe.loss.build()
    ranks.of_main(lambda: claim_directory(run, recipe, resume=resume))
    say = console.print if console else _silent
    write = write_json if ranks.main else _write_nothing
    model, tokenizer = load_policy(recipe.model, seed=args.seed if given.start.seed is None else given.start.seed)
    write(run / ENVIRONMENT, environment.describe())
    with ranks.main_first():  # the others find what it tokenized
        data, held_out = given.inputs(recipe, tokenizer, run if ranks.main else None)

    progress = [ProgressLine(console)] if console else []
    alarms = Alarms(recipe.alarms, console.print if console else warnings.warn, run / ALARMS)
    listening = [MetricsFile(run / METRICS), *progress, alarms] if ranks.main else []
    trainer = given.start.build(
        model,
        lambda: PreferenceTrainer(
            model,
            data,
            loss,
            as_begun(recipe.reference, run) if resume else recipe.reference,
            args,
            eval_data=held_out,
            tokenizer=tokenizer,
            callbacks=[*listening, *callbacks],
            group_prompts=recipe.data.group_prompts,
            weights=() if isinstance(data, PreferenceStream) or given.data is not None else weights_of(recipe),
            workers=0 if isinstance(data, PreferenceStream) else recipe.data.workers or 0,
            measures=[SampleWatch(run / SAMPLES_DURING if ranks.main else None, tokenizer, held_out, recipe.eval)],
        ),
    )
    given.start.note(trainer.reference)
    pairs = _pairs(held_out, say)
    measured = pairs or held_out
    say(f"data: {_counted(trainer.data)} to learn from, {_counted(measured) if measured else 'none'} held out")
    epoch = _epoch(trainer, say)
    summaries = {"eval": measured and measured.summary.to_dict()}
    write(run / DATA, {"train": {**trainer.data.summary.to_dict(), **epoch}, **summaries})
    if (settled := settle_budget(trainer, recipe, say)) != recipe:
        recipe = settled
        if ranks.main:
            replace_text(run / RECIPE, dump_recipe(recipe))  # what a resume goes on with
    say(f"policy: {trainer.packed.admission.reason}")
    say(f"reference: {trainer.reference.reason}")
    if ranks.size > 1:
        say(f"processes: {ranks.size}, each computes its part of every step")
    if ranks.main:
        note_reference(trainer.reference, run)

    def evaluate() -> PairEvaluation | None:
        return _evaluate(trainer.packed, trainer.reference.start, pairs, recipe)

    def sample(when: str) -> list[dict[str, Any]]:
        return sample_texts(recipe.eval, model, tokenizer, held_out, when)

    # Written last, so a resumed run has its measures before training or takes them.
    if not ranks.of_main((run / SAMPLES).is_file):
        say("measuring before training")
        before = trainer.ranks.of_model(evaluate)
        drawn = trainer.ranks.of_model(lambda: sample("before"))
        if before:
            write(run / BEFORE, before.to_dict())
        write(run / SAMPLES, [{**s, "after": []} for s in drawn])
    try:
        output = trainer.train(resume_from_checkpoint=resume)
    finally:
        for line in progress:
            line.close()
    if isinstance(data, PreferenceStream):  # only now it is known what was read
        write(run / DATA, {"train": trainer.data.summary.to_dict(), **summaries})
    weights = trained_weights(model) if trainer.ranks.sharded else None
    ranks.of_main(lambda: save_result(model, tokenizer, run, weights))
    say("measuring after training")
    after = trainer.ranks.of_model(evaluate)
    if after:
        write(run / AFTER, after.to_dict())
    drawn = ranks.of_main(lambda: json.loads((run / SAMPLES).read_text()))
    write(run / SAMPLES, trainer.ranks.of_model(lambda: _samples(trainer, tokenizer, recipe, (held_out, pairs), drawn)))
    kept = ranks.of_main(lambda: json.loads((run / BEFORE).read_text()) if after else None)
    before = PairEvaluation.from_dict(kept) if kept else None
    if ranks.main and (asked := note_reference(trainer.reference, run)):
        say(asked)
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
    packed: PackedModel, reference: Reference, pairs: PreferenceData | None, recipe: Recipe
) -> PairEvaluation | None:
    """Measure held-out pairs, where there are any."""
    if pairs is None:
        return None
    return evaluate_pairs(packed, reference, pairs, recipe.eval, beta=recipe.loss.build().beta)


def _samples(
    trainer: PreferenceTrainer,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    data: tuple[PreferenceData | None, PreferenceData | None],
    drawn: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return what was sampled before training with what is sampled now, and what training taught about each word.

    `data`: what is held out, and its pairs.
    """
    held_out, pairs = data
    reference = trainer.reference.start
    tuned = sample_texts(recipe.eval, trainer.packed.model, tokenizer, held_out, "after")
    compared = reference_texts(recipe.eval, reference, tokenizer, held_out) or [{} for _ in tuned]
    whole = [{**old, **new, **other} for old, new, other in zip(drawn, tuned, compared, strict=True)]
    return shade(recipe.eval, trainer.packed, reference, tokenizer, held_out, pairs, whole)


def _silent(text: str) -> None:
    """Say nothing."""


def _write_nothing(path: Path, content: Any) -> None:
    """Leave writing to rank 0."""
