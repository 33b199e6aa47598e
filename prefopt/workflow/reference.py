"""The reference of a recipe: its log-probs computed ahead of training, and what a run asked of it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from prefopt.data import PreferenceData, PreferenceStream
from prefopt.errors import DataError, RecipeError
from prefopt.eval import held_out_pairs
from prefopt.eval.score import pair_packs
from prefopt.models import load_policy
from prefopt.models.references import CachedReference, Reference, Store, Usage, default_folder
from prefopt.models.states import Reduction
from prefopt.recipe import Recipe
from prefopt.records import Pack
from prefopt.train.feed import Feed
from prefopt.train.trainer import PreferenceTrainer
from prefopt.workflow.directory import write_json
from prefopt.workflow.inputs import load_data, weights_of

REFERENCE = "reference.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BuildResult:
    """What a build found and did; completions are counted as often as steps hold them."""

    folder: str
    there: int
    """Completions that were stored already."""
    computed: int
    """Completions that were not, or stood in a pack with one that was not."""
    packs: int
    """Packs that the reference computed."""
    bytes: int
    """Of log-probs that are stored of this reference, by this build and all others."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def build_cache(
    recipe: Recipe,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> BuildResult:
    """Fill the reference cache with everything that a run of the recipe will ask for.

    It computes the packs of that run, so that the run finds the bits that it would compute itself. What is there
    already is passed over: an interrupted build goes on where it was.

    Args:
        recipe: a validated recipe.
        shard: (index, of so many): compute every pack whose number leaves this index.
        progress: called after every step with the number of steps done and of all.

    Raises:
        RecipeError: the loss needs no reference, or the reference can't be cached.
        PrefoptError: what the rooms below say of models, data and settings.
    """
    began = time.monotonic()
    config = recipe.reference.model_copy(update={"cache": True})
    loss = recipe.loss.build()
    if not loss.needs_reference:
        raise RecipeError(f"the loss {loss.name} compares with no reference, so there is nothing to compute ahead.")
    args = recipe.train.arguments()
    model, tokenizer = load_policy(recipe.model, seed=args.seed)
    with tempfile.TemporaryDirectory() as aside:  # rejected rows are listed by the run itself
        data, held_out = load_data(recipe, tokenizer, Path(aside))
        stream = isinstance(data, PreferenceStream)
        trainer = PreferenceTrainer(
            model,
            data,
            loss,
            config,
            args,
            eval_data=held_out,
            tokenizer=tokenizer,
            group_prompts=recipe.data.group_prompts,
            weights=() if stream else weights_of(recipe),
            workers=0 if stream else recipe.data.workers or 0,
        )
        reference = trainer.reference
        if not isinstance(reference, CachedReference):
            raise RecipeError(f"there is nothing to keep of this reference: {reference.reason}")
        _fill(trainer, reference, _pairs(held_out), recipe, shard, progress or _silent)
    used = {row.key: row for row in reference.store.usage()}
    own = [used[key] for key in reference.keys if key in used]
    counts = reference.counts
    return BuildResult(
        folder=str(reference.store.folder.parent),
        there=counts.hits,
        computed=counts.computed,
        packs=counts.passes,
        bytes=sum(usage.bytes for usage in own),
        seconds=time.monotonic() - began,
    )


def cache_usage(folder: Path | None = None) -> tuple[Path, list[Usage]]:
    """Return where the reference cache lies and what it holds; nothing is made where there is none."""
    place = folder or default_folder()
    store = Store(place) if place.is_dir() else None
    return place, [] if store is None else store.usage()


def clear_cache(folder: Path | None = None, *, unused_days: float = 0.0) -> int:
    """Forget the references that no run has used for so many days; returns how many."""
    place = folder or default_folder()
    return Store(place, required=True).clear(unused_days * 86400) if place.is_dir() else 0


def note_reference(reference: Reference, run: Path) -> str | None:
    """Write what the run asked of its reference into the run directory, and return it as a line, if it has a cache."""
    cache = reference.summary() if isinstance(reference, CachedReference) else None
    write_json(run / REFERENCE, {"kind": reference.name, "reason": reference.reason, "cache": cache})
    if not isinstance(reference, CachedReference):
        return None
    counts = reference.counts
    damaged = f", {counts.damaged:,} of them damaged" if counts.damaged else ""
    return (
        f"reference cache: {counts.hits:,} log-probs were there, {counts.misses:,} were not{damaged}; the reference "
        f"computed {counts.passes:,} packs"
    )


def _fill(
    trainer: PreferenceTrainer,
    reference: CachedReference,
    pairs: PreferenceData | None,
    recipe: Recipe,
    shard: tuple[int, int],
    progress: Progress,
) -> None:
    """Ask for everything in the order of a run: held-out pairs, then the steps, then the trainer's own evaluation."""
    index, world = shard
    reduction: Reduction = "none" if trainer.loss_module.extras else "sum"
    number = 0

    def ask(packs: Iterable[Pack], what: Reduction) -> None:
        nonlocal number
        for pack in packs:
            if number % world == index:
                reference.logprobs(pack.to(trainer.args.device), what)
            number += 1

    with torch.no_grad(), trainer.packed.attached(), reference.attached():
        if pairs is not None:
            ask(pair_packs(trainer.packed, pairs, token_budget=recipe.eval.token_budget), "sum")
        with trainer.accelerator.autocast():
            total = _steps(trainer)
            for done, packs in enumerate(_packs_of_steps(trainer, total), start=1):
                ask(packs, reduction)
                progress(done, total)
            if trainer.eval_data is not None:
                ask(trainer.eval_packs(trainer.eval_data), reduction)


def _steps(trainer: PreferenceTrainer) -> int:
    """Return how many steps hold everything that a run asks for."""
    feed, args = trainer.feed, trainer.arguments
    planned = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * feed.steps_per_epoch)
    if isinstance(feed, Feed) and (feed.plan.mismatched or feed.plan.weights):
        return planned  # every epoch holds other completions behind a prompt, or other examples
    return min(planned, feed.steps_per_epoch)


def _packs_of_steps(trainer: PreferenceTrainer, count: int) -> Iterator[list[Pack]]:
    loader = trainer.get_train_dataloader()
    while count > 0:
        for item in loader:  # a StepLoader's next epoch begins where the last one ended
            yield item["micro"]
            count -= 1
            if count == 0:
                return


def _pairs(held_out: PreferenceData | None) -> PreferenceData | None:
    """Return the pairs that are measured before and after training; None where there are none to measure."""
    if held_out is None or held_out.form == "unpaired":
        return None
    try:
        return held_out_pairs(held_out)
    except DataError:  # no list prefers anything: the run says so
        return None


def _silent(done: int, total: int) -> None:
    """Say nothing."""
