"""Adapters: made, loaded, trained in their dtype, and refused where they do not fit."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from prefopt.errors import ModelError, RecipeError
from prefopt.models.adapters import adapter_changes_nothing, save_weights
from prefopt.models.config import ModelConfig
from prefopt.models.packed import PackedModel
from prefopt.models.references import build_reference
from tests.models.loading import edit, gpt2, load


def test_by_default_only_a_new_adapter_trains_and_it_changes_nothing(tiny_model: Path) -> None:
    policy, tokenizer = load(str(tiny_model))
    assert isinstance(policy, PeftModel)
    assert policy.training
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert {name.split(".")[-4] for name in trained} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "up_proj",
        "gate_proj",
        "down_proj",
    }
    assert adapter_changes_nothing(policy)
    ids = tokenizer("hello", return_tensors="pt").input_ids
    with policy.disable_adapter():
        base = policy(ids).logits
    assert torch.equal(policy(ids).logits, base)
    config = policy.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.task_type) == (16, 32, 0.0, "CAUSAL_LM")
    assert config.base_model_name_or_path == str(tiny_model)


def test_the_adapters_start_depends_on_the_seed_alone(tiny_model: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, _ = load(tiny_model, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = load(tiny_model, seed=3)[0], load(tiny_model, seed=4)[0]
    weights = [{n: p for n, p in policy.named_parameters() if "lora_A" in n} for policy in (first, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_other_settings_go_through_to_peft(tiny_model: Path) -> None:
    policy, _ = load(
        tiny_model, lora={"r": 2, "target_modules": ["q_proj"], "use_rslora": True, "layers_to_transform": [1]}
    )
    config = policy.peft_config["default"]
    assert config.use_rslora
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2
    assert all("layers.1.self_attn.q_proj" in name for name in trained)


def test_a_bfloat16_model_gets_a_float32_adapter_that_computes_in_bfloat16(tiny_model: Path) -> None:
    policy, tokenizer = load(tiny_model, dtype="bfloat16")
    assert policy.get_base_model().dtype == torch.bfloat16
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    for name, module in policy.named_modules():
        if name.endswith(("lora_A.default", "lora_B.default")):
            module.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    loss = policy(tokenizer("hello", return_tensors="pt").input_ids).logits.float().logsumexp(-1).sum()
    loss.backward()
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    gradients = [p.grad for name, p in policy.named_parameters() if "lora_B" in name]
    assert all(g is not None and g.dtype == torch.float32 and bool(g.any()) for g in gradients)


def test_a_float32_adapter_keeps_updates_that_a_bfloat16_one_loses(tiny_model: Path) -> None:
    moved = {}
    for dtype in ("float32", "bfloat16"):
        policy, _ = load(tiny_model, dtype="bfloat16", lora={"dtype": dtype})
        weight = next(p for n, p in policy.named_parameters() if "q_proj.lora_A" in n)
        before = weight.detach().clone()
        torch.optim.SGD([weight], lr=1.0).param_groups[0]["params"][0].grad = torch.full_like(weight, 1e-5)
        torch.optim.SGD([weight], lr=1.0).step()
        moved[dtype] = float((weight != before).float().mean())
    assert moved["float32"] > 0.99
    assert moved["bfloat16"] < 0.1


def test_the_adapters_gradients_are_those_of_float32_arithmetic(tiny_model: Path) -> None:
    """With a float32 base the cast is none: the same bits as PEFT's own layers give."""
    policy, tokenizer = load(tiny_model, lora={"init_lora_weights": False})
    ids = tokenizer("hello there", return_tensors="pt").input_ids
    mine = policy(ids).logits
    for module in policy.modules():
        if type(module).__name__ == "_ComputesInInputDtype":
            module.__class__ = torch.nn.Linear
    assert torch.equal(policy(ids).logits, mine)


