"""All weights train: with a head of their own, a tied one, and parts frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

import prefopt
from prefopt.errors import RecipeError
from prefopt.models import ModelConfig
from tests.models.loading import load
from tests.models.stepping import distance, step
from tests.toys import byte_tokenizer, pair_rows


@pytest.fixture(scope="module")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama whose head is its embedding."""
    folder = tmp_path_factory.mktemp("models") / "tied"
    torch.manual_seed(0)
    sizes = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def naive(policy: Any, start: Any, tokenizer: Any) -> torch.Tensor:
    """Return the gradient of DPO by passes of one sequence each over full logits."""
    policy.zero_grad()
    data = prefopt.load_preferences(pair_rows(4), tokenizer)

    def logprob(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum()

    for example in data:
        chosen, rejected = (logprob(policy, example.prompt, c) for c in example.completions)
        with torch.no_grad():
            frozen = [logprob(start, example.prompt, c) for c in example.completions]
        margin = 0.1 * ((chosen - frozen[0]) - (rejected - frozen[1]))
        (-torch.nn.functional.logsigmoid(margin) / len(data)).backward()
    found = torch.cat([p.grad.flatten().double() for p in policy.parameters() if p.requires_grad])
    policy.zero_grad()
    return found


@pytest.mark.parametrize("freeze", [[], ["embeddings"], ["head"], ["layers\\.0\\.", "norm"]], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_a_full_step_has_the_gradients_of_separate_passes(
    tiny_model: Path, tied_model: Path, tied: bool, freeze: list[str]
) -> None:
    folder = tied_model if tied else tiny_model
    policy, tokenizer = load(folder, lora=None, freeze=freeze)
    start, _ = load(folder, trainable=False)
    head, embedding = policy.get_output_embeddings().weight, policy.get_input_embeddings().weight
    assert (head is embedding) == tied
    assert head.requires_grad == ("head" not in freeze and not (tied and "embeddings" in freeze))
    assert embedding.requires_grad == ("embeddings" not in freeze and not (tied and "head" in freeze))
    result, found = step(policy, tokenizer, budget=150, reference="auto")
    assert result.first_log_ratio == 0.0
    assert distance(found, naive(policy, start, tokenizer)) < 1e-5


def test_what_is_frozen_stays_and_the_rest_learns(tiny_model: Path, tmp_path: Path) -> None:
    policy, tokenizer = load(tiny_model, lora=None, freeze=["embeddings", "self_attn"])
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    args = prefopt.PreferenceArguments(
        output_dir=str(tmp_path), examples_per_step=4, max_steps=2, learning_rate=1e-2, save_strategy="no"
    )
    data = prefopt.load_preferences(pair_rows(8), tokenizer)
    prefopt.PreferenceTrainer(policy, data, prefopt.losses.build("dpo"), "auto", args).train()
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "embed" not in name and "self_attn" not in name}


def test_a_freeze_that_can_not_be_is_a_sentence(tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match=r"'lm_haed' is found in no name of a weight"):
        load(tiny_model, lora=None, freeze=["lm_haed"])
    with pytest.raises(RecipeError, match="leaves no weight that trains"):
        load(tiny_model, lora=None, freeze=["."])
    with pytest.raises(ValidationError, match="'freeze' is for 'lora: null'"):
        ModelConfig.model_validate({"name": "x", "freeze": ["embeddings"]})
    with pytest.raises(ValidationError, match="is no regular expression"):
        ModelConfig.model_validate({"name": "x", "lora": None, "freeze": ["("]})
