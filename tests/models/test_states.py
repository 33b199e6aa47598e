"""What is computed from hidden states and head beside log-probs, against full logits of separate passes."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from prefopt.data import build_packs
from prefopt.errors import ModelError, RecipeError
from prefopt.losses import build
from prefopt.models.packed import PackedModel
from prefopt.models.references import FrozenModel, NoReference, Reference, build_reference
from prefopt.train.scored import check_extras, score_pack
from tests.models.test_packed import random_groups, sequences
from tests.models.tiny import SHARED, InFloat64, tiny_causal_lm

Distributions = dict[tuple[tuple[int, ...], tuple[int, ...]], torch.Tensor]
EVERYTHING = ("token", "log_sum_p2", "divergence")


def adapted(name: str, *targets: str) -> PackedModel:
    config = LoraConfig(r=3, lora_alpha=6, init_lora_weights=False, target_modules=list(targets) or "all-linear")
    torch.manual_seed(0)
    return PackedModel(get_peft_model(tiny_causal_lm(name), config).double())


def distributions(model: Any, groups: Any) -> Distributions:
    """(L, V) log-probs of every token at every place of every completion."""
    found = {}
    for group in groups:
        for completion in group.completions:
            ids = torch.tensor([[*group.prompt, *completion]])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1]
            found[group.prompt, completion] = logits.log_softmax(-1)
    return found


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("targets", [(), ("q_proj", "lm_head")], ids=["layers", "head too"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_extras_are_those_of_full_logits(name: str, targets: tuple[str, ...], shared: bool) -> None:
    policy, groups = adapted(name, *targets), random_groups(3)
    reference = build_reference("adapter_off", policy, needed=True)
    packs = build_packs(groups, token_budget=40, shared=shared)
    with InFloat64(), torch.no_grad():
        own = distributions(policy.model, groups)
        with policy.model.disable_adapter():
            frozen = distributions(policy.model, groups)
        with policy.attached():
            for pack in packs:
                scored = score_pack(policy, reference, pack, EVERYTHING)
                assert scored.token is not None
                assert torch.equal(scored.policy, policy.logprobs(pack))
                assert torch.equal(scored.reference, reference.logprobs(pack))
                assert torch.equal(scored.token.policy, policy.logprobs(pack, "none"))
                assert torch.equal(scored.token.segment, pack.segment)
                names = sequences(pack)
                squares = torch.stack([(2 * own[n]).logsumexp(-1).sum() for n in names])
                kl = torch.stack([(frozen[n].exp() * (frozen[n] - own[n])).sum() for n in names])
                torch.testing.assert_close(scored.log_sum_p2, squares, rtol=1e-10, atol=1e-10)
                torch.testing.assert_close(scored.divergence, kl, rtol=1e-9, atol=1e-10)
                assert float(kl.min()) > 1e-6


@pytest.mark.parametrize("name", sorted(SHARED))
def test_the_gradient_of_a_divergence_is_that_of_full_logits(name: str) -> None:
    groups = random_groups(4)
    policy = adapted(name, *(("c_attn",) if name == "gpt2" else ("q_proj", "v_proj")))
    reference = build_reference("adapter_off", policy, needed=True)
    (pack,) = build_packs(groups, token_budget=10**6, shared=True)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    with InFloat64():
        with torch.no_grad(), policy.model.disable_adapter():
            frozen = distributions(policy.model, groups)
        own = distributions(policy.model, groups)
        weights = torch.arange(pack.num_sequences).double() - 1.5
        kl = torch.stack([(frozen[n].exp() * (frozen[n] - own[n])).sum() for n in sequences(pack)])
        expected = torch.autograd.grad((weights * kl).sum(), trained)
        with policy.attached():
            found = score_pack(policy, reference, pack, ("divergence",)).divergence
            assert found is not None
            actual = torch.autograd.grad((weights * found).sum(), trained)
    expected, actual = (torch.cat([g.flatten() for g in grads]) for grads in (expected, actual))
    assert float((actual - expected).norm() / expected.norm()) < 1e-8


def test_references_of_every_kind_that_are_the_same_model_give_the_same_divergence() -> None:
    policy, groups = adapted("llama", "q_proj"), random_groups(6)
    (pack,) = build_packs(groups, token_budget=10**6, shared=True)
    other = FrozenModel(policy, PackedModel(tiny_causal_lm("llama")), "the test says so.")
    with InFloat64(), torch.no_grad(), policy.attached(), other.attached():
        off = build_reference("adapter_off", policy, needed=True)
        found = [score_pack(policy, each, pack, ("divergence",)).divergence for each in (off, other)]
        itself = score_pack(policy, build_reference("frozen_copy", policy, needed=True), pack, ("divergence",))
    assert found[0] is not None
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    assert itself.divergence is not None
    assert float(itself.divergence.abs().max()) < 1e-12


def test_a_reference_of_another_precision_is_compared_in_the_policys() -> None:
    policy, groups = adapted("llama", "q_proj"), random_groups(6)
    (pack,) = build_packs(groups, token_budget=10**6, shared=True)
    rough = FrozenModel(policy, PackedModel(tiny_causal_lm("llama", dtype=torch.bfloat16)), "the test says so.")
    with InFloat64(), torch.no_grad(), policy.attached(), rough.attached():
        exact = score_pack(
            policy, build_reference("adapter_off", policy, needed=True), pack, ("divergence",)
        ).divergence
        found = score_pack(policy, rough, pack, ("divergence",)).divergence
    assert found is not None
    assert found.dtype == torch.float64
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.2, atol=0.05)


class LogprobsAlone(Reference):
    """What a cache gives."""

    name = "cached"
    reason = ""
    start_tolerance = None

    def logprobs(self, pack, reduction="sum"):
        raise NotImplementedError

    def attached(self):
        raise NotImplementedError


def test_what_compares_distributions_needs_a_reference_that_has_some() -> None:
    policy = adapted("llama", "q_proj")
    with pytest.raises(RecipeError, match=r"the loss tdpo compares whole distributions .* 'cached' gives log-probs of"):
        check_extras(build("tdpo"), policy, LogprobsAlone())
    with pytest.raises(RecipeError, match="compares whole distributions"):
        check_extras(build("dpo + 0.1*tdpo"), policy, LogprobsAlone())
    with pytest.raises(ModelError, match="the reference cached has log-probs of single tokens alone"):
        LogprobsAlone().states(None)  # type: ignore[arg-type]  # it never looks
    for formula in ("dpo", "ld_dpo", "wpo"):
        check_extras(build(formula), policy, LogprobsAlone())
    check_extras(build("simpo"), policy, NoReference(""))


@pytest.mark.parametrize("how", ["all weights", "a copy of the head"])
def test_a_divergence_is_refused_for_a_head_that_trains(how: str) -> None:
    model = tiny_causal_lm("llama")
    if how == "a copy of the head":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    policy = PackedModel(model)
    reference = build_reference("frozen_copy", policy, needed=True)
    with pytest.raises(RecipeError, match=r"the loss tdpo has no gradient for a head that trains, .* set model\.lora"):
        check_extras(build("tdpo"), policy, reference)
    (pack,) = build_packs(random_groups(1), token_budget=10**6, shared=True)
    with policy.attached(), pytest.raises(ModelError, match="no gradient for a head that trains"):
        score_pack(policy, reference, pack, ("divergence",))
    check_extras(build("wpo"), policy, reference)


def test_a_reference_with_another_number_of_rows_is_refused_before_a_step() -> None:
    policy = adapted("llama", "q_proj")
    other = FrozenModel(policy, PackedModel(tiny_causal_lm("llama", vocab_size=97)), "the test says so.")
    with pytest.raises(RecipeError, match=r"the heads have \d+ rows in the policy and 97 in the reference"):
        check_extras(build("tdpo"), policy, other)
    check_extras(build("ld_dpo"), policy, other)


def test_states_of_another_device_go_where_the_tokens_are() -> None:
    policy = adapted("llama", "q_proj")
    (pack,) = build_packs(random_groups(1), token_budget=10**6, shared=True)
    with InFloat64(), torch.no_grad(), policy.attached():
        states = policy.states(pack)
    moved = states.to(torch.device("meta"), torch.float32)
    assert (moved.hidden.device.type, moved.head.weight.device.type) == ("meta", "meta")
    assert (moved.hidden.dtype, moved.head.weight.dtype) == (torch.float32, torch.float32)


def test_a_divergence_keeps_no_head_alive_once_its_graph_is_used() -> None:
    policy, groups = adapted("llama", "q_proj"), random_groups(6)
    (pack,) = build_packs(groups, token_budget=10**6, shared=True)
    rough = FrozenModel(policy, PackedModel(tiny_causal_lm("llama", dtype=torch.bfloat16)), "the test says so.")
    with InFloat64(), policy.attached(), rough.attached():
        reference = rough.states(pack).to(pack.tokens.device, torch.float64)
        kept = weakref.ref(reference.head.weight)
        found = policy.states(pack).divergence(reference, pack)
        del reference
        assert kept() is not None  # the graph needs it
        found.sum().backward()
    assert kept() is None
