"""What a recipe will take of memory and time, before a weight is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from prefopt.errors import PrefoptError, RecipeError
from prefopt.models.dtypes import DTYPES, resolve_device, resolve_dtype
from prefopt.models.plan.machine import Machine, find_machine
from prefopt.models.plan.policy import PlannedPolicy
from prefopt.recipe import Recipe
from prefopt.train.arguments import PreferenceArguments
from prefopt.train.config import TrainConfig
from prefopt.workflow.advice import Advice, advice
from prefopt.workflow.footprint import Footprint, Parts, budget_of
from prefopt.workflow.lengths import guessed_lengths, read_lengths

GUESSED = 512
"""Tokens of an example where there is no data to look at."""


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
    return plan if plan.fits or not search else replace(plan, advice=tuple(advice(footprint, machine, largest)))


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
    args = _elsewhere(recipe.train) if on_gpu else recipe.train.arguments()
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
    if recipe.train.shard_weights:
        notes.append(
            "The weights are shared out (train.shard_weights): each process holds its part of weights, gradients and "
            "optimizer, so it needs less than the plan says, which is for one process."
        )
    if (recipe.train.model_extra or {}).get("deepspeed"):
        notes.append(
            "The plan is for one process without DeepSpeed (train.deepspeed): of several, each holds its part of the "
            "optimizer, at stage 2 of gradients too, and beside them a float32 copy of its part of the weights that "
            "train, and the engine's buckets."
        )
    return Footprint(policy, recipe, loss, lengths, args, str(args.optim.value)), machine, notes


def _elsewhere(train: TrainConfig) -> PreferenceArguments:
    """Return the trainer's arguments for one GPU, whatever this machine has: a CPU refuses what a GPU does."""
    given = train.model_extra or {}
    fp16 = bool(given.get("fp16"))
    if fp16 and given.get("bf16"):
        raise RecipeError("train.fp16 and train.bf16 are both true; write one of them.")
    here = {"use_cpu": True, "fp16": False, "fp16_full_eval": False, "tf32": None, "report_to": "none"}
    args = train.model_copy(update={"activation_offload": False, **here}).arguments()
    args.fp16, args.activation_offload = fp16, train.activation_offload
    return args
