"""What a recipe will take of memory and time, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from prefopt.errors import PrefoptError
from prefopt.losses import Loss
from prefopt.models.config import LoraSection, QuantizationSection
from prefopt.models.dtypes import DTYPES, resolve_device, resolve_dtype
from prefopt.models.plan.machine import Machine, find_machine
from prefopt.models.plan.passes import Passes, PassOptions
from prefopt.models.plan.policy import PlannedPolicy
from prefopt.models.plan.weights import Weights
from prefopt.models.reference_config import ReferenceConfig
from prefopt.recipe import Recipe
from prefopt.train.arguments import PreferenceArguments
from prefopt.train.config import DEFAULT_BUDGET
from prefopt.workflow.lengths import Lengths, filled, guessed_lengths, read_lengths

GUESSED = 512
"""Tokens of an example where there is no data to look at."""
_STEP = 64
"""Budgets are proposed in multiples of this."""
_WIDEST = 1 << 17
"""Budgets beyond are not looked for."""


@dataclass(frozen=True)
class Parts:
    """Bytes at the moment when the most is needed."""

    weights: float
    """Frozen ones."""
    trained: float
    """The adapter, or all weights."""
    gradients: float
    optimizer: float
    reference: float
    """What the reference takes beside the policy."""
    activations: float
    """What passes keep and work on, logits aside."""
    logits: float
    """The tile of logits, and what its sweep takes."""
    context: float
    """What the device's libraries take."""

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Advice:
    """A change that lets a recipe fit that doesn't."""

    what: str
    overrides: tuple[str, ...]
    """Of the recipe, with all those before."""
    total: float
    """Bytes that are needed then."""
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What a recipe will take."""

    model: str
    machine: Machine
    parameters: int
    trainable: int
    dtype: str
    token_budget: int
    pack_tokens: int
    """Of the largest pack."""
    parts: Parts
    largest_budget: int | None
    """The largest token budget that fits; None where not even one example does."""
    step_tokens: float
    step_flops: float
    """Of the whole step, by products."""
    step_seconds: float | None
    steps: int | None
    steps_per_epoch: int | None
    lengths: str
    """Where lengths are known from."""
    notes: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = field(default=())

    @property
    def fits(self) -> bool:
        return self.machine.memory is None or self.parts.total <= self.machine.room + self.parts.context

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values: bytes, flops, seconds."""
        return {**asdict(self), "total": self.parts.total, "fits": self.fits}


