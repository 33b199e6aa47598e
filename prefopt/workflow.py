"""A recipe in, a run directory out: the main job from loading to the last evaluation, and the way back into a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from prefopt import environment
from prefopt.data import PreferenceData, PreferenceStream, Weighted, load_preferences, weighted
from prefopt.data.load import parse_options
from prefopt.data.sources import open_sources
from prefopt.errors import DataError, RecipeError, RunError
from prefopt.eval import PairEvaluation, evaluate_pairs, held_out_pairs
from prefopt.models import load_policy
from prefopt.models.adapters import save_weights
from prefopt.models.packed import PackedModel
from prefopt.models.references import FrozenModel, Reference, build_reference
from prefopt.recipe import Recipe, dump_recipe, load_recipe
from prefopt.sampling import generate
from prefopt.train.callbacks import MetricsFile, ProgressLine
from prefopt.train.checkpoint import staged
from prefopt.train.feed import Feed
from prefopt.train.trainer import PreferenceTrainer

RECIPE, ENVIRONMENT, DATA, METRICS = "recipe.yaml", "environment.json", "data.json", "metrics.jsonl"
REJECTED, SAMPLES, ADAPTER, MODEL = "rejected_rows.jsonl", "samples.json", "adapter", "model"
BEFORE, AFTER = "eval/before.json", "eval/after.json"
INPUTS = "inputs"  # data that was made for this run
BEFORE_TRAINING = {INPUTS, RECIPE, ENVIRONMENT, DATA, REJECTED, f"eval_{REJECTED}"}


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
    args = recipe.train.arguments()
    loss = recipe.loss.build()
    claim_directory(run, recipe, resume=resume)
    say = console.print if console else _silent
    model, tokenizer = load_policy(recipe.model, seed=args.seed)
    _write(run / ENVIRONMENT, environment.describe())
    data, held_out = _load_data(recipe, tokenizer, run)

    progress = [ProgressLine(console)] if console else []
    trainer = PreferenceTrainer(
        model,
        data,
        loss,
        recipe.reference,
        args,
        eval_data=held_out,
        tokenizer=tokenizer,
        callbacks=[MetricsFile(run / METRICS), *progress, *callbacks],
        group_prompts=recipe.data.group_prompts,
        weights=() if isinstance(data, PreferenceStream) else _weights(recipe),
        workers=0 if isinstance(data, PreferenceStream) else recipe.data.workers,
    )
    pairs = _pairs(held_out, say)
    measured = pairs or held_out
    say(f"data: {_counted(trainer.data)} to learn from, {_counted(measured) if measured else 'none'} held out")
    epoch = _epoch(trainer, say)
    summaries = {"eval": measured and measured.summary.to_dict()}
    _write(run / DATA, {"train": {**trainer.data.summary.to_dict(), **epoch}, **summaries})
    say(f"policy: {trainer.packed.admission.reason}")
    say(f"reference: {trainer.reference.reason}")

    if not (run / SAMPLES).is_file():  # written last, so a resumed run has its measures before training or takes them
        say("measuring before training")
        _evaluate(trainer.packed, trainer.reference, pairs, recipe, run / BEFORE)
        _write(run / SAMPLES, [{**s, "after": []} for s in _sample(recipe, model, tokenizer, held_out, "before")])
    try:
        output = trainer.train(resume_from_checkpoint=resume)
    finally:
        for line in progress:
            line.close()
    if isinstance(data, PreferenceStream):  # only now it is known what was read
        _write(run / DATA, {"train": trainer.data.summary.to_dict(), **summaries})
    save_result(model, tokenizer, run)
    say("measuring after training")
    after = _evaluate(trainer.packed, trainer.reference, pairs, recipe, run / AFTER)
    drawn = json.loads((run / SAMPLES).read_text())
    tuned = _sample(recipe, model, tokenizer, held_out, "after")
    _write(run / SAMPLES, [{**old, **new} for old, new in zip(drawn, tuned, strict=True)])
    before = PairEvaluation.from_dict(json.loads((run / BEFORE).read_text())) if after else None
    return RunResult(run, before, after, float(output.metrics.get("train_runtime", 0.0)))


def claim_directory(run: Path, recipe: Recipe, *, resume: bool) -> None:
    """Make the run directory and write its recipe, or check that it holds a run of this very recipe."""
    kept = run / RECIPE
    if run.exists() and not run.is_dir():
        raise RunError(f"train.output_dir {run} is a file; name a directory that is new or empty.")
    # What a start that failed before the first step leaves behind is not a run that could be lost.
    if run.is_dir() and {path.name for path in run.iterdir()} - BEFORE_TRAINING:
        if not resume:
            raise RunError(
                f"train.output_dir {run} is not empty; name another directory, or go on with the run in it by --resume."
            )
        if not kept.is_file():
            raise RunError(f"{run} has no {RECIPE}, so it is not a run to resume; name another train.output_dir.")
        if changed := _changed(load_recipe(kept), recipe):
            raise RunError(
                f"{run} began with another recipe: {', '.join(changed)} changed. A run goes on as it began; "
                f"restore the values in {kept}, or name another train.output_dir."
            )
    try:
        run.mkdir(parents=True, exist_ok=True)
        kept.write_text(dump_recipe(recipe))
    except OSError as error:
        raise RunError(
            f"train.output_dir {run} can't be written: {error.strerror}; name a directory you may write to."
        ) from error


def _changed(old: Recipe, new: Recipe) -> list[str]:
    """Return the dotted keys whose values differ; where the run lies and who prepares its data does not count."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = sorted((before.keys() | after.keys()) - {"train.output_dir", "data.workers"})
    return [key for key in keys if before.get(key) != after.get(key)]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, child in tree.items() for k, v in _flat(child, f"{prefix}.{key}" if prefix else key).items()}


