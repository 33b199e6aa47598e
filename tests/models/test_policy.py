"""Load policies: where they come from, in which precision, with which adapter, and what is refused."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from prefopt.errors import ModelError, RecipeError
from prefopt.models import LoraSection, ModelConfig, ReferenceConfig, dtypes, load_policy
from prefopt.models.adapters import adapter_changes_nothing
from tests.toys import byte_tokenizer


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise hub.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


def copy(model: Path, to: Path) -> Path:
    shutil.copytree(model, to)
    return to


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(*args: Any, **kwargs: Any) -> Any:
    return load_policy(*args, **{"device": "cpu", "dtype": "float32", **kwargs})


# ---- the adapter ----


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


def test_full_fine_tuning_trains_every_weight_in_float32(tiny_model: Path) -> None:
    policy, _ = load_policy(tiny_model, lora=None, device="cpu")
    assert not isinstance(policy, PeftModel)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in policy.parameters())


def test_a_model_that_is_only_used_is_bare_frozen_and_in_evaluation_mode(tiny_model: Path) -> None:
    model, _ = load(tiny_model, trainable=False)
    assert not isinstance(model, PeftModel)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


# ---- precision ----


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bfloat16_where_the_machine_is_fast_in_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(dtypes, "computes_bfloat16_fast", lambda device: fast)
    policy, _ = load_policy(tiny_model, device="cpu")
    assert policy.get_base_model().dtype == expected


def test_an_unknown_device_is_a_sentence(tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match="no device 'cuda:99' on this machine"):
        load(tiny_model, device="cuda:99")


# ---- dropout ----


def gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_the_models_own_dropout_is_off(tmp_path: Path) -> None:
    policy, tokenizer = load(gpt2(tmp_path))
    ids = tokenizer("hello", return_tensors="pt").input_ids
    assert policy.training
    assert torch.equal(policy(ids).logits, policy(ids).logits)


def test_dropout_that_is_kept_is_warned_about(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.warns(UserWarning, match="the policy has dropout"):
        policy, tokenizer = load(gpt2(tmp_path), dropout=True)
    ids = tokenizer("hello", return_tensors="pt").input_ids
    assert not torch.equal(policy(ids).logits, policy(ids).logits)
    with pytest.warns(UserWarning, match="the policy has dropout"):
        load(tiny_model, lora={"dropout": 0.1})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(tiny_model)


# ---- the tokenizer ----


def test_a_missing_padding_token_is_one_that_exists_and_ends_nothing(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model, tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    policy, loaded = load(folder)
    assert loaded.pad_token == "<|endoftext|>" != loaded.eos_token
    assert len(loaded) == len(tokenizer)
    assert policy.get_base_model().get_input_embeddings().weight.shape[0] >= len(loaded)
    assert policy.get_base_model().generation_config.pad_token_id == loaded.pad_token_id


def test_the_end_token_pads_where_there_is_no_other(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model, tmp_path / "model")
    text = (folder / "tokenizer.json").read_text().replace("<|endoftext|>", "aaa").replace("<|im_start|>", "bbb")
    data = json.loads(text)
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] == "<|im_end|>"]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    edit(folder / "tokenizer_config.json", bos_token=None, pad_token=None)
    assert load(folder)[1].pad_token == "<|im_end|>"


def test_a_tokenizer_of_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model, tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"extra{at}" for at in range(1000)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="only knows those below"):
        load(folder)


def test_a_chat_template_can_be_given_as_text_or_as_a_file(tiny_model: Path, tmp_path: Path) -> None:
    text = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    assert load(tiny_model, tokenizer={"chat_template": text})[1].chat_template == text
    (tmp_path / "chat.jinja").write_text(text)
    assert load(tiny_model, tokenizer={"chat_template": str(tmp_path / "chat.jinja")})[1].chat_template == text
    with pytest.raises(ModelError, match="there is no file nowhere"):
        load(tiny_model, tokenizer={"chat_template": "nowhere"})


def test_a_model_without_tokenizer_takes_one_from_elsewhere(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model, tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"the tokenizer of .*model can't be loaded .*model\.tokenizer\.name"):
        load(folder)
    assert load(folder, tokenizer={"name": str(tiny_model)})[1].eos_token == "<|im_end|>"


# ---- what is not there, not safe or not whole ----


def test_a_missing_directory_or_file_is_a_sentence() -> None:
    with pytest.raises(ModelError, match=r"there is no directory \./nowhere"):
        load("./nowhere")
    with pytest.raises(ModelError, match=r"there is no file weights\.gguf"):
        load("weights.gguf")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (hub.OfflineModeIsEnabled("x"), "is not on this machine and the Hugging Face Hub can't be reached"),
        (hub.LocalEntryNotFoundError("x"), "is not on this machine and the Hugging Face Hub can't be reached"),
        (hub.RepositoryNotFoundError, "there is no model some/model on the Hugging Face Hub"),
        (hub.GatedRepoError, "needs its owner's permission"),
        (hub.RevisionNotFoundError, "has no revision v9"),
        (hub.HFValidationError("x"), "neither a directory here nor a name that the Hub allows"),
    ],
)
def test_what_the_hub_does_not_give_is_a_sentence(monkeypatch: pytest.MonkeyPatch, error: Any, said: str) -> None:
    if isinstance(error, type):
        error = error("x", response=Mock(headers={}))

    def raises(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", raises)
    with pytest.raises(ModelError, match=said):
        load("some/model", revision="v9")


def test_only_safe_files_of_the_named_repository_are_fetched(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(name: str, *, revision: Any, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tiny_model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    policy, tokenizer = load("some/model", revision="v1")
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("some/model", "v1")
    assert not any(suffix in pattern for pattern in patterns for suffix in (".bin", ".py", ".pt", ".pth", ".pkl"))
    assert policy.peft_config["default"].base_model_name_or_path == "some/model" == tokenizer.name_or_path


def test_pickled_weights_are_never_loaded(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model, tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"only pickled ones \(pytorch_model\.bin\); prefopt never loads a pickle"):
        load(folder)


def test_a_pickled_adapter_is_never_loaded(tiny_model: Path, tmp_path: Path) -> None:
    policy, _ = load(tiny_model)
    policy.save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="never loads pickled weights"):
        load(tiny_model, adapter=str(tmp_path))


def test_a_model_with_code_of_its_own_needs_consent(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model, tmp_path / "model")
    mark = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\n")
    edit(folder / "config.json", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C"}, model_type="own")
    with pytest.raises(ModelError, match=r"Python code of its own.*model\.trust_remote_code"):
        load(folder)
    assert not mark.exists()


def test_weights_that_are_missing_are_refused_and_not_made_up(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "q_proj" in name)
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks 1 of the weights .*{lost}.*would be random"):
        load(folder)


def test_a_truncated_weight_file_is_a_sentence(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model, tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="can't be loaded"):
        load(folder)


def test_weights_of_another_size_are_a_sentence(tiny_model: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model, tmp_path / "model")
    edit(folder / "config.json", intermediate_size=48)
    with pytest.raises(ModelError, match="can't be loaded"):
        load(folder)


def test_encoders_and_encoder_decoders_are_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertLMHeadModel(BertConfig(**sizes, intermediate_size=16)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match=r"is an encoder \(bert\)"):
        load(tmp_path / "bert")
    t5 = T5Config(vocab_size=300, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="is an encoder-decoder model"):
        load(tmp_path / "t5")


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


# ---- the sections ----


def test_unknown_options_name_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match=r"'dtpye' is no setting of a model.*did you mean 'dtype'"):
        load_policy("x", dtpye="float32")
    with pytest.raises(RecipeError, match=r"model\.dtype"):
        load_policy("x", dtype="int3")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"rank": 3}, "'rank' is neither one of r, alpha"),
        ({"use_rslroa": True}, "did you mean 'use_rslora'"),
        ({"lora_alpha": 3}, "'lora_alpha' is called 'alpha' here"),
        ({"task_type": "CAUSAL_LM"}, "'task_type' is neither"),
        ({"r": 0}, "greater than or equal to 1"),
        ({"dropout": 1.0}, "less than 1"),
        ({"dtype": "float16"}, "'auto', 'bfloat16' or 'float32'"),
    ],
)
def test_a_wrong_lora_section_says_what_is_wrong(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LoraSection.model_validate(section)


def test_an_adapter_excludes_settings_for_a_new_one_but_not_its_dtype() -> None:
    with pytest.raises(ValidationError, match="brings its own settings"):
        ModelConfig.model_validate({"name": "x", "adapter": "y", "lora": {"r": 4}})
    with pytest.raises(ValidationError, match="leave one out"):
        ModelConfig.model_validate({"name": "x", "adapter": "y", "lora": None})
    kept = ModelConfig.model_validate({"name": "x", "adapter": "y", "lora": {"dtype": "bfloat16"}})
    assert ModelConfig.model_validate(kept.model_dump()) == kept


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("auto", "auto"),
        ("none", "none"),
        (None, "none"),
        ("adapter_off", "adapter_off"),
        ({"model": "x", "dtype": "bfloat16"}, "model"),
        ({}, "auto"),
    ],
)
def test_a_reference_is_a_word_or_a_model(value: Any, kind: str) -> None:
    config = ReferenceConfig.model_validate(value)
    assert config.kind == kind
    assert ReferenceConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("adapteroff", "did you mean 'adapter_off'"),
        ({"kind": "model"}, "needs the model's name"),
        ({"kind": "none", "model": "x"}, "model belong to a reference of kind 'model'"),
        ({"modle": "x"}, "modle"),
    ],
)
def test_a_wrong_reference_says_what_is_wrong(value: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ReferenceConfig.model_validate(value)