def test_a_saved_adapter_comes_back_and_goes_on_training(tiny_model: Path, tmp_path: Path) -> None:
    policy, tokenizer = load(tiny_model, lora={"r": 4})
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    policy.save_pretrained(tmp_path)
    ids = tokenizer("hello", return_tensors="pt").input_ids
    expected = policy(ids).logits
    again, _ = load(tiny_model, adapter=str(tmp_path))
    assert torch.equal(again(ids).logits, expected)
    assert sum(p.requires_grad for p in again.parameters()) == sum(p.requires_grad for p in policy.parameters())
    assert not adapter_changes_nothing(again)
    frozen, _ = load(tiny_model, adapter=str(tmp_path), trainable=False)
    assert torch.equal(frozen(ids).logits, expected)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen.training


def test_a_pickled_adapter_is_never_loaded(tiny_model: Path, tmp_path: Path) -> None:
    policy, _ = load(tiny_model)
    policy.save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="never loads pickled weights"):
        load(tiny_model, adapter=str(tmp_path))


def test_an_adapter_named_as_the_model_says_what_to_write(tiny_model: Path, tmp_path: Path) -> None:
    load(tiny_model)[0].save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"is an adapter, not a model: write {tiny_model} as model\.name"):
        load(tmp_path)


def test_an_adapter_of_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    load(tiny_model)[0].save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="does not fit the model"):
        load(gpt2(tmp_path / "gpt2"), adapter=str(tmp_path / "adapter"))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    lost = next(iter(weights))
    del weights[lost]
    save_file(weights, path)
    with pytest.raises(ModelError, match=f"1 of its weights do not match, for example {lost} is missing in it"):
        load(tiny_model, adapter=str(tmp_path / "adapter"))


def test_a_folder_without_a_model_or_adapter_is_a_sentence(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"it has no config\.json"):
        load(tmp_path)
    with pytest.raises(ModelError, match=r"not a PEFT adapter: it has no adapter_config\.json"):
        load(tiny_model, adapter=str(tmp_path))


def test_target_modules_that_match_nothing_are_a_sentence(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.lora does not fit this model"):
        load(tiny_model, lora={"target_modules": ["nothing"]})


def test_an_adapter_that_brought_embeddings_keeps_them_and_its_base_is_not_the_original(
    tiny_model: Path, tmp_path: Path
) -> None:
    policy, tokenizer = load(tiny_model, lora={"r": 4})
    with torch.no_grad():
        policy.get_input_embeddings().weight[5:9] += 1.0
    policy.save_pretrained(tmp_path / "one", save_embedding_layers=True)
    ids = tokenizer("hello", return_tensors="pt").input_ids
    expected = policy(ids).logits

    again, _ = load(tiny_model, adapter=str(tmp_path / "one"))
    assert torch.equal(again(ids).logits, expected)
    save_weights(again, tmp_path / "two")
    third, _ = load(tiny_model, adapter=str(tmp_path / "two"))
    assert torch.equal(third(ids).logits, expected)

    with pytest.raises(RecipeError, match=r"brought embeddings of its own .* write 'reference: auto'"):
        build_reference("adapter_off", PackedModel(again), needed=True)
    assert build_reference("auto", PackedModel(again), needed=True).name == "adapter_off"  # the policy as it starts


def test_an_adapter_with_weights_that_have_no_place_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    load(tiny_model)[0].save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.model.layers.0.mlp.gate.weight": torch.ones(2)}, path)
    with pytest.raises(ModelError, match=r"1 of its weights do not match.*mlp\.gate\.weight has no place in the model"):
        load(tiny_model, adapter=str(tmp_path))


@pytest.mark.parametrize("field", ["alora_invocation_tokens", "velora_config", "monteclora_config", "arrow_config"])
def test_what_packs_would_compute_wrongly_is_refused_in_recipes_and_of_saved_adapters(
    tiny_model: Path, tmp_path: Path, field: str
) -> None:
    given = [1, 2] if field.endswith("tokens") else {}
    with pytest.raises(ValidationError, match=f"'{field}' can't be used: it .* Leave it out"):
        ModelConfig.model_validate({"name": "any", "lora": {field: given}})
    assert ModelConfig.model_validate({"name": "any", "lora": {field: None}}).lora is not None
    policy, _ = load(tiny_model)
    save_weights(policy, tmp_path / "saved")
    edit(tmp_path / "saved/adapter_config.json", **{field: given})
    with pytest.raises(ModelError, match=f"saved can't be used: its {field} is set, and it "):
        load(tiny_model, adapter=str(tmp_path / "saved"))