def _load_data(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, run: Path
) -> tuple[PreferenceData | PreferenceStream, PreferenceData | None]:
    options = recipe.data
    data: PreferenceData | PreferenceStream
    if options.streaming:
        data = PreferenceStream(
            options.train_names,
            tokenizer,
            weights=_weights(recipe),
            window=options.window,
            workers=options.workers,
            rejected_to=run / REJECTED,
            **options.options("train"),
        )
    else:
        _weights(recipe)  # what is named twice is told before all of it is read
        data = load_preferences(options.train_names, tokenizer, rejected_to=run / REJECTED, **options.options("train"))
    held_out = None
    if options.eval is not None:
        held_out = load_held_out(recipe, tokenizer, options.eval, rejected_to=run / f"eval_{REJECTED}")
    return data, held_out


def load_held_out(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    source: str | Sequence[str],
    *,
    rejected_to: Path | None = None,
) -> PreferenceData:
    """Load held-out preferences as the recipe's `data` section says, from `source`."""
    return load_preferences(source, tokenizer, rejected_to=rejected_to, **recipe.data.options("eval"))


def _weights(recipe: Recipe) -> tuple[Weighted, ...]:
    return weighted(recipe.data.train_weights, parse_options(recipe.data.options("train")))


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
    _write(path, evaluation.to_dict())
    return evaluation


def _sample(
    recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, data: PreferenceData | None, when: str
) -> list[dict[str, Any]]:
    """Complete the first distinct held-out prompts: [{"prompt": text, when: [completion, ...]}]."""
    options = recipe.eval
    if data is None or not options.samples:
        return []
    prompts = list(dict.fromkeys(example.prompt for example in data))[: options.samples]
    repeated = [list(prompt) for prompt in prompts for _ in range(options.samples_per_prompt)]
    texts = generate(
        model, tokenizer, repeated, max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=0
    )
    n = options.samples_per_prompt
    shown = [tokenizer.decode(list(prompt), skip_special_tokens=True) for prompt in prompts]
    return [{"prompt": text, when: texts[i * n : (i + 1) * n]} for i, text in enumerate(shown)]


