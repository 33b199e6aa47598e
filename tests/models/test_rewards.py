"""Rewards of packs are what a sequence classifier gives to each completion alone, however they are packed."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from prefopt.data import build_packs
from prefopt.data.layout import contents
from prefopt.errors import ModelError
from prefopt.models.rewards import PackedRewards
from prefopt.records import Group
from tests.models.tiny import InFloat64, tiny_causal_lm

GROUPS = [
    Group((5, 6, 7), ((8, 9, 2), (10, 2), (11, 12, 13, 14, 2)), pairs=((0, 1), (2, 1))),
    Group((15, 16, 17, 18, 19), ((20, 2), (21, 22, 23, 2)), pairs=((0, 1),)),
    Group((24,), ((25, 26, 2), (2,)), pairs=((0, 1),)),
]


def classifier(causal: Any, weight: torch.Tensor) -> Any:
    """Return transformers' own classifier with this backbone and head."""
    config = type(causal.config).from_dict(causal.config.to_dict())
    config.num_labels, config.pad_token_id = 1, 0
    made = AutoModelForSequenceClassification.from_config(config).double()
    setattr(made, made.base_model_prefix, causal.base_model)
    made.score.weight.data.copy_(weight)
    return made.eval()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gpt2"])
@pytest.mark.parametrize("budget", [1, 12, 1000])
def test_rewards_are_those_of_a_sequence_classifier(name: str, budget: int) -> None:
    causal = tiny_causal_lm(name)
    rewards = PackedRewards(causal, seed=3)
    rewards.reward_head.double()
    alone = classifier(causal, rewards.reward_head.weight.detach())
    wanted = {}
    with InFloat64(), torch.no_grad():
        for group in GROUPS:
            for completion in group.completions:
                ids = torch.tensor([[*group.prompt, *completion]])
                wanted[group.prompt, completion] = float(alone(input_ids=ids).logits[0, 0])
        found = {}
        packs = build_packs(GROUPS, token_budget=budget, shared=rewards.admission.shared)
        with rewards.attached():
            for pack in packs:
                found.update(zip(contents(pack), rewards.logprobs(pack).tolist(), strict=True))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value, abs=1e-9)


def test_rows_give_the_rewards_that_shared_prompts_give() -> None:
    causal = tiny_causal_lm("llama", dtype=torch.float32)
    rewards = PackedRewards(causal, seed=3)
    with rewards.attached(), torch.no_grad():
        [shared] = build_packs(GROUPS, token_budget=1000, shared=True)
        [rows] = build_packs(GROUPS, token_budget=1000, shared=False)
        torch.testing.assert_close(rewards.logprobs(rows), rewards.logprobs(shared), atol=1e-5, rtol=1e-5)


def test_the_gradient_reaches_head_and_backbone_and_not_the_language_models_head() -> None:
    causal = tiny_causal_lm("llama", dtype=torch.float32)
    rewards = PackedRewards(causal, seed=3)
    [pack] = build_packs(GROUPS, token_budget=1000, shared=True)
    with rewards.attached():
        rewards.logprobs(pack).square().sum().backward()
    assert bool(rewards.reward_head.weight.grad.any())  # type: ignore[union-attr]
    assert bool(causal.model.layers[0].self_attn.q_proj.weight.grad.any())
    assert causal.lm_head.weight.grad is None
    assert any(name == "prefopt_reward_head.weight" for name, _ in causal.named_parameters())


def test_the_head_is_that_of_its_seed_and_a_reward_has_no_tokens() -> None:
    first, same, other = (
        PackedRewards(tiny_causal_lm("llama", dtype=torch.float32), seed=seed).reward_head.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    rewards = PackedRewards(tiny_causal_lm("llama", dtype=torch.float32), seed=1)
    [pack] = build_packs(GROUPS, token_budget=1000, shared=True)
    with rewards.attached(), pytest.raises(ModelError, match="of a whole completion"):
        rewards.logprobs(pack, "none")
