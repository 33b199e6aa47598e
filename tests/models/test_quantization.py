"""Quantized policies: their numbers are those of the same weights unpacked, whatever ran before them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from prefopt.errors import ModelError
from prefopt.models import ModelConfig, PackedModel
from prefopt.models.adapters import adapter_changes_nothing
from prefopt.models.quantization import Int8Linear, dense_weight, quantized_layers
from prefopt.recipe import load_recipe
from prefopt.sampling import generate
from prefopt.workflow import eval_pairs_run, train_run
from prefopt.workflow.finished import load_run
from tests.models.loading import copy, edit, gpt2, load
from tests.models.stepping import distance, logprobs, shake, step
from tests.toys import pair_rows, write_rows

KINDS: dict[str, Any] = {
    "nf4": "nf4",
    "fp4": "fp4",
    "int8": "int8",
    "nf4 with quantized scales": {"type": "nf4", "double_quant": True},
    "nf4 in part": {"type": "nf4", "skip_modules": ["down_proj"]},
}
LORA = {"r": 4}


def unpacked(model_folder: Path, quantized: Any) -> Any:
    """Return the policy with plain linear layers that hold what the quantized ones multiply with."""
    dense, _ = load(model_folder, lora=LORA)
    plain = dict(dense.named_modules())
    with torch.no_grad():
        for name, layer in quantized_layers(quantized):
            plain[name].weight.copy_(dense_weight(layer))
        for mine, theirs in zip(trained(dense), trained(quantized), strict=True):
            mine.copy_(theirs)
    return dense


def trained(model: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_unpacked_weights_also_after_evaluating_and_sampling(
    tiny_model: Path, kind: str
) -> None:
    policy, tokenizer = load(tiny_model, quantization=KINDS[kind], lora=LORA)
    assert len(list(quantized_layers(policy))) == (12 if kind == "nf4 in part" else 14)
    assert PackedModel(policy).admission.shared
    shake(policy)
    dense = unpacked(tiny_model, policy)
    _, expected = step(dense, tokenizer, budget=150)
    assert distance(step(policy, tokenizer, budget=150)[1], expected) < 1e-5

    before = logprobs(policy.eval(), tokenizer)
    assert distance(before, logprobs(dense.eval(), tokenizer)) < 1e-6
    ids = tokenizer("hello there", return_tensors="pt").input_ids
    with torch.no_grad():  # by the model's own layers, as an evaluation by anybody else runs it
        assert distance(policy(ids).logits, dense(ids).logits) < 1e-5
    prompts = ["tell me", "why is"]
    texts = generate(policy, tokenizer, prompts, max_new_tokens=12, temperature=0)
    assert texts == generate(dense, tokenizer, prompts, max_new_tokens=12, temperature=0)
    assert distance(step(policy, tokenizer, budget=150)[1], expected) < 1e-5
    assert torch.equal(logprobs(policy.eval(), tokenizer), before)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_fast_layers_give_what_the_models_own_give(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    policy, tokenizer = load(tiny_model, quantization=kind, lora=LORA)
    shake(policy)
    _, fast = step(policy, tokenizer)
    monkeypatch.setattr("prefopt.models.fused._low_rank", lambda layer: None)
    assert distance(fast, step(policy, tokenizer)[1]) < 1e-5


def test_rounding_is_that_of_the_kind(tiny_model: Path) -> None:
    """By half a step at most: 1/254 of a row's largest in int8 (and float16 before it), 0.15 and 1/6 of a block's.

    Rows of this model are half a block of 64 and a whole one.
    """
    plain = dict(load(tiny_model, trainable=False)[0].named_modules())
    for kind, share in (("int8", 0.51 / 127), ("nf4", 0.153), ("fp4", 0.168)):
        model, _ = load(tiny_model, trainable=False, quantization=kind)
        for name, layer in quantized_layers(model):
            weight = plain[name].weight
            moved, weight = (
                (w.view(-1, weight.shape[1] if kind == "int8" else 64)).abs()
                for w in (dense_weight(layer) - weight, weight)
            )
            assert (moved <= share * weight.amax(1, keepdim=True) + weight * 2**-11).all()
            assert moved.any()


def test_layers_multiply_in_the_dtype_that_the_recipe_names(tiny_model: Path) -> None:
    exact, tokenizer = load(tiny_model, quantization="nf4", lora=LORA)
    rounded, _ = load(tiny_model, quantization={"type": "nf4", "compute_dtype": "bfloat16"}, lora=LORA)
    a, b = (step(shake(policy), tokenizer)[1] for policy in (exact, rounded))
    assert 1e-4 < distance(b, a) < 5e-2


def test_a_bfloat16_model_computes_in_bfloat16_and_trains_float32(tiny_model: Path) -> None:
    policy, tokenizer = load(tiny_model, dtype="bfloat16", quantization="nf4", lora=LORA)
    assert {p.dtype for p in trained(policy)} == {torch.float32}
    assert policy.get_base_model().lm_head.weight.dtype == torch.bfloat16
    exact, _ = load(tiny_model, quantization="nf4", lora=LORA)
    assert distance(logprobs(policy, tokenizer), logprobs(exact, tokenizer)) < 1e-2


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_loss_starts_at_exactly_log_two_against_the_model_without_its_adapter(tiny_model: Path, kind: str) -> None:
    policy, tokenizer = load(tiny_model, quantization=kind, lora=LORA)
    assert adapter_changes_nothing(policy)
    result, _ = step(policy, tokenizer, reference="auto")
    assert result.first_log_ratio == 0.0
    assert result.loss == pytest.approx(math.log(2), abs=1e-7)


def test_a_model_whose_layers_store_their_weight_the_other_way_round_is_quantized_too(tmp_path: Path) -> None:
    policy, tokenizer = load(gpt2(tmp_path, positions=256), quantization="nf4", lora=LORA)
    assert len(list(quantized_layers(policy))) == 4
    result, gradient = step(policy, tokenizer, reference="auto")
    assert result.first_log_ratio == 0.0
    assert gradient.norm() > 0


# ---- a run ----


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_run_of_a_quantized_model_resumes_bitwise_and_loads_as_it_was(
    tmp_path: Path, tiny_model: Path, kind: str
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(16))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: {tiny_model}, dtype: float32, quantization: {kind}, lora: {{r: 4}}}}\n"
        f"data: {{train: {data}, eval: {data}}}\n"
        "train: {output_dir: run, examples_per_step: 4, max_steps: 6, learning_rate: 1e-2, save_steps: 3,\n"
        "  eval_strategy: steps, eval_steps: 2}\n"
        "eval: {samples: 1, samples_per_prompt: 1, max_new_tokens: 4, resamples: 100}\n"
    )
    whole = train_run(load_recipe(path, [f"train.output_dir={tmp_path / 'whole'}"]))
    cut = load_recipe(path, [f"train.output_dir={tmp_path / 'cut'}"])
    train_run(cut)
    for left in ("checkpoint-6", "adapter"):  # as after a kill between the checkpoints
        (tmp_path / "cut" / left).rename(tmp_path / f"lost-{left}")
    train_run(cut, resume=True)
    saved = [load_file(tmp_path / run / "adapter/adapter_model.safetensors") for run in ("whole", "cut")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    assert whole.after is not None

    model, _, recipe = load_run(tmp_path / "whole")
    assert recipe.model.quantization is not None
    assert len(list(quantized_layers(model))) == 14
    again = eval_pairs_run(tmp_path / "whole")
    assert again.metrics.to_dict() == whole.after.metrics.to_dict()


# ---- refused ----


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"quantization": "nf4", "lora": None}, "quantized ones can't be trained"),
        ({"quantization": "int4"}, "'nf4', 'fp4' or 'int8'"),
        ({"quantization": {"type": "int8", "double_quant": True}}, "belong to nf4 and fp4"),
        ({"quantization": {"type": "nf4", "bits": 4}}, "bits"),
    ],
)
def test_a_wrong_quantization_is_told_before_a_model_loads(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelConfig.model_validate({"name": "x", **section})


def test_a_recipe_keeps_its_quantization_when_it_is_written_and_read() -> None:
    config = ModelConfig.model_validate({"name": "x", "quantization": "int8"})
    assert ModelConfig.model_validate(json.loads(config.model_dump_json())) == config


def test_weights_that_are_quantized_already_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model, tmp_path / "model")
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=r"quantized already \(gptq\): name the model that it was made from"):
        load(folder)


def test_a_model_of_which_nothing_would_be_quantized_is_refused(tiny_model: Path) -> None:
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]
    with pytest.raises(ModelError, match=r"nothing of .* can be quantized"):
        load(tiny_model, quantization={"type": "nf4", "skip_modules": every})


def test_a_head_that_was_quantized_by_hand_is_refused(tiny_model: Path) -> None:
    model, _ = load(tiny_model, trainable=False, quantization="int8")
    quantized = next(layer for _, layer in quantized_layers(model))
    assert isinstance(quantized, Int8Linear)
    model.lm_head = quantized
    with pytest.raises(ModelError, match=r"no plain matrix \(quantized\); leave the head unquantized"):
        PackedModel(model)
