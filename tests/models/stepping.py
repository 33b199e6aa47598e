"""One optimizer step of a loaded policy, as gradients: what tests of kinds of policies compare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import prefopt
from prefopt.data import StepPlan, build_packs
from prefopt.losses import build
from prefopt.models.packed import PackedModel
from prefopt.models.references import build_reference
from prefopt.train.step import StepResult, run_step
from tests.toys import pair_rows


def shake(model: Any, *, std: float = 0.05) -> Any:
    """Add noise to every weight that trains, so that no gradient is zero because another weight is."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += (torch.randn(parameter.shape, generator=draw) * std).to(parameter)
    return model


def packs_of(tokenizer: Any, packed: PackedModel, *, loss: str = "dpo", budget: int = 4096, count: int = 4) -> Any:
    module = build(loss, beta=0.1)
    data = prefopt.load_preferences(pair_rows(count), tokenizer)
    data = data.for_loss(module.form, needs_mismatched=module.needs_mismatched, scores=module.scores)
    plan = StepPlan(data, examples_per_step=len(data), seed=0, mismatched=module.needs_mismatched)
    admission = packed.admission
    groups = plan.groups(0, 0)
    return module, build_packs(groups, token_budget=budget, shared=admission.shared, one_row=admission.one_row)


def step(
    model: Any, tokenizer: Any, *, loss: str = "dpo", budget: int = 4096, reference: Any = "frozen_copy", **context: Any
) -> tuple[StepResult, Tensor]:
    """Return what a step came to and the gradient of everything that trains, (P,) float64."""
    packed = PackedModel(model)
    module, packs = packs_of(tokenizer, packed, loss=loss, budget=budget)
    built = build_reference(reference, packed, needed=module.needs_reference)
    model.train().zero_grad()
    with packed.attached(), built.attached():
        result = run_step(packed, built, module, packs, backward=lambda value: value.backward(), **context)
    found = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    return result, found


def logprobs(model: Any, tokenizer: Any) -> Tensor:
    """Return the log-probs of the completions of `pair_rows`, packed, without gradient."""
    packed = PackedModel(model)
    _, packs = packs_of(tokenizer, packed)
    with torch.no_grad(), packed.attached():
        return torch.cat([packed.logprobs(pack) for pack in packs])


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference as a share of the norm of what is expected, which is not zero."""
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())
