"""What to change of a recipe that doesn't fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from prefopt.models.config import LoraSection, QuantizationSection
from prefopt.models.plan.machine import Machine
from prefopt.workflow.footprint import STEP, Footprint, budget_of


@dataclass(frozen=True)
class Advice:
    """A change that lets a recipe fit that doesn't."""

    what: str
    overrides: tuple[str, ...]
    """Of the recipe, with all those before."""
    total: float
    """Bytes that are needed then."""
    fits: bool


def advice(footprint: Footprint, machine: Machine, largest: int | None) -> Iterator[Advice]:
    """Yield changes that make a recipe smaller, those that lose the least first, until it fits."""
    budget = budget_of(footprint, largest)
    overrides: tuple[str, ...] = ()
    if largest is not None:
        total = footprint.total(largest) + machine.context
        smaller = (f"train.token_budget={largest}",)
        yield Advice("a smaller token budget: the same result, in more packs", smaller, total, fits=True)
        return
    least = max(STEP, -(-footprint.lengths.longest // STEP) * STEP)
    if budget > least:
        budget, overrides = least, (f"train.token_budget={least}",)
    own = footprint
    for what, further, change in changes(footprint):
        own = change(own)
        overrides = (*overrides, *further)
        total = own.total(budget)
        yield Advice(what, overrides, total + machine.context, total <= machine.room)
        if total <= machine.room:
            return


def changes(footprint: Footprint) -> Iterator[tuple[str, tuple[str, ...], Callable[[Footprint], Footprint]]]:
    """Yield what makes a run smaller: what it costs, the overrides, and the footprint with it."""
    policy, recipe = footprint.policy, footprint.recipe
    in_parts = recipe.train.shard_weights  # for which a cache, 8-bit state and quantized weights are refused
    stays = recipe.reference.kind != "moving" and "divergence" not in footprint.loss.extras
    if footprint.reference_bytes and stays and not in_parts:
        # A recipe's `reference: frozen_copy` gives way to its keys, of which this is one.
        kept = ("reference.kind=frozen_copy",) if recipe.reference.kind == "frozen_copy" else ()
        yield (
            "a reference whose log-probs are on disk before (run `prefopt reference build` first): the same result",
            (*kept, "reference.cache=true"),
            lambda f: replace(f, cached_reference=True),
        )
    if not policy.checkpointing:
        yield (
            "activation checkpointing: the same result, a third more time",
            ("train.activation_checkpointing=true",),
            lambda f: replace(f, policy=f.policy.with_(checkpointing=True)),
        )
    if "8bit" not in footprint.optimizer and not in_parts and footprint.weights.optimizer_bytes > 0:
        yield (
            "an optimizer with 8-bit state",
            ("train.optim=adamw_bnb_8bit",),
            lambda f: replace(f, optimizer="adamw_bnb_8bit"),
        )
    if policy.trains_all:
        yield "a LoRA adapter on the frozen model instead of training all of it", _to_lora(footprint), _with_lora
    if policy.config.quantization is None and policy.config.peft is None and not in_parts:
        yield (
            "frozen weights in 4 bits (QLoRA)",
            ("model.quantization=nf4",),
            lambda f: replace(f, policy=f.policy.with_(quantization=QuantizationSection(type="nf4"))),
        )
    lora = policy.config.lora or LoraSection()
    if policy.config.adapter is None and policy.config.peft is None and lora.r > 8:
        yield ("a smaller adapter", ("model.lora.r=8",), _smaller_adapter)


def _to_lora(footprint: Footprint) -> tuple[str, ...]:
    thawed = ("model.freeze=[]",) if footprint.policy.config.freeze else ()
    copied = footprint.recipe.reference.kind == "frozen_copy"  # which the model without its adapter replaces
    return ("model.lora={}", *thawed, "model.dtype=bfloat16", *(("reference.kind=auto",) if copied else ()))


def _with_lora(footprint: Footprint) -> Footprint:
    reference = footprint.recipe.reference
    if reference.kind == "frozen_copy":
        reference = reference.model_copy(update={"kind": "auto"})
    return replace(
        footprint,
        policy=footprint.policy.with_(lora=LoraSection(), freeze=(), dtype=torch.bfloat16),
        recipe=footprint.recipe.model_copy(update={"reference": reference}),
    )


def _smaller_adapter(footprint: Footprint) -> Footprint:
    lora = (footprint.policy.config.lora or LoraSection()).model_copy(update={"r": 8})
    return replace(footprint, policy=footprint.policy.with_(lora=lora))
