"""Load policies: where they come from, in which precision, and what is refused."""

import json
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from prefopt.errors import ModelError, RecipeError
from prefopt.models import dtypes, load_policy
from tests.models.loading import copy, edit, gpt2, load
from tests.toys import byte_tokenizer


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
