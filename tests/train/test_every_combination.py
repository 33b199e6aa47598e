"""Every loss on every form of data with every reference: one step that learns, or a sentence before it."""

from __future__ import annotations

import math

import pytest
import torch

from prefopt.data.pack import build_packs
from prefopt.errors import PrefoptError
from prefopt.losses import available, build
from prefopt.models.packed import PackedModel
from prefopt.models.references import FrozenModel, build_reference
from prefopt.train.step import run_step
from tests.train.test_step import MIXTURES, all_groups, draw_examples, policy_of

REFERENCES = ("auto", "adapter_off", "frozen_copy", "model", "none")
FIXES = "Use a loss for labels|write 'reference: auto'"


@pytest.fixture(scope="module")
def policy() -> PackedModel:
    return policy_of("llama")


@pytest.fixture(scope="module")
def other_model() -> PackedModel:
    torch.manual_seed(1)
    return policy_of("llama")


def prepare(loss, form, kind, policy, other_model):
    """Return data and reference as the trainer asks for them before anything is computed."""
    data = draw_examples(3, 5, form).for_loss(loss.form, needs_mismatched=loss.needs_mismatched)
    if kind == "model":
        return data, FrozenModel(policy, other_model, "the test names it.")
    return data, build_reference(kind, policy, needed=loss.needs_reference)


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("form", ["paired", "unpaired"])
@pytest.mark.parametrize("name", [*available(), *MIXTURES])
def test_it_learns_or_says_what_to_do(policy, other_model, name, form, kind) -> None:
    loss = build(name)
    if (loss.form, form) == ("paired", "unpaired") or (loss.needs_reference and kind == "none"):
        with pytest.raises(PrefoptError, match=FIXES):
            prepare(loss, form, kind, policy, other_model)
        return
    data, reference = prepare(loss, form, kind, policy, other_model)
    policy.model.zero_grad()
    with policy.attached(), reference.attached():
        packs = build_packs(all_groups(data, loss), token_budget=60, shared=True)
        result = run_step(policy, reference, loss, packs, backward=lambda value: value.backward())
    gradients = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])
    assert math.isfinite(result.loss)
    assert gradients.isfinite().all()
    assert gradients.abs().max() > 0