@dataclass(frozen=True)
class Footprint:
    """The memory of one way to run a recipe, as a function of its packs."""

    policy: PlannedPolicy
    recipe: Recipe
    loss: Loss
    lengths: Lengths
    args: PreferenceArguments
    """Those of the recipe. Making them again would reset what accelerate knows of a trainer that is there."""
    optimizer: str
    cached_reference: bool = False
    """Whether every log-prob of the reference is stored before."""

    @cached_property
    def weights(self) -> Weights:
        return self.policy.weights(self.optimizer)

    @property
    def has_reference(self) -> bool:
        """Whether a frozen model runs beside the policy."""
        return self.loss.needs_reference and not self.cached_reference

    @cached_property
    def reference_bytes(self) -> int:
        """What the reference takes beside the policy's own weights."""
        config = self.recipe.reference
        if not self.has_reference:
            return 0
        if config.kind == "model" and config.model is not None:
            if config.device not in ("auto", self.policy.config.device):
                return 0  # it lies on another device
            stored = {"quantization": None, "lora": LoraSection(), "adapter": None, "peft": None}
            named = self.policy.config.model_copy(
                update={"name": config.model, "revision": config.revision, "freeze": (), **stored}
            )
            dtype = self.policy.dtype if config.dtype == "auto" else DTYPES[config.dtype]
            found = PlannedPolicy.of(named, dtype, gpu=self.policy.gpu).weights("sgd")
            return found.frozen_bytes + found.dense_bytes
        copied = config.kind in ("frozen_copy", "moving") or (config.kind == "auto" and not self._new_adapter)
        return self.weights.trainable_bytes if copied else 0

    @property
    def _new_adapter(self) -> bool:
        return self.policy.config.lora is not None and self.policy.config.adapter is None

    @property
    def lasting(self) -> float:
        """Bytes that are there through the whole run, gradients aside."""
        w = self.weights
        return w.frozen_bytes + w.trainable_bytes + w.optimizer_bytes + self.reference_bytes + w.dense_bytes

    def pack_tokens(self, budget: int) -> int:
        """Return the tokens of the largest pack under `budget`: one example at least, one step at most."""
        return min(max(budget, self.lengths.longest), max(self.lengths.longest_step, self.lengths.longest))

    def passes(self, budget: int) -> Passes:
        tokens = self.pack_tokens(budget)
        several = tokens < self.lengths.longest_step
        args = self.args
        options = PassOptions(
            extras=self.loss.extras - {"divergence"},
            labelled_alone=several and self.loss.statistics == "mismatched" and not self.loss.extras,
            autocast=torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None,
        )
        return self.policy.passes(filled(self.lengths.groups, tokens), options, reference=self.has_reference)

    def parts(self, budget: int, passes: Passes, context: float) -> Parts:
        """Return what is needed at the worst moment of a step."""
        w = self.weights
        forward = max(passes.reference, passes.forward)
        logits = min(passes.head, forward) if forward >= passes.backward else 0.0
        gradients, needed = float(w.trainable_bytes), passes.peak
        if self.pack_tokens(budget) >= self.lengths.longest_step:
            # A step of one pack makes its gradients while activations go.
            needed = max(passes.peak - gradients, 0.0, passes.backward - passes.kept)
        return Parts(
            weights=w.frozen_bytes + w.dense_bytes,
            trained=w.trainable_bytes,
            gradients=gradients,
            optimizer=w.optimizer_bytes,
            reference=self.reference_bytes,
            activations=max(0.0, needed - logits),
            logits=logits,
            context=context,
        )

    def total(self, budget: int, passes: Passes | None = None) -> float:
        """Return the bytes of everything but the device's own."""
        return self.parts(budget, passes or self.passes(budget), 0.0).total

    def largest_budget(self, room: float) -> int | None:
        """Return the largest budget, of which everything fits into `room` bytes, or None."""
        most = min(_WIDEST, -(-self.lengths.longest_step // _STEP) * _STEP)
        least = min(most, max(_STEP, -(-self.lengths.longest // _STEP) * _STEP))
        low, at_low = least, self.total(least)
        if at_low > room:
            return None
        high = most
        at_high = self.total(high)
        if at_high <= room:
            return most
        for _ in range(6):
            # Nearly a line; the tile of logits alone stops growing.
            share = (room - at_low) / (at_high - at_low)
            middle = min(high - _STEP, max(low + _STEP, int(low + share * (high - low)) // _STEP * _STEP))
            if high - low <= _STEP:
                break
            at_middle = self.total(middle)
            if at_middle > room:
                high, at_high = middle, at_middle
            else:
                low, at_low = middle, at_middle
                if room - at_low < 0.01 * room:
                    break
        return low


def plan_recipe(
    recipe: Recipe,
    *,
    gpu: str | None = None,
    memory: str | None = None,
    tokens_per_example: int | None = None,
    search: bool = True,
) -> Plan:
    """Plan a recipe from its configuration and the lengths of its data.

    Args:
        recipe: a validated recipe.
        gpu: a key of `kernels.roofline.GPUS` to plan for; without it and `memory`, this machine.
        memory: of the GPU, such as "24GB".
        tokens_per_example: taken instead of looking at the data.
        search: whether the largest budget is looked for.

    Raises:
        PrefoptError: what the rooms below say of models, data and settings.
    """
    footprint, machine, notes = prepare(recipe, gpu=gpu, memory=memory, tokens_per_example=tokens_per_example)
    largest = footprint.largest_budget(machine.room) if search and machine.memory is not None else None
    budget = budget_of(footprint, largest)
    passes = footprint.passes(budget)
    tokens = footprint.pack_tokens(budget)
    packs = footprint.lengths.step_tokens / tokens
    one = machine.seconds(passes.work, passes.attention)
    parts = footprint.parts(budget, passes, machine.context)
    plan = Plan(
        model=recipe.model.name,
        machine=machine,
        parameters=footprint.weights.parameters,
        trainable=footprint.weights.trainable,
        dtype=str(footprint.policy.dtype).removeprefix("torch."),
        token_budget=budget,
        pack_tokens=tokens,
        parts=parts,
        largest_budget=largest,
        step_tokens=footprint.lengths.step_tokens,
        step_flops=passes.flops * packs,
        step_seconds=None if one is None else one * packs,
        steps=footprint.lengths.steps,
        steps_per_epoch=footprint.lengths.steps_per_epoch,
        lengths=footprint.lengths.source,
        notes=tuple(notes),
    )
    return plan if plan.fits or not search else replace(plan, advice=tuple(_advice(footprint, machine, largest)))


def prepare(
    recipe: Recipe, *, gpu: str | None = None, memory: str | None = None, tokens_per_example: int | None = None
) -> tuple[Footprint, Machine, list[str]]:
    """Return the footprint of a recipe, the machine it is for, and what is to be said of both."""
    loss = recipe.loss.build()
    here = resolve_device(recipe.model.device)
    other = gpu is not None or memory is not None
    on_gpu = other or here.type == "cuda"
    trains_all = recipe.model.lora is None
    if other:
        # What a GPU of today computes fast.
        named = recipe.model.dtype
        dtype = DTYPES[named] if named != "auto" else torch.float32 if trains_all else torch.bfloat16
    else:
        dtype = resolve_dtype(recipe.model.dtype, here, weights_train=trains_all)
    machine = find_machine(gpu, memory, dtype=dtype, cpu=here.type == "cpu")
    policy = PlannedPolicy.of(
        recipe.model,
        dtype,
        gpu=on_gpu,
        checkpointing=bool((recipe.train.model_extra or {}).get("activation_checkpointing")),
    )
    args = recipe.train.arguments()
    notes = []
    if tokens_per_example is not None:
        lengths = guessed_lengths(recipe, loss, tokens_per_example)
    else:
        try:
            lengths = read_lengths(recipe, loss, args)
        except PrefoptError as error:
            lengths = guessed_lengths(recipe, loss, GUESSED)
            notes.append(f"The data was not looked at: {str(error).rstrip('.')}.")
    if not policy.shares_prompts:
        notes.append("This architecture computes a prompt once for each completion; padding is left out of the plan.")
    if recipe.train.activation_offload and on_gpu:
        notes.append("Activations are offloaded: what they take of the GPU is less than the plan says.")
    return Footprint(policy, recipe, loss, lengths, args, str(args.optim.value)), machine, notes


def budget_of(footprint: Footprint, largest: int | None) -> int:
    """Return the recipe's budget; for auto, the largest that fits."""
    budget = footprint.recipe.train.token_budget
    return (largest or DEFAULT_BUDGET) if budget == "auto" else budget


def _advice(footprint: Footprint, machine: Machine, largest: int | None) -> Iterator[Advice]:
    """Yield changes that make a recipe smaller, those that lose the least first, until it fits."""
    budget = budget_of(footprint, largest)
    overrides: tuple[str, ...] = ()
    if largest is not None:
        total = footprint.total(largest) + machine.context
        smaller = (f"train.token_budget={largest}",)
        yield Advice("a smaller token budget: the same result, in more packs", smaller, total, fits=True)
        return
    least = max(_STEP, -(-footprint.lengths.longest // _STEP) * _STEP)
    if budget > least:
        budget, overrides = least, (f"train.token_budget={least}",)
    own = footprint
    for what, further, change in _changes(footprint):
        own = change(own)
        overrides = (*overrides, *further)
        total = own.total(budget)
        yield Advice(what, overrides, total + machine.context, total <= machine.room)
        if total <= machine.room:
            return


def _changes(footprint: Footprint) -> Iterator[tuple[str, tuple[str, ...], Callable[[Footprint], Footprint]]]:
    """Yield what makes a run smaller: what it costs, the overrides, and the footprint with it."""
    policy = footprint.policy
    if footprint.reference_bytes:
        yield (
            "a reference whose log-probs are on disk before (run `prefopt reference build` first): the same result",
            ("reference.cache=true",),
            lambda f: replace(f, cached_reference=True),
        )
    if not policy.checkpointing:
        yield (
            "activation checkpointing: the same result, a third more time",
            ("train.activation_checkpointing=true",),
            lambda f: replace(f, policy=f.policy.with_(checkpointing=True)),
        )
    if "8bit" not in footprint.optimizer and footprint.weights.optimizer_bytes > 0:
        yield (
            "an optimizer with 8-bit state",
            ("train.optim=adamw_bnb_8bit",),
            lambda f: replace(f, optimizer="adamw_bnb_8bit"),
        )
    if policy.trains_all:
        yield (
            "a LoRA adapter on the frozen model instead of training all of it",
            ("model.lora={}", "model.dtype=bfloat16", "reference=auto"),
            lambda f: replace(
                f,
                policy=f.policy.with_(lora=LoraSection(), freeze=(), dtype=torch.bfloat16),
                recipe=f.recipe.model_copy(update={"reference": ReferenceConfig()}),
            ),
        )
    if policy.config.quantization is None and policy.config.peft is None:
        yield (
            "frozen weights in 4 bits (QLoRA)",
            ("model.quantization=nf4",),
            lambda f: replace(f, policy=f.policy.with_(quantization=QuantizationSection(type="nf4"))),
        )
    if policy.config.adapter is None and policy.config.peft is None:
        yield ("a smaller adapter", ("model.lora.r=8",), _smaller_adapter)


def _smaller_adapter(footprint: Footprint) -> Footprint:
    lora = (footprint.policy.config.lora or LoraSection()).model_copy(update={"r": 8})
    return replace(footprint, policy=footprint.policy.with_(lora=lora))
