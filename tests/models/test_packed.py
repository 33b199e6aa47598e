import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

from prefopt.data import build_packs
from prefopt.errors import ModelError
from prefopt.models.adapters import adapter_disabled
from prefopt.models.admission import Admission
from prefopt.models.packed import PackedModel
from prefopt.records import Group, Layout, Pack
from tests.models.tiny import _SIZES, FALLBACK, SHARED, VOCABULARY, InFloat64, tiny_causal_lm

ROWS = Admission(shared=False, one_row=False, reason="the test says so")
Weights = dict[tuple[tuple[int, ...], tuple[int, ...]], float]


def random_groups(seed: int, *, count: int = 4, longest: int = 9) -> list[Group]:
    draw = random.Random(seed)

    def tokens(longest: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCABULARY) for _ in range(draw.randint(1, longest)))

    groups = []
    for _ in range(draw.randint(1, count)):
        completions = tuple({tokens(longest): None for _ in range(draw.randint(1, 3))})
        groups.append(Group(tokens(longest), completions, labels=tuple((i, True) for i in range(len(completions)))))
    return groups


def separate_logprobs(model: Any, groups: Sequence[Group]) -> dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor]:
    """The definition: one pass a completion, unpadded, full logits of the model itself."""
    found = {}
    for group in groups:
        for completion in group.completions:
            ids = torch.tensor([[*group.prompt, *completion]])
            model(input_ids=ids[:, :1], use_cache=False)  # dynamic RoPE remembers longer rows until a short one comes
            logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1]
            token = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])
            found[group.prompt, completion] = token.sum()
    return found


