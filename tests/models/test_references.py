"""References give the log-probs of the policy as it started, and leave the policy as it is."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.data.pack import build_packs
from prefopt.errors import RecipeError
from prefopt.models import load_policy
from prefopt.models.packed import PackedModel
from prefopt.models.references import AdapterOff, FrozenCopy, FrozenModel, NoReference, Reference, build_reference
from prefopt.records import Group, Pack
from tests.toys import byte_tokenizer

GROUPS = [
    Group(prompt=(5, 6, 7, 8), completions=((9, 10, 11), (12, 2)), pairs=((0, 1),)),
    Group(prompt=(20, 21), completions=((30, 31, 32, 33, 2), (34, 35)), pairs=((0, 1),)),
]


def policy_of(model: Path, **options: Any) -> PackedModel:
    return PackedModel(load_policy(model, **{"device": "cpu", "dtype": "float32", **options})[0])


def pack_for(policy: PackedModel) -> Pack:
    (pack,) = build_packs(GROUPS, token_budget=512, shared=policy.admission.shared, one_row=policy.admission.one_row)
    return pack


def both(policy: PackedModel, reference: Reference) -> tuple[Tensor, Tensor]:
    """Return the log-probs of policy and reference, (S,) each; the policy's with gradient, as in training."""
    pack = pack_for(policy)
    with policy.attached(), reference.attached():
        frozen = reference.logprobs(pack)
        assert frozen is not None
        assert not frozen.requires_grad
        return policy.logprobs(pack), frozen


def train_a_little(policy: PackedModel) -> None:
    optimizer = torch.optim.SGD([p for p in policy.model.parameters() if p.requires_grad], lr=0.1)
    pack = pack_for(policy)
    with policy.attached():
        for _ in range(3):
            policy.logprobs(pack)[0].backward()
            optimizer.step()
            optimizer.zero_grad()


def saved_adapter(model: Path, folder: Path) -> str:
    policy = policy_of(model, lora={"r": 4})
    train_a_little(policy)
    policy.model.save_pretrained(folder)
    return str(folder)


def state(policy: PackedModel) -> list[Any]:
    """Return what a reference pass must not change: weights, their identity, what trains, modes, adapter switches."""
    model = policy.model
    return [
        [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()],
        [(module.training, getattr(module, "_disable_adapters", None)) for module in model.modules()],
    ]


def same(a: list[Any], b: list[Any]) -> bool:
    weights = zip(a[0], b[0], strict=True)
    return a[1] == b[1] and all(x[:3] == y[:3] and torch.equal(x[3], y[3]) for x, y in weights)


