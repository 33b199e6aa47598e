"""The table of docs/plan.md: what usual cards hold of known models, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import torch

from prefopt.losses.config import LossConfig
from prefopt.models.config import LoraSection, ModelConfig, QuantizationSection
from prefopt.models.plan.machine import GIB, Machine
from prefopt.models.plan.passes import Passes, PassOptions
from prefopt.models.plan.policy import PlannedPolicy, settings_of
from prefopt.models.plan.weights import Weights
from prefopt.workflow.lengths import filled, shaped

SIZES = (8, 12, 16, 24, 48, 80)
"""GiB of a card."""
PAIR = 1024
"""Tokens of a pair, prompt and two completions."""
_AT = (1024, 4096, 16384)
"""Budgets that are traced; memory is a line through the first two, or, where something else than a pack's tokens is the
most at both (the gradient of a large embedding), through the last two."""
_MOST = 65536
WAYS = ("LoRA bf16", "LoRA bf16, checkpoints", "QLoRA nf4, checkpoints", "full bf16, checkpoints")


def known_models() -> dict[str, dict[str, Any]]:
    """Return the configurations of the table's models by name."""
    text = resources.files("prefopt.models.plan").joinpath("known.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def plan_table() -> Iterator[str]:
    """Yield the lines of the table: the largest token budget by model, way and card; a dash where not one pair fits."""
    yield f"| model | way | {' | '.join(f'{size} GB' for size in SIZES)} |"
    yield f"| {'--- | ' * (len(SIZES) + 2)}".rstrip()
    for name, values in known_models().items():
        for way in WAYS:
            cells = [f"{budget:,}" if budget else "-" for budget in budgets(values, way)]
            yield f"| {name} | {way} | {' | '.join(cells)} |"


def budgets(values: dict[str, Any], way: str) -> Iterator[int | None]:
    """Yield the largest budget on each card, in multiples of 256; None where not one pair fits."""
    weights, (start, low), (stop, high) = _traced(json.dumps(values), way)
    lasting = weights.frozen_bytes + weights.trainable_bytes * 2 + weights.optimizer_bytes + weights.dense_bytes
    lasting += weights.trainable_bytes if way.startswith("full") else 0  # the frozen copy
    slope = (high.peak - low.peak) / (stop - start)
    for size in SIZES:
        room = Machine("", True, size * GIB).room - lasting
        budget = int(start + (room - low.peak) / slope) // 256 * 256
        yield min(_MOST, budget) if budget >= PAIR else None


@cache
def _traced(values: str, way: str) -> tuple[Weights, tuple[int, Passes], tuple[int, Passes]]:
    """Return the weights, and two budgets with their passes."""
    full = way.startswith("full")
    stored = QuantizationSection(type="nf4") if "nf4" in way else None
    config = ModelConfig(name="known", lora=None if full else LoraSection(), quantization=stored)
    checkpoints = "checkpoints" in way
    policy = PlannedPolicy(settings_of(json.loads(values)), config, torch.bfloat16, True, checkpoints)
    weights = policy.weights("adamw_torch_fused")
    pair = shaped(LossConfig.model_validate({}).build(), PAIR)

    def passes(at: int) -> tuple[int, Passes]:
        return at, policy.passes(filled([pair], at), PassOptions(), reference=True)

    low, high = map(passes, _AT[:2])
    if high[1].peak <= 1.01 * low[1].peak:
        low, high = high, passes(_AT[2])
    return weights, low, high
