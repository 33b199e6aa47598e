"""A moving reference is the policy's past: copied, or mixed in, after every so many steps, and saved to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.errors import RunError
from prefopt.models import load_policy
from prefopt.models.packed import PackedModel
from prefopt.models.references import AdapterOff, FrozenCopy, MovingCopy, build_reference
from tests.models.test_references import both, policy_of, train_a_little


def moving(policy: PackedModel, **options: Any) -> MovingCopy:
    reference = build_reference({"kind": "moving", **options}, policy, needed=True)
    assert isinstance(reference, MovingCopy)
    return reference


@pytest.mark.parametrize("options", [{}, {"lora": None}])
def test_it_starts_as_the_policy_and_becomes_the_policy_at_every_nth_step(
    tiny_model: Path, options: dict[str, Any]
) -> None:
    policy = policy_of(tiny_model, **options)
    reference = moving(policy, every=2)
    start, frozen = both(policy, reference)
    assert reference.start_tolerance == 0.0
    assert torch.equal(start, frozen)
    train_a_little(policy)
    assert not reference.end_step(1)
    assert torch.equal(both(policy, reference)[1], frozen)
    assert reference.end_step(2)
    current, moved = both(policy, reference)
    assert torch.equal(current, moved)
    assert not torch.equal(moved, frozen)
    train_a_little(policy)
    assert torch.equal(both(policy, reference)[1], moved)


def test_a_share_of_the_policy_is_mixed_in_weight_by_weight(tiny_model: Path) -> None:
    policy = policy_of(tiny_model)
    reference = moving(policy, every=1, mix=0.25)
    expected = {n: p.detach().double().clone() for n, p in policy.model.named_parameters() if p.requires_grad}
    for step in range(1, 4):
        train_a_little(policy)
        reference.end_step(step)
        live = dict(policy.model.named_parameters())
        expected = {n: 0.25 * live[n].detach().double() + 0.75 * old for n, old in expected.items()}
    found = reference.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name].double(), value, rtol=1e-6, atol=1e-7), name


def test_it_moves_as_trl_moves_its_reference_model(tiny_model: Path) -> None:
    callbacks = pytest.importorskip("trl.trainer.callbacks")
    policy = policy_of(tiny_model, lora=None)
    other, _ = load_policy(str(tiny_model), dtype="float32", lora=None, device="cpu")
    reference = moving(policy, every=1, mix=0.6)
    for step in (1, 2):
        train_a_little(policy)
        callbacks.SyncRefModelCallback._sync_target_model(policy.model, other, 0.6)
        reference.end_step(step)
    theirs = dict(other.named_parameters())
    for name, mine in reference.state_dict().items():
        assert torch.allclose(mine, theirs[name], rtol=1e-6, atol=1e-7), name


def test_its_state_comes_back_to_the_bit_and_not_into_another_policy(tiny_model: Path) -> None:
    policy = policy_of(tiny_model)
    reference = moving(policy, every=1, mix=0.5)
    train_a_little(policy)
    reference.end_step(1)
    saved = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    before = both(policy, reference)[1]
    train_a_little(policy)
    reference.end_step(2)
    assert not torch.equal(both(policy, reference)[1], before)
    reference.load_state_dict(saved)
    assert torch.equal(both(policy, reference)[1], before)
    other = moving(policy_of(tiny_model, lora={"target_modules": ["q_proj"]}), every=1)
    with pytest.raises(RunError, match="has other weights than the policy trains"):
        other.load_state_dict(saved)
    with pytest.raises(RunError, match="holds a reference that moved"):
        build_reference("auto", policy_of(tiny_model), needed=True).load_state_dict(saved)


def test_it_has_no_cache_and_remembers_the_start_where_that_is_free(tiny_model: Path) -> None:
    reference = moving(policy_of(tiny_model), every=1)
    assert reference.identity() is None
    assert isinstance(reference.start, AdapterOff)
    full = moving(policy_of(tiny_model, lora=None), every=1)
    assert isinstance(full.start, FrozenCopy)


def test_a_tied_weight_is_mixed_once(tiny_model: Path) -> None:
    bare, _ = load_policy(str(tiny_model), lora=None, dtype="float32", device="cpu")
    bare.config.tie_word_embeddings = True
    bare.tie_weights()
    policy = PackedModel(bare)
    reference = moving(policy, every=1, mix=0.5)
    start = bare.get_input_embeddings().weight.detach().clone()
    train_a_little(policy)
    reference.end_step(1)
    assert len(reference.state_dict()) == len(list(bare.parameters()))
    found = next(value for name, value in reference.state_dict().items() if "embed_tokens" in name)
    assert torch.allclose(found, (start + bare.get_input_embeddings().weight) / 2, atol=1e-6)
