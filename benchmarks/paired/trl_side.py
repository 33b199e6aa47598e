"""TRL's side: `DPOTrainer` or `KTOTrainer` with the settings that are best for it on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import trl
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from .measure import Clock, Job, common_arguments, outcome, peak_rss, start
from .workload import fingerprint

VARIANTS: dict[str, dict[str, Any]] = {
    # TRL's own defaults for a model given by name: weights in float32, bf16 autocast, activation checkpointing.
    "default": {"dtype": "float32", "bf16": True, "checkpointing": True},
    # The same without recomputing activations: faster, larger.
    "autocast": {"dtype": "float32", "bf16": True},
    # The model loaded in bf16, as its checkpoint is; PEFT then keeps the adapter in float32.
    "bf16": {"dtype": "bfloat16", "bf16": False},
    # Both: a bf16 model under autocast, which spares the casts that a float32 adapter asks for.
    "bf16-autocast": {"dtype": "bfloat16", "bf16": True},
    # For the comparison of what is computed, not of how fast.
    "float32": {"dtype": "float32", "bf16": False},
}


def build_trainer(job: Job, clock: Clock) -> trl.DPOTrainer | trl.KTOTrainer:
    """Return a trainer whose policy starts as `start` says."""
    variant = VARIANTS[job.variant]
    config, trainer_of = (trl.DPOConfig, trl.DPOTrainer) if job.loss == "dpo" else (trl.KTOConfig, trl.KTOTrainer)
    batch = min(job.trl_batch or job.examples_per_step, job.examples_per_step)
    arguments = config(
        **common_arguments(job),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=job.examples_per_step // batch,
        train_sampling_strategy="sequential",
        model_init_kwargs={"dtype": variant["dtype"], "attn_implementation": "sdpa"},
        bf16=variant["bf16"],
        gradient_checkpointing=variant.get("checkpointing", False),
        beta=job.beta,
        max_length=None,
        precompute_ref_log_probs=job.precomputed,
    )
    adapter = LoraConfig(
        r=job.rank, lora_alpha=job.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trainer = trainer_of(
        model=job.model,
        args=arguments,
        train_dataset=load_dataset("json", data_files=job.rows, split="train", cache_dir=f"{job.work}/datasets"),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        peft_config=adapter if job.policy == "lora" else None,
        callbacks=[clock],
    )
    start(trainer.model, job)
    return trainer


def ids_of(row: dict[str, Any]) -> tuple[list[int], ...]:
    """Return the prompt and completions of a tokenized row."""
    if "completion_ids" in row:
        return row["prompt_ids"], row["completion_ids"]
    return row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]


def run(job: Job) -> dict[str, Any]:
    """Train and report."""
    torch.set_num_threads(job.threads)
    clock = Clock()
    trainer = build_trainer(job, clock)
    rows = trainer.train_dataset
    ids = fingerprint(map(ids_of, rows))
    trainer.train()
    peak, config = peak_rss(), trainer.model.config
    from .flops import machine_rate  # here, so that prefopt's memory isn't counted as TRL's

    return outcome(job, clock, ids, peak_rss=peak, machine=machine_rate(config), attention=config._attn_implementation)
