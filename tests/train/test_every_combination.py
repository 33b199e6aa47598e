"""Every loss on every form of data with every reference: one step that learns, or a sentence before it."""

from __future__ import annotations

import math

import pytest
import torch

from prefopt.data.pack import build_packs
from prefopt.errors import PrefoptError
from prefopt.losses import available, build
from prefopt.models.packed import PackedModel
from prefopt.models.references import AdapterOff, FrozenModel, Reference, build_reference
from prefopt.train.scored import check_extras
from prefopt.train.step import run_step
from tests.train.test_step import MIXTURES, all_groups, draw_examples, policy_of

REFERENCES = ("auto", "adapter_off", "frozen_copy", "model", "log-probs alone", "none")
FORMS = ("paired", "scored pairs", "unpaired", "listwise")
FIXES = "Use a loss for labels|write 'reference: auto'|name their columns with data.columns.score_chosen"


@pytest.fixture(scope="module")
def policy() -> PackedModel:
    return policy_of("llama")


@pytest.fixture(scope="module")
def other_model() -> PackedModel:
    torch.manual_seed(1)
    return policy_of("llama")


class Alone(AdapterOff):
    """What a cache can give: the log-probs of the tokens that are there."""

    name = "alone"
    gives_states = False
    states = Reference.states


def prepare(loss, form, kind, policy, other_model):
    """Return data and reference as the trainer asks for them before anything is computed."""
    kind_of_data, scored = ("paired", True) if form == "scored pairs" else (form, False)
    data = draw_examples(3, 5, kind_of_data, scored=scored)
    data = data.for_loss(loss.form, needs_mismatched=loss.needs_mismatched, scores=loss.scores)
    if kind == "model":
        reference = FrozenModel(policy, other_model, "the test names it.")
    elif kind == "log-probs alone":
        reference = Alone(policy, "the test wants it.", starts_equal=False)
    else:
        reference = build_reference(kind, policy, needed=loss.needs_reference)
    check_extras(loss, policy, reference)
    return data, reference


def can_work(loss, form, kind) -> bool:
    if form == "unpaired" and (loss.form in ("paired", "listwise") or loss.scores != "unused"):
        return False  # nothing to compare
    if form == "paired" and loss.scores != "unused":
        return False  # no scores
    if kind == "log-probs alone" and "divergence" in loss.extras:
        return False  # no distributions
    return not (loss.needs_reference and kind == "none")


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [*available(), *MIXTURES])
def test_it_learns_or_says_what_to_do(policy, other_model, name, form, kind) -> None:
    loss = build(name)
    if not can_work(loss, form, kind):
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
