"""A recipe in, a run directory out: the main job from loading to the last evaluation."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
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
    evaluation_json,
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
    model, tokenizer = load_policy(recipe.model, seed=args.seed if given.start.seed is None else given.start.seed)
    if ranks.main:
        write_json(run / ENVIRONMENT, environment.describe())
    with ranks.main_first():  # the others find what it tokenized
        data, held_out = given.inputs(recipe, tokenizer, run if ranks.main else None)

    progress = [ProgressLine(console)] if console else []
    alarms = Alarms(recipe.alarms, console.print if console else warnings.warn, run / ALARMS)
    listening = [MetricsFile(run / METRICS), *progress, alarms] if ranks.main else []
    streamed = isinstance(data, PreferenceStream)
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
            weights=() if streamed or given.data is not None else weights_of(recipe),
            workers=0 if streamed else recipe.data.workers or 0,
            measures=[SampleWatch(run / SAMPLES_DURING if ranks.main else None, tokenizer, held_out, recipe.eval)],
        ),
    )
    given.start.note(trainer.reference)
    say = console.print if console else _silent
    job = Job(recipe, ranks, trainer, tokenizer, held_out, _pairs(held_out, say), say)
    job.describe()
    job.measure_before()
    try:
        output = trainer.train(resume_from_checkpoint=resume)
    finally:
        for line in progress:
            line.close()
    if streamed:  # only now it is known what was read
        job.write_data()
    job.save()
    before, after = job.measure_after()
    return RunResult(run, before, after, float(output.metrics.get("train_runtime", 0.0)))


@dataclass
class Job:
    """A run that is about to train: what it says of itself, what it measures and what it leaves, on each rank."""

    recipe: Recipe
    ranks: Ranks
    trainer: PreferenceTrainer
    tokenizer: PreTrainedTokenizerBase
    held_out: PreferenceData | None
    pairs: PreferenceData | None
    """Those of `held_out` that can be measured."""
    say: Callable[[str], None]

    @property
    def run(self) -> Path:
        """Return the run's directory."""
        return self.recipe.train.output_dir

    def describe(self) -> None:
        """Say and write down what is trained on what against what, and settle the token budget."""
        trainer, say = self.trainer, self.say
        measured = self.pairs or self.held_out
        say(f"data: {_counted(trainer.data)} to learn from, {_counted(measured) if measured else 'none'} held out")
        self.write_data(_epoch(trainer, say))
        if (settled := settle_budget(trainer, self.recipe, say)) != self.recipe:
            self.recipe = settled
            if self.ranks.main:
                replace_text(self.run / RECIPE, dump_recipe(settled))  # what a resume goes on with
        say(f"policy: {trainer.packed.admission.reason}")
        say(f"reference: {trainer.reference.reason}")
        if self.ranks.size > 1:
            say(f"processes: {self.ranks.size}, each computes its part of every step")
        if self.ranks.main:
            note_reference(trainer.reference, self.run)

    def write_data(self, epoch: Mapping[str, Any] | None = None) -> None:
        """Write what was read of the data; `epoch`: what an epoch is made of."""
        measured = self.pairs or self.held_out
        trained = {**self.trainer.data.summary.to_dict(), **(epoch or {})}
        self._write(DATA, {"train": trained, "eval": measured and measured.summary.to_dict()})

    def measure_before(self) -> None:
        """Measure and sample the policy as it begins, unless that is done."""
        # Samples are written last, so a resumed run has its measures before training or takes them.
        if self.ranks.of_main((self.run / SAMPLES).is_file):
            return
        self.say("measuring before training")
        before = self._evaluate()
        drawn = self.trainer.ranks.of_model(
            lambda: sample_texts(self.recipe.eval, self.trainer.packed.model, self.tokenizer, self.held_out, "before")
        )
        if before:
            self._write(BEFORE, evaluation_json("pairs", before.to_dict()))
        self._write(SAMPLES, [{**sample, "after": []} for sample in drawn])

    def save(self) -> None:
        """Write the adapter or the model."""
        model = self.trainer.packed.model
        weights = trained_weights(model) if self.trainer.ranks.sharded else None
        self.ranks.of_main(lambda: save_result(model, self.tokenizer, self.run, weights))

    def measure_after(self) -> tuple[PairEvaluation | None, PairEvaluation | None]:
        """Measure and sample the policy as it ended; return what held-out pairs said before and say now."""
        self.say("measuring after training")
        after = self._evaluate()
        if after:
            self._write(AFTER, evaluation_json("pairs", after.to_dict()))
        drawn = self.ranks.of_main(lambda: json.loads((self.run / SAMPLES).read_text()))
        self._write(SAMPLES, self.trainer.ranks.of_model(lambda: self._samples(drawn)))
        kept = self.ranks.of_main(lambda: json.loads((self.run / BEFORE).read_text()) if after else None)
        if self.ranks.main and (asked := note_reference(self.trainer.reference, self.run)):
            self.say(asked)
        return PairEvaluation.from_dict(kept) if kept else None, after

    def _evaluate(self) -> PairEvaluation | None:
        pairs, recipe, trainer = self.pairs, self.recipe, self.trainer
        if pairs is None:
            return None
        return trainer.ranks.of_model(
            lambda: evaluate_pairs(
                trainer.packed, trainer.reference.start, pairs, recipe.eval, beta=recipe.loss.build().beta
            )
        )

    def _samples(self, drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return what was sampled before training with what is sampled now, and what was taught about each word."""
        options, policy, reference = self.recipe.eval, self.trainer.packed, self.trainer.reference.start
        tuned = sample_texts(options, policy.model, self.tokenizer, self.held_out, "after")
        compared = reference_texts(options, reference, self.tokenizer, self.held_out) or [{} for _ in tuned]
        whole = [{**old, **new, **other} for old, new, other in zip(drawn, tuned, compared, strict=True)]
        return shade(options, policy, reference, self.tokenizer, self.held_out, self.pairs, whole)

    def _write(self, name: str, content: Any) -> None:
        if self.ranks.main:
            write_json(self.run / name, content)


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


def _silent(text: str) -> None:
    """Say nothing."""