def _write(path: Path, content: Any) -> None:
    """Write JSON so that a reader, or a kill, never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(content, indent=1))
    aside.replace(path)


def _silent(text: str) -> None:
    """Say nothing."""


def save_result(model: Any, tokenizer: PreTrainedTokenizerBase, run: Path) -> Path:
    """Write the adapter (or, after full fine-tuning, the model) and the tokenizer, whole or not at all."""
    final = run / (ADAPTER if hasattr(model, "peft_config") else MODEL)
    with staged(final) as folder:
        save_weights(model, folder)
        tokenizer.save_pretrained(folder)
    return final


def load_run(run: Path) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, Recipe]:
    """Load what a run produced: its model with the trained adapter, its tokenizer and its recipe.

    Raises `RunError` when `run` is not a run directory, or its training has not finished.
    """
    recipe = _run_recipe(run)
    if (run / MODEL).is_dir():
        model, tokenizer = load_policy(recipe.model, trainable=False, name=str(run / MODEL), lora=None)
    elif (run / ADAPTER).is_dir():
        lora = {} if recipe.model.lora is None else {"dtype": recipe.model.lora.dtype}
        model, tokenizer = load_policy(recipe.model, trainable=False, adapter=str(run / ADAPTER), lora=lora)
    else:
        raise RunError(f"{run} has not finished training; finish it by prefopt train {run / RECIPE} --resume.")
    return model, tokenizer, recipe


def _run_recipe(run: Path) -> Recipe:
    if not (run / RECIPE).is_file():
        raise RunError(f"{run} is no run directory (it has no {RECIPE}); name one that `prefopt train` made.")
    return load_recipe(run / RECIPE, check_files=False)


def eval_pairs_run(
    run_or_recipe: Path, *, data: str | Sequence[str] | None = None, token_budget: int | None = None
) -> PairEvaluation:
    """Measure a run, or the model a recipe names, on held-out pairs.

    Args:
        run_or_recipe: a run directory, or a recipe file, whose model is measured as it is.
        data: pairs, or scored lists, to measure on instead of the recipe's `data.eval`.
        token_budget: tokens computed at once; None takes `eval.token_budget`.

    Raises:
        RecipeError: there is no data to measure on.
        DataError: the data is missing, or has no pairs and no lists that prefer one completion to another.
    """
    is_run = run_or_recipe.is_dir()
    recipe = _run_recipe(run_or_recipe) if is_run else load_recipe(run_or_recipe)
    source = data or recipe.data.eval
    if source is None:
        raise RecipeError(
            f"{run_or_recipe} names no data.eval to measure on; give pairs or scored lists by --data FILE."
        )
    open_sources(source, recipe.data)  # a missing file is told before a model loads
    if is_run:
        model, tokenizer, _ = load_run(run_or_recipe)
    else:
        model, tokenizer = load_policy(recipe.model, trainable=False)
    held_out = load_held_out(recipe, tokenizer, source)
    if held_out.form == "unpaired":
        raise DataError(f"{source} holds labelled completions, not pairs; give pairs or scored lists by --data FILE.")
    packed = PackedModel(model)
    loss = recipe.loss.build()
    compared = is_run and loss.needs_reference and recipe.reference.kind != "none"
    reference = _run_reference(recipe, packed) if compared else None
    config = recipe.eval.model_copy(update={"token_budget": token_budget} if token_budget else {})
    return evaluate_pairs(packed, reference, held_out, config, beta=loss.beta)


def _run_reference(recipe: Recipe, packed: PackedModel) -> Reference:
    """Return what a finished run was compared with: for a new adapter its base, otherwise the model by its name."""
    if recipe.reference.kind == "model":
        return build_reference(recipe.reference, packed, needed=True)
    if isinstance(packed.model, PeftModel) and recipe.model.adapter is None:
        return build_reference("adapter_off", packed, needed=True)
    start, _ = load_policy(recipe.model, trainable=False)
    return FrozenModel(packed, PackedModel(start), "the model that the run began with.")