def sequences(pack: Pack) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompt and completion of each sequence of a pack, read from its tokens."""
    flat = pack.tokens.flatten().tolist()
    if pack.layout is not None:
        named = []
        for group in pack.layout.groups:
            prompt, start = tuple(flat[group.start : group.start + group.prompt]), group.start + group.prompt
            for length in group.completions:
                named.append((prompt, tuple(flat[start : start + length])))
                start += length
        return named
    assert pack.mask is not None
    rows = [row[keep.bool()].tolist() for row, keep in zip(pack.tokens, pack.mask, strict=True)]
    return [(tuple(r[: len(r) - n]), tuple(r[len(r) - n :])) for r, n in zip(rows, pack.length.tolist(), strict=True)]


def gradients(model: Any) -> Tensor:
    found = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.parameters()]
    model.zero_grad()
    return torch.cat(found)


def packed_pass(packed: PackedModel, packs: Sequence[Pack]) -> dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor]:
    found = {}
    for pack in packs:
        found.update(zip(sequences(pack), packed.logprobs(pack), strict=True))
    return found


def assert_same_as_apart(packed: PackedModel, groups: Sequence[Group], packs: Sequence[Pack], naive: Any) -> None:
    """Log-probs and all gradients of a weighted sum of them, against separate unpadded passes."""
    with InFloat64():
        apart = separate_logprobs(naive, groups)
        weights = {name: 1 + i % 3 - 2.5 * (i % 2) for i, name in enumerate(sorted(apart))}
        sum(weights[n] * value for n, value in apart.items()).backward()
        expected = gradients(naive)
        with packed.attached():
            found = packed_pass(packed, packs)
            sum(weights[n] * value for n, value in found.items()).backward()
        actual = gradients(packed.model)
    assert found.keys() == apart.keys()
    for name, value in found.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, apart[name], rtol=1e-10, atol=1e-10)
    assert float((actual - expected).norm() / expected.norm()) < 1e-9


def shuffled_packs(groups: Sequence[Group], seed: int, budget: int, **options: Any) -> list[Pack]:
    order = list(groups)
    random.Random(seed).shuffle(order)
    return build_packs(order, token_budget=budget, **options)


@pytest.fixture(scope="module")
def models() -> Callable[[str], Any]:
    """Each tiny model once."""
    made: dict[str, Any] = {}
    return lambda name: made.setdefault(name, tiny_causal_lm(name))


@pytest.mark.parametrize("name", SHARED)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), budget=st.integers(20, 120), shared=st.sampled_from([True, True, False]))
def test_logprobs_and_gradients_do_not_depend_on_how_groups_are_packed(
    models: Callable[[str], Any], name: str, seed: int, budget: int, shared: bool
) -> None:
    packed = PackedModel(models(name))
    assert packed.admission.shared
    groups = random_groups(seed)
    assert_same_as_apart(packed, groups, shuffled_packs(groups, seed, budget, shared=shared), models(name))


@pytest.mark.parametrize("name", FALLBACK)
def test_a_model_that_shares_nothing_warns_and_gives_the_numbers_of_separate_passes(name: str) -> None:
    model = tiny_causal_lm(name)
    with (
        InFloat64(),
        pytest.warns(UserWarning, match="every completion is computed with its own copy of the prompt, because"),
    ):
        packed = PackedModel(model)
    groups = random_groups(5, longest=14)  # some sequences above 16 tokens, some below
    assert {len(g.prompt) + len(c) > 16 for g in groups for c in g.completions} == {True, False}
    packs = shuffled_packs(groups, 0, 200, shared=False, one_row=packed.admission.one_row)
    assert_same_as_apart(packed, groups, packs, tiny_causal_lm(name))


@pytest.mark.parametrize("name", ["phi3_longrope", "llama_dynamic"])
def test_rows_of_moving_rope_are_computed_one_at_a_time_also_when_a_pack_holds_several(name: str) -> None:
    model = tiny_causal_lm(name)
    with InFloat64(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = PackedModel(model)
    assert packed.admission.one_row
    groups = random_groups(5, longest=14)
    packs = build_packs(groups, token_budget=500, shared=False)
    assert len(packs) == 1
    assert_same_as_apart(packed, groups, packs, tiny_causal_lm(name))


@pytest.mark.parametrize("name", ["mistral", "gpt_oss"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_passes_in_flight_keep_their_own_layouts_with_activation_checkpointing(name: str, reentrant: bool) -> None:
    plain, model = tiny_causal_lm(name), tiny_causal_lm(name)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()  # as Trainer does: reentrant checkpoints need an input with gradient
    model.train()
    packed = PackedModel(model)
    groups, other = random_groups(1), random_groups(2)
    (first,), (second,), (between,) = (
        build_packs(g, token_budget=10**6, shared=True) for g in (groups, other, [*other, *groups])
    )
    sum(separate_logprobs(plain, [*groups, *other]).values()).backward()
    with packed.attached():
        one = packed.logprobs(first)
        two = packed.logprobs(second)
        with torch.no_grad():
            reference = packed.logprobs(between)
        one.sum().backward()
        with torch.no_grad():
            packed.logprobs(second)
        two.sum().backward()
    expected, actual = gradients(plain), gradients(model)
    assert float((actual - expected).norm() / expected.norm()) < 1e-6  # norms compute in float32
    torch.testing.assert_close(reference, torch.cat([two, one]), rtol=1e-6, atol=1e-6)


def test_a_backward_pass_that_would_recompute_with_another_attention_is_refused() -> None:
    model = tiny_causal_lm("llama").train()
    model.gradient_checkpointing_enable()
    packed = PackedModel(model)
    (pack,) = build_packs(random_groups(1), token_budget=10**6, shared=True)
    with packed.attached():
        loss = packed.logprobs(pack).sum()
    with pytest.raises(ModelError, match=r"the backward pass with activation checkpointing .* inside"):
        loss.backward()


def test_padding_to_a_size_that_repeats_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = PackedModel(tiny_causal_lm("mistral"))
    (pack,) = build_packs(random_groups(4), token_budget=10**6, shared=True)
    found = []
    for pads in (False, True):
        monkeypatch.setattr("prefopt.models.packed.compiles_by_shape", lambda device, dtype, pads=pads: pads)
        packed.model.zero_grad()
        with packed.attached():
            logprobs = packed.logprobs(pack)
            logprobs.sum().backward()
        found.append((logprobs.detach(), gradients(packed.model)))
    assert pack.layout is not None
    ((computed, *_),) = [plan for plan in pack.layout.plans.values() if isinstance(plan, tuple)]
    assert any(isinstance(plan, Layout) and plan.tokens % 32 == 0 for plan in computed.plans.values())
    for plain, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-6, atol=1e-9)  # norms compute in float32


@pytest.mark.parametrize("name", SHARED)
def test_changing_one_completion_leaves_the_log_probs_of_the_others_bitwise_equal(name: str) -> None:
    packed = PackedModel(tiny_causal_lm(name, dtype=torch.float32))
    groups = [Group((3, 4, 5, 6), ((7, 8, 9), (10, 11), (12, 13, 14))), Group((20, 21), ((22, 23), (24,)))]
    changed = [Group((3, 4, 5, 6), ((7, 8, 9), (30, 31), (12, 13, 14))), groups[1]]
    with packed.attached(), torch.no_grad():
        before, after = (packed.logprobs(*build_packs(g, token_budget=10**6, shared=True)) for g in (groups, changed))
    assert (before == after).tolist() == [True, False, True, True, True]


def test_reductions_are_the_sum_the_mean_and_every_token() -> None:
    packed = PackedModel(tiny_causal_lm("llama", dtype=torch.float32))
    (pack,) = build_packs(random_groups(3), token_budget=10**6, shared=True)
    with packed.attached():
        total, mean, token = (packed.logprobs(pack, reduction) for reduction in ("sum", "mean", "none"))
    assert total.dtype == token.dtype == torch.float32
    assert token.shape == pack.target.shape
    torch.testing.assert_close(mean, total / pack.length)
    torch.testing.assert_close(torch.zeros_like(total).index_add(0, pack.segment, token), total)


def lora(model: Any, **options: Any) -> PeftModel:
    """LoRA with both halves random, so that every part matters."""
    torch.manual_seed(1)
    peft_model = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, init_lora_weights=False, **options))
    assert isinstance(peft_model, PeftModel)
    return peft_model.double()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["down_proj"], "use_dora": True},
    ],
    ids=["all layers", "head too", "head as a copy", "dora"],
)
def test_adapters_of_layers_and_head_are_part_of_the_log_probs(options: dict[str, Any]) -> None:
    packed = PackedModel(lora(tiny_causal_lm("llama"), **options))
    naive = lora(tiny_causal_lm("llama"), **options)
    if "modules_to_save" in options:  # the copy must be told apart from the original
        for model in (packed.model, naive):
            model.base_model.model.lm_head.modules_to_save["default"].weight.data.mul_(1.5)
    groups = random_groups(4)
    assert packed.admission.shared
    assert_same_as_apart(packed, groups, shuffled_packs(groups, 1, 60, shared=True), naive)


def test_a_float32_adapter_on_a_bfloat16_head_is_part_of_its_log_probs_and_trains() -> None:
    base: Any = tiny_causal_lm("llama", dtype=torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=20, init_lora_weights=False, target_modules=["lm_head"]))
    groups = random_groups(4)
    (pack,) = build_packs(groups, token_budget=10**6, shared=True)
    packed = PackedModel(model)
    with packed.attached():
        found = packed.logprobs(pack)
        with torch.no_grad(), adapter_disabled(model):
            off = packed.logprobs(pack)
    found.sum().backward()
    apart = separate_logprobs(model, groups)
    expected = torch.stack([apart[name] for name in sequences(pack)]).float()
    assert (found - expected).abs().max() < 0.5
    assert (found - off).abs().max() > 2
    trained = {name.split(".")[-3] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"lora_A", "lora_B"}


@pytest.mark.parametrize(
    "options", [{"target_modules": ["lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}]
)
def test_with_the_adapter_off_log_probs_are_the_base_models(options: dict[str, Any]) -> None:
    packed = PackedModel(lora(tiny_causal_lm("llama"), **options))
    groups = random_groups(4)
    (pack,) = build_packs(groups, token_budget=10**6, shared=True)
    with torch.no_grad(), packed.attached(), adapter_disabled(packed.model):
        found = dict(zip(sequences(pack), packed.logprobs(pack), strict=True))
        apart = separate_logprobs(tiny_causal_lm("llama"), groups)
    for name, value in apart.items():
        torch.testing.assert_close(found[name], value)
    assert packed.head_weight.shape == (VOCABULARY, 32)


@pytest.mark.parametrize("model", [
    lambda: GraniteForCausalLM(GraniteConfig(**_SIZES, logits_scaling=4.0, embedding_multiplier=3.0)),
    lambda: CohereForCausalLM(CohereConfig(**_SIZES, logit_scale=0.25)),
])  # fmt: skip
def test_scaled_logits_are_scaled(model: Callable[[], Any]) -> None:
    made = model().double().eval()
    groups = random_groups(6)
    assert_same_as_apart(PackedModel(made), groups, shuffled_packs(groups, 1, 60, shared=True), made)


def test_outside_of_attached_it_refuses_and_the_model_is_itself() -> None:
    model = tiny_causal_lm("llama", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    before = model.config._attn_implementation, model.generate(ids, max_new_tokens=5, do_sample=False)
    packed = PackedModel(model)
    (pack,) = build_packs(random_groups(3), token_budget=10**6, shared=True)
    with packed.attached(), packed.attached():
        packed.logprobs(pack)
    with pytest.raises(ModelError, match=r"inside `with packed\.attached"):
        packed.logprobs(pack)
    with pytest.raises(ZeroDivisionError), packed.attached():
        raise ZeroDivisionError
    after = model.config._attn_implementation, model.generate(ids, max_new_tokens=5, do_sample=False)
    assert before[0] == after[0] == "sdpa"
    assert torch.equal(before[1], after[1])


def test_shared_prompts_are_refused_by_a_model_that_can_not_share_them() -> None:
    packed = PackedModel(tiny_causal_lm("llama"), admission=ROWS)
    (pack,) = build_packs(random_groups(3), token_budget=10**6, shared=True)
    with packed.attached(), pytest.raises(ModelError, match=r"the test says so\); build its packs with shared=False"):
        packed.logprobs(pack)


def test_in_bfloat16_log_probs_are_close_and_autocast_computes_in_it() -> None:
    exact, rounded = tiny_causal_lm("llama", dtype=torch.float32), tiny_causal_lm("llama", dtype=torch.bfloat16)
    (pack,) = build_packs(random_groups(3), token_budget=10**6, shared=True)
    wanted, packed = PackedModel(exact), PackedModel(rounded)
    with wanted.attached(), packed.attached():
        expected = wanted.logprobs(pack)
        assert torch.allclose(packed.logprobs(pack), expected, atol=0.5, rtol=0.02)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = wanted.logprobs(pack)
    assert cast.dtype == torch.float32
    assert not torch.equal(cast, expected)
    assert torch.allclose(cast, expected, atol=0.5, rtol=0.02)
    cast.sum().backward()


def test_many_completions_of_one_prompt_give_its_last_state_their_exact_sum() -> None:
    """In bfloat16 a sum of 200 terms that rounds after each would be off by percents."""
    model = tiny_causal_lm("llama", dtype=torch.bfloat16)
    packed = PackedModel(model)
    group = Group((3, 4), tuple((5 + i % 50, i // 50) for i in range(200)))
    (pack,) = build_packs([group], token_budget=10**6, shared=True)
    hidden = torch.randn(pack.tokens.numel(), 32, dtype=torch.bfloat16, requires_grad=True)
    from prefopt.models.packed import _Scored

    upstream = torch.rand(400, 32, dtype=torch.bfloat16)
    (found,) = torch.autograd.grad(_Scored.apply(hidden, pack.score_at), hidden, upstream)
    exact = torch.zeros(hidden.shape, dtype=torch.float64).index_add(0, pack.score_at, upstream.double())
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=0)
    assert packed.admission.shared
