"""Small real things for tests: a byte-level chat tokenizer, a tiny random Llama, preferences with a rule to learn."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte and ChatML's markers: every text round-trips, nothing merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def save_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Save a random two-layer Llama of about 50 thousand parameters, float32, with `byte_tokenizer`."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def pair_rows(count: int, *, seed: int = 0) -> list[dict[str, object]]:
    """Return conversational pairs in which the chosen answer says yes and the rejected one no, in varying words."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        subject = draw.choice(["tea", "rain", "trains", "chess", "moss", "jazz"])
        tail = " ".join(draw.choices(["really", "always", "today", "very", "much", "so"], k=draw.randint(1, 5)))
        rows.append(
            {
                "prompt": [{"role": "user", "content": f"{number}: do you like {subject}?"}],
                "chosen": [{"role": "assistant", "content": f"yes {tail}"}],
                "rejected": [{"role": "assistant", "content": f"no {tail}"}],
            }
        )
    return rows


def list_rows(count: int, *, tied: bool = False) -> list[dict[str, object]]:
    """Return `pair_rows` as lists, the rejected answer first and one between; `tied` lists prefer none."""
    scores = [1, 1, 1] if tied else [0.0, 0.5, 1.0]
    return [
        {
            "prompt": row["prompt"],
            "completions": [row["rejected"], [{"role": "assistant", "content": "perhaps"}], row["chosen"]],
            "scores": scores,
        }
        for row in pair_rows(count)
    ]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
