"""prefopt's side: `PreferenceTrainer` as a user calls it, with references stored beforehand where the job says so."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prefopt import losses
from prefopt.data import PreferenceData, StepPlan, load_preferences
from prefopt.models import load_policy
from prefopt.models.references import Reference
from prefopt.records import Pack
from prefopt.train import PreferenceArguments, PreferenceTrainer

from .flops import attention_flops, ceiling, count, count_full, machine_rate
from .measure import Clock, Job, common_arguments, outcome, peak_rss, start
from .workload import fingerprint

MAX_LENGTH = 8192
"""Nothing is truncated or dropped."""


def read(job: Job, tokenizer: Any) -> PreferenceData:
    """Tokenize the job's rows."""
    return load_preferences(job.rows, tokenizer, max_length=MAX_LENGTH)


def plan_of(job: Job, data: PreferenceData) -> StepPlan:
    """Return the order in which the trainer will take the examples; `data` is in the form of the loss."""
    return StepPlan(data, examples_per_step=job.examples_per_step, seed=job.seed, group_prompts=False)


def order_of(job: Job, data: PreferenceData) -> list[int]:
    """Return the examples of the first epoch in the order of its steps."""
    plan = plan_of(job, data)
    return [i for step in range(plan.steps_per_epoch) for i in plan.examples(0, step)]


class StoredReference(Reference):
    """Log-probs computed before the clock starts, looked up by what a pack holds."""

    name = "stored"
    reason = "computed once, before training"
    start_tolerance = None

    def __init__(self, inner: Reference, packs: list[Pack]) -> None:
        with torch.no_grad(), inner.attached():
            values = [inner.logprobs(pack) for pack in packs]
        self._values = {self._key(pack): value for pack, value in zip(packs, values, strict=True)}

    def logprobs(self, pack: Pack, reduction: str = "sum") -> torch.Tensor:
        return self._values[self._key(pack)]

    @contextmanager
    def attached(self) -> Iterator[None]:
        yield

    @staticmethod
    def _key(pack: Pack) -> bytes:
        return pack.tokens.numpy().tobytes() + pack.score_at.numpy().tobytes()


def build_trainer(job: Job, clock: Clock) -> PreferenceTrainer:
    """Return a trainer whose adapter is `start_adapter`'s."""
    lora = job.policy == "lora"
    model, tokenizer = load_policy(
        job.model,
        dtype="bfloat16" if job.variant == "default" else "float32",
        lora={"r": job.rank, "alpha": job.alpha, "dropout": 0.0} if lora else None,
        seed=job.seed,
    )
    arguments = PreferenceArguments(
        **common_arguments(job),
        examples_per_step=job.examples_per_step,
        token_budget=job.token_budget,
        bf16=job.variant == "autocast",
    )
    trainer = PreferenceTrainer(
        model,
        read(job, tokenizer),
        losses.build(job.loss, beta=job.beta),
        "adapter_off" if lora else "frozen_copy",
        arguments,
        callbacks=[clock],
        group_prompts=False,  # the peer shuffles examples
    )
    if job.precomputed:
        packs = [pack for step in trainer.get_train_dataloader() for pack in step["micro"]]
        trainer.reference = StoredReference(trainer.reference, packs)
    start(trainer.model, job)
    return trainer


def measured_share(job: Job, trainer: PreferenceTrainer, seconds: list[float]) -> dict[str, Any]:
    """Return the FLOP/s of the measured steps and what bf16 products of the layers' shapes reach right now."""
    steps = list(trainer.get_train_dataloader())[job.warmup : job.total_steps]
    config = trainer.model.config
    reference = not job.precomputed
    counted = [
        (count if job.policy == "lora" else count_full)(
            trainer.model,
            pack,
            head=trainer.packed.head_weight,
            attention=attention_flops(config, pack, reference=reference),
            reference=reference,
        )
        for step in steps
        for pack in step["micro"]
    ]
    middle = sorted(counted, key=lambda flops: flops.total)[len(counted) // 2]
    reached, rates = ceiling(middle.base)
    achieved = sum(flops.total for flops in counted) / sum(seconds)
    return {
        "flops_per_step": statistics.mean(flops.total for flops in counted),
        "achieved_flops": achieved,
        "matmul_flops": reached,
        "share": achieved / reached,
        "rates": rates,
    }


def run(job: Job) -> dict[str, Any]:
    """Train and report."""
    torch.set_num_threads(job.threads)
    clock = Clock()
    trainer = build_trainer(job, clock)
    data = trainer.data
    examples = (data.examples[i] for i in order_of(job, data))
    ids = fingerprint((e.prompt, *e.completions) for e in examples)
    if job.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
            trainer.train()
        table = profiler.key_averages(group_by_input_shape=True).table(sort_by="self_cpu_time_total", row_limit=80)
        Path(job.profile).write_text(table + "\n", encoding="utf-8")
    else:
        trainer.train()
    peak = peak_rss()
    share = measured_share(job, trainer, clock.seconds(job.warmup)) if job.ceiling else {}
    machine = machine_rate(trainer.model.config)
    return outcome(job, clock, ids, peak_rss=peak, machine=machine, admission=trainer.packed.admission.reason, **share)
