"""`python -m tests.train.ranked_zero MODEL FOLDER`: runs with DeepSpeed's engine, as one of several ranks.

Each rank writes what its runs came to into FOLDER, for a test to compare with the same runs in one process without it.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import prefopt
from prefopt.errors import PrefoptError
from prefopt.losses import build
from prefopt.train import PreferenceArguments, PreferenceTrainer
from prefopt.train.ranks import ranks_of_this_run
from tests.train import ranked_runs
from tests.train.ranked_runs import MANY, result, run_out_of_memory, weights

BEST = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {  # a case of `ranked_runs`, stage, further settings
    "lora": ("lora", 1, {"max_grad_norm": 0.1}),
    "lora in stage 2": ("lora", 2, {"max_grad_norm": 0.1}),
    "full": ("full", 1, {}),
    "full in stage 2": ("full", 2, {"max_grad_norm": 0}),
    "kto": ("kto", 2, {}),
    "less than a pack a rank": ("less than a pack a rank", 2, {}),
    "out of memory": ("out of memory", 2, {}),
    "the best": ("lora", 2, {**BEST, "load_best_model_at_end": True, "metric_for_best_model": "loss"}),
    "a step that is skipped": ("full", 2, {"non_finite": "skip"}),
    "quantized": ("quantized", 2, {}),
}


class BreaksAGradient(TrainerCallback):
    """Lets a gradient of the third step be no number, on one rank."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer, self.backward = trainer, trainer.accelerator.backward
        if trainer.ranks.rank == trainer.ranks.size - 1:
            trainer.accelerator.backward = self.behind

    def behind(self, value: torch.Tensor) -> None:
        self.backward(value)
        if self.trainer.state.global_step == 2:
            next(p for p in self.trainer.model.parameters() if p.grad is not None).grad.fill_(torch.nan)


def quantized(model: Path, folder: Path, options: dict[str, Any]) -> PreferenceTrainer:
    """LoRA on a base in 4 bits, which trains in float32."""
    policy, tokenizer = prefopt.load_policy(str(model), dtype="float32", quantization="nf4", lora={"r": 4})
    data = prefopt.load_preferences(ranked_runs.rows(), tokenizer)
    args = PreferenceArguments(output_dir=str(folder / "quantized"), **ranked_runs.STEPS | MANY | options)
    return PreferenceTrainer(policy, data, build("dpo"), "auto", args, tokenizer=tokenizer)


def run(case: str, model: Path, folder: Path, *, engine: bool) -> dict[str, Any]:
    base, stage, options = CASES[case]
    if engine:
        options = {**options, "deepspeed": {"zero_optimization": {"stage": stage}}}
    folder = folder / case
    PreferenceArguments(output_dir=str(folder), **{k: v for k, v in options.items() if k == "deepspeed"})
    trainer = (
        quantized(model, folder, options) if base == "quantized" else ranked_runs.make(base, model, folder, **options)
    )
    start = weights(trainer)
    if case == "out of memory":
        run_out_of_memory(trainer)
    if case == "a step that is skipped":
        trainer.add_callback(BreaksAGradient(trainer))
    trainer.train()
    optimizer = type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__
    return {**result(trainer), "start": start, "limit": trainer._limit.tokens, "optimizer": optimizer}


def failure(model: Path, folder: Path) -> str:
    """Say how a run ends that fails on rank 1."""
    trainer = ranked_runs.make("lora", model, folder / "fails", deepspeed={"zero_optimization": {"stage": 2}})
    trainer.add_callback(ranked_runs.FailsOnRank(1, PrefoptError("the disk is on fire")))
    return ranked_runs.said(trainer)


def main(model: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {case: run(case, model, folder, engine=True) for case in CASES}
    found["failure"] = failure(model, folder)
    torch.save(found, folder / f"rank-{ranks_of_this_run().rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
