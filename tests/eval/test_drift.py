"""The divergence on samples is the mean of log-ratios, per completion and per token."""

from pathlib import Path

import pytest
import torch

from prefopt.data import Example
from prefopt.eval import sampled_kl
from prefopt.models import load_policy
from prefopt.models.packed import PackedModel
from prefopt.models.references import build_reference
from prefopt.models.scoring import example_logprobs
from prefopt.sampling import generate, generate_ids

PROMPTS = [(10, 11, 12), (20, 21), (10, 11, 12)]


def test_the_divergence_is_the_mean_log_ratio_of_the_samples(tiny_model: Path) -> None:
    policy, tokenizer = load_policy(tiny_model, device="cpu", dtype="float32")
    packed = PackedModel(policy)
    reference = build_reference("auto", packed, needed=True)
    completions = generate_ids(policy, tokenizer, [list(p) for p in PROMPTS], max_new_tokens=6, seed=1)
    same = sampled_kl(packed, reference, PROMPTS, completions)
    assert same is not None
    assert (same.per_completion, same.per_token, same.completions) == (0.0, 0.0, 3)

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    moved = sampled_kl(packed, reference, PROMPTS, completions)
    assert moved is not None
    examples = [Example(p, (c,)) for p, c in zip(PROMPTS, completions, strict=True)]
    own, compared = example_logprobs(examples, packed, reference, 8192)
    assert compared is not None
    ratios = [float(a - b) for a, b in zip(own, compared, strict=True)]
    assert abs(sum(ratios)) > 0.01
    assert moved.per_completion == pytest.approx(sum(ratios) / 3)
    assert moved.per_token == pytest.approx(sum(ratios) / sum(map(len, completions)))
    assert sampled_kl(packed, build_reference("none", packed, needed=False), PROMPTS, completions) is None
    assert sampled_kl(packed, reference, [], []) is None


def test_sampled_token_ids_are_those_of_the_texts_and_end_where_the_model_ends(tiny_model: Path) -> None:
    policy, tokenizer = load_policy(tiny_model, device="cpu", dtype="float32")
    prompts = [list(p) for p in PROMPTS]
    rows = generate_ids(policy, tokenizer, prompts, max_new_tokens=40, seed=3)
    texts = generate(policy, tokenizer, prompts, max_new_tokens=40, seed=3)
    assert texts == [tokenizer.decode(list(row), skip_special_tokens=True) for row in rows]
    assert all(tokenizer.eos_token_id not in row[:-1] for row in rows)
    assert all(len(row) == 40 or row[-1] == tokenizer.eos_token_id for row in rows)
