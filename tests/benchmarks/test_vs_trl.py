"""The benchmark's own parts: its workload, its counting, and one tiny run of both sides. Nothing about time."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_rows_are_a_function_of_the_seed_and_have_the_stated_lengths():
    from paired import workload

    sentences = workload.read_sentences(workload.default_sentences())
    rows = workload.make_rows(sentences, 400, seed=3)
    assert rows == workload.make_rows(sentences, 400, seed=3)
    assert rows != workload.make_rows(sentences, 400, seed=4)
    prompts = [len(r["prompt"].split("<|im_start|>user\n")[1].split()) for r in rows]
    completions = [len(r[side].split()) for r in rows for side in ("chosen", "rejected")]
    assert sum(prompts) / len(prompts) == pytest.approx(workload.PROMPT_WORDS, rel=0.06)
    assert sum(completions) / len(completions) == pytest.approx(workload.COMPLETION_WORDS, rel=0.06)
    assert max(completions) > 2 * min(completions)
    assert all(r["chosen"].endswith("<|im_end|>") and r["chosen"] != r["rejected"] for r in rows)


def test_fingerprint_tells_where_the_prompt_ends():
    from paired.workload import fingerprint

    assert fingerprint([([1, 2], [3], [4])]) != fingerprint([([1], [2, 3], [4])])
    assert fingerprint([((1, 2), (3,), (4,))]) == fingerprint([([1, 2], [3], [4])])


def test_attended_pairs_and_flops_are_those_counted_by_hand():
    from paired.flops import Shape, attended, attention_flops, count, count_full
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from prefopt.data import build_packs
    from prefopt.records import Group

    group = Group((1, 2, 3), ((4, 5), (6,)), ((0, 1),))
    (pack,) = build_packs([group], token_budget=64, shared=True)
    # prompt 1 + 2 + 3; first completion 4; a completion's last token predicts nothing
    assert attended(pack) == 6 + 4
    (rows,) = build_packs([group], token_budget=64, shared=False)
    assert attended(rows) == 15 + 10  # sequences of 5 and 4 tokens

    config = LlamaConfig(vocab_size=11, hidden_size=4, intermediate_size=6, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    head = model.get_output_embeddings().weight
    attention = attention_flops(config, pack, reference=True)
    counted = count(model, pack, head=head, attention=attention, reference=True)
    # 4 tokens, 3 are scored; q has no input gradient in the first layer; down (6 -> 4) has, and is needed for the
    # prompt's last token and the one that stays of the completions
    assert counted.base == {
        Shape(4, 4, 4): 2, Shape(2, 6, 4): 2, Shape(2, 4, 6): 1, Shape(3, 4, 11): 2, Shape(3, 11, 4): 1
    }  # fmt: skip
    q_down, q_up, down_down, down_up = 2 * 4 * 4 * 2, 2 * 4 * 2 * 4, 2 * 2 * 6 * 2, 2 * 2 * 2 * 4
    assert counted.adapter == (2 * q_down + 3 * q_up) + (3 * down_down + 3 * down_up)
    assert counted.attention == 2 * 4 * 10 * (2 * 2 + 4)
    # A window of 2: the prompt's tokens see 1, 2, 2 keys, a completion's 2 each
    assert attended(pack, 2) == 5 + 2
    assert attended(rows, 2) == (5 + 4) + (5 + 2)

    plain = LlamaForCausalLM(config)
    full = count_full(plain, pack, attention=7, head=plain.get_output_embeddings().weight, reference=False)
    # q, o: 4 -> 4; k, v: 4 -> 2; gate, up: 4 -> 6; down: 6 -> 4; of 3 scored tokens the head: 4 -> 11
    assert full.base[Shape(4, 4, 4)] == 4 + 2  # forward and both gradients of q and o: 4 is also the tokens
    assert full.base[Shape(2, 4, 6)] == 3  # forward of gate and up, the input's gradient of down
    assert full.base[Shape(2, 6, 4)] == 3  # forward of down, the input's gradient of gate and up
    assert full.base[Shape(6, 2, 4)] == 2  # the weight's gradient of gate and up
    assert full.base[Shape(11, 3, 4)] == full.base[Shape(3, 11, 4)] == full.base[Shape(3, 4, 11)] == 1
    assert full.attention == 7


def test_both_adapters_start_from_the_same_numbers_whatever_their_dtype():
    from paired.measure import start_adapter
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    def adapter(dtype):
        config = LlamaConfig(vocab_size=11, hidden_size=4, intermediate_size=6, num_hidden_layers=1,
                             num_attention_heads=2, num_key_value_heads=1)  # fmt: skip
        model = get_peft_model(LlamaForCausalLM(config).to(dtype), LoraConfig(r=2, target_modules="all-linear"))
        assert start_adapter(model, seed=5) == 14
        return {n: p.float() for n, p in model.named_parameters() if p.requires_grad}

    a, b = adapter(torch.float32), adapter(torch.bfloat16)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert all(bool(p.any()) for p in a.values())


def tiny_model(folder: Path) -> Path:
    """A random two-layer Llama with a byte tokenizer that knows ChatML's tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(special + alphabet)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    )
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                         max_position_embeddings=8192, bos_token_id=0, eos_token_id=1, pad_token_id=1)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="the extra `peers` is not installed")
@pytest.mark.parametrize(
    ("comparison", "options"),
    [
        ("none", []),
        pytest.param("none", ["--policy", "full", "--loss", "kto"], marks=pytest.mark.soak),
        pytest.param("none", ["--policy", "full"], marks=pytest.mark.soak),
        pytest.param("none", ["--trl-batch", "2"], marks=pytest.mark.soak),
        pytest.param("none", ["--loss", "kto", "--prompts", "long"], marks=pytest.mark.soak),
        pytest.param("complete", [], marks=pytest.mark.soak),
        pytest.param("training part", [], marks=pytest.mark.soak),
        pytest.param(
            "training part", ["--policy", "full", "--loss", "kto", "--trl", "autocast"], marks=pytest.mark.soak
        ),
    ],
)
def test_both_sides_train_on_the_same_tokens_and_agree_on_the_first_step(tmp_path, comparison, options):
    command = [sys.executable, str(BENCHMARKS / "vs_trl.py"), "--steps", "1", "--warmup", "1", "--repeats", "1",
               "--trl", "bf16", "--threads", "1", "--comparison", comparison,
               "--model", str(tiny_model(tmp_path / "model")), *options]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = json.loads(done.stdout.splitlines()[-1])
    (cell,) = whole["cells"]
    same = cell["same"]
    assert same.pop("within_tolerance")
    assert same.pop("token_ids")
    assert same.keys() == ({"logps/chosen", "logps/rejected"} if "kto" in options else {"loss", "grad_norm"})
    for numbers in same.values():
        assert numbers["ours"] == pytest.approx(numbers["trl"], rel=1e-3)
    if "loss" in same:
        assert same["loss"]["ours"] != pytest.approx(0.6931, abs=1e-6)
    if comparison == "none":
        assert cell["results"] == {}
        return
    result = cell["results"][comparison]
    for key in ("speed_ratio", "memory_ratio", "wall_ratio"):
        assert 0 < result[key]["min"] <= result[key]["median"] <= result[key]["max"]
    assert result["flops"]["share"] > 0