def auto(policy: PackedModel) -> Reference:
    return build_reference("auto", policy, needed=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_before_the_first_update_a_new_adapter_and_its_reference_agree_to_the_bit(tiny_model: Path, dtype: str) -> None:
    policy = policy_of(tiny_model, dtype=dtype)
    reference = auto(policy)
    assert isinstance(reference, AdapterOff)
    assert reference.start_tolerance == 0.0
    current, frozen = both(policy, reference)
    assert torch.equal(current, frozen)
    margin = (current - frozen)[0] - (current - frozen)[1]
    assert -torch.nn.functional.logsigmoid(0.1 * margin).item() == pytest.approx(math.log(2), abs=1e-7)


def test_the_adapters_reference_stays_the_base_model_while_the_policy_trains(tiny_model: Path) -> None:
    policy = policy_of(tiny_model)
    reference = auto(policy)
    _, start = both(policy, reference)
    train_a_little(policy)
    current, frozen = both(policy, reference)
    assert torch.equal(frozen, start)
    assert not torch.allclose(current, frozen, atol=1e-3)
    base = policy_of(tiny_model, trainable=False)
    with base.attached():
        assert torch.allclose(base.logprobs(pack_for(base)), frozen, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_that_goes_on_training_is_compared_with_itself_at_the_start(
    tiny_model: Path, tmp_path: Path, dtype: str
) -> None:
    policy = policy_of(tiny_model, adapter=saved_adapter(tiny_model, tmp_path), dtype=dtype)
    reference = auto(policy)
    assert isinstance(reference, FrozenCopy)
    assert "frozen copy of the adapter" in reference.reason
    start, frozen = both(policy, reference)
    assert torch.equal(start, frozen)
    train_a_little(policy)
    current, later = both(policy, reference)
    assert torch.equal(later, frozen)
    assert not torch.allclose(current, later, atol=1e-3)
    off = build_reference("adapter_off", policy, needed=True)
    assert off.start_tolerance is None
    assert not torch.allclose(both(policy, off)[1], frozen, atol=1e-3)


def test_an_adapter_that_took_over_part_of_the_base_is_not_switched_off(tiny_model: Path) -> None:
    policy = policy_of(tiny_model, lora={"r": 4, "init_lora_weights": "pissa"})
    reference = auto(policy)
    assert isinstance(reference, FrozenCopy)
    assert torch.equal(*both(policy, reference))
    with pytest.raises(RecipeError, match="init_lora_weights 'pissa' changes the base weights"):
        build_reference("adapter_off", policy, needed=True)


def test_biases_that_train_beside_the_adapter_are_part_of_the_reference(tiny_model: Path) -> None:
    policy = policy_of(tiny_model, lora={"r": 4, "bias": "all"})
    with pytest.raises(RecipeError, match="bias 'all' trains biases of the base model"):
        build_reference("adapter_off", policy, needed=True)


def test_a_whole_module_trained_beside_the_adapter_is_part_of_the_reference(tiny_model: Path) -> None:
    policy = policy_of(tiny_model, lora={"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["norm"]})
    reference = auto(policy)
    assert isinstance(reference, FrozenCopy)
    start, frozen = both(policy, reference)
    assert torch.equal(start, frozen)
    train_a_little(policy)
    assert torch.equal(both(policy, reference)[1], frozen)


@pytest.mark.parametrize("tied", [False, True])
def test_full_fine_tuning_is_compared_with_a_copy_of_its_start(tiny_model: Path, tmp_path: Path, tied: bool) -> None:
    model = tiny_model
    if tied:
        bare, tokenizer = load_policy(tiny_model, trainable=False, device="cpu")
        bare.config.tie_word_embeddings = True
        bare.tie_weights()
        bare.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        model = tmp_path
    policy = policy_of(model, lora=None)
    embedding, head = policy.model.get_input_embeddings(), policy.model.get_output_embeddings()
    assert (embedding.weight is head.weight) == tied
    reference = auto(policy)
    assert isinstance(reference, FrozenCopy)
    start, frozen = both(policy, reference)
    assert torch.equal(start, frozen)
    train_a_little(policy)
    current, later = both(policy, reference)
    assert torch.equal(later, frozen)
    assert not torch.allclose(current, later, atol=1e-3)
    assert (embedding.weight is head.weight) == tied


Make = Callable[[Path, Path], PackedModel]


def fresh(model: Path, folder: Path) -> PackedModel:
    return policy_of(model)


def continued(model: Path, folder: Path) -> PackedModel:
    return policy_of(model, adapter=saved_adapter(model, folder))


def full(model: Path, folder: Path) -> PackedModel:
    return policy_of(model, lora=None)


@pytest.mark.parametrize("make", [fresh, continued, full])
def test_a_reference_pass_leaves_the_policy_as_it_was(tiny_model: Path, tmp_path: Path, make: Make) -> None:
    policy = make(tiny_model, tmp_path)
    next(p for p in policy.model.parameters() if p.requires_grad).requires_grad_(False)  # frozen by somebody
    policy.model.get_submodule("base_model.model.model.norm" if make is not full else "model.norm").eval()
    reference = auto(policy)
    before = state(policy)
    both(policy, reference)
    assert same(before, state(policy))


@pytest.mark.parametrize("make", [fresh, continued, full])
def test_a_reference_pass_that_fails_leaves_the_policy_as_it_was(
    tiny_model: Path, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make(tiny_model, tmp_path)
    reference = auto(policy)
    before = state(policy)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken inside")

    monkeypatch.setattr(policy, "logprobs", fail)
    with reference.attached(), pytest.raises(RuntimeError, match="broken inside"):
        reference.logprobs(pack_for(policy))
    assert same(before, state(policy))


@pytest.mark.parametrize("make", [fresh, continued, full])
def test_a_reference_pass_between_forward_and_backward_changes_no_gradient(
    tiny_model: Path, tmp_path: Path, make: Make
) -> None:
    policy = make(tiny_model, tmp_path)
    reference = auto(policy)
    train_a_little(policy)
    pack = pack_for(policy)
    gradients = []
    for between in (False, True):
        policy.model.zero_grad()
        with policy.attached(), reference.attached():
            value = policy.logprobs(pack).sum()
            if between:
                reference.logprobs(pack)
            value.backward()
        gradients.append([p.grad.clone() for p in policy.model.parameters() if p.grad is not None])
    assert gradients[0]
    assert all(map(torch.equal, gradients[0], gradients[1]))


def test_a_reference_ignores_the_policys_dropout(tiny_model: Path) -> None:
    with pytest.warns(UserWarning, match="dropout"):
        policy = policy_of(tiny_model, lora={"dropout": 0.5})
    train_a_little(policy)
    reference = FrozenCopy(policy, "a test")
    assert torch.equal(both(policy, reference)[1], both(policy, reference)[1])
    policy.model.eval()
    assert torch.equal(*both(policy, reference))


def test_another_model_is_loaded_frozen_beside_the_policy(tiny_model: Path) -> None:
    policy = policy_of(tiny_model)
    reference = build_reference({"model": str(tiny_model)}, policy, needed=True, tokenizer=byte_tokenizer())
    assert isinstance(reference, FrozenModel)
    assert str(tiny_model) in reference.reason
    start, frozen = both(policy, reference)
    assert torch.equal(start, frozen)
    train_a_little(policy)
    assert torch.equal(both(policy, reference)[1], frozen)


def test_a_model_with_another_vocabulary_is_refused(tiny_model: Path) -> None:
    policy = policy_of(tiny_model)
    other = byte_tokenizer()
    other.add_tokens(["new"])
    with pytest.raises(RecipeError, match=r"another vocabulary than the policy: 1 tokens differ, for example 'new'"):
        build_reference({"model": str(tiny_model)}, policy, needed=True, tokenizer=other)


def test_without_a_tokenizer_the_sizes_of_the_vocabularies_are_compared(tiny_model: Path, tmp_path: Path) -> None:
    bare, tokenizer = load_policy(tiny_model, trainable=False, device="cpu")
    bare.resize_token_embeddings(bare.config.vocab_size + 8)
    bare.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="choose a reference with the policy's vocabulary"):
        build_reference({"model": str(tmp_path)}, policy_of(tiny_model), needed=True)


@pytest.mark.parametrize("kind", ["auto", "none", "adapter_off", {"model": "nowhere/at-all"}])
def test_a_loss_without_reference_gets_none_and_nothing_is_loaded(tiny_model: Path, kind: Any) -> None:
    policy = policy_of(tiny_model, trainable=False)
    reference = build_reference(kind, policy, needed=False)
    assert isinstance(reference, NoReference)
    with reference.attached():
        assert reference.logprobs(pack_for(policy)) is None
    assert "no reference" in reference.reason


def test_a_loss_that_needs_a_reference_refuses_none(tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match="the recipe says 'reference: none'"):
        build_reference("none", policy_of(tiny_model), needed=True)


def test_adapter_off_needs_an_adapter(tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match="needs a policy with an adapter"):
        build_reference("adapter_off", policy_of(tiny_model, lora=None), needed=True)


def test_an_unknown_word_is_a_sentence(tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match="reference: 'of' is no reference: write one of auto"):
        build_reference("of", policy_of(tiny_model), needed=True)
