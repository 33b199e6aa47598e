"""What every side measures the same way: step times, peak memory, the first step's numbers, the starting adapter."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

B_SCALE = 1e-2
"""Standard deviation of LoRA's B at the start: large enough that the first loss isn't log 2, small beside the base."""
NOISE = 1e-4
"""Standard deviation of what is added to weights that all train, for the same reason."""


@dataclass(frozen=True)
class Job:
    """What one child process does. Everything is plain, so that it travels as JSON."""

    side: str
    """`ours` or `trl`."""
    variant: str
    """TRL: `default`, `autocast`, `bf16` or `bf16-autocast`; ours: `default` or `autocast`; both: `float32`."""
    precomputed: bool
    """References computed before the clock starts."""
    model: str
    """Directory of the model."""
    rows: str
    """JSON Lines file of pairs, in the order in which they are trained on."""
    work: str
    """A scratch directory of this process."""
    result: str
    """Where the result goes, a JSON file."""
    pairs_per_step: int = 4
    warmup: int = 3
    steps: int = 12
    threads: int = 2
    seed: int = 0
    rank: int = 16
    alpha: int = 32
    beta: float = 0.1
    learning_rate: float = 1e-4
    optimizer: str = "adamw_torch_fused"
    token_budget: int = 4096
    policy: str = "lora"
    """`lora`, or `full` for all weights."""
    loss: str = "dpo"
    """`dpo`, or `kto` on both completions of every pair, as labelled ones."""
    prompt_words: int = 128
    """Mean words of a prompt."""
    trl_batch: int = 0
    """TRL: examples computed at once, the rest of a step accumulated; 0 for the whole step, where its logits fit."""
    ceiling: bool = False
    """Ours: measure the matrix products of the layers' own shapes after training."""
    profile: str = ""
    """Ours: file for a table of torch's profiler."""

    @property
    def total_steps(self) -> int:
        return self.warmup + self.steps

    @property
    def examples_per_step(self) -> int:
        """What the loss counts: a pair, or two labelled completions of it."""
        return self.pairs_per_step * (2 if self.loss == "kto" else 1)


def common_arguments(job: Job) -> dict[str, Any]:
    """Return the `transformers.TrainingArguments` that both sides share."""
    return {
        "output_dir": job.work,
        "max_steps": job.total_steps,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "optim": job.optimizer,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": job.seed,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 10_000,
        "logging_first_step": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


@dataclass
class Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Records when every optimizer step ended, and what the trainer logged after the first."""

    ended: list[float] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ended.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ended.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.global_step == 1 and logs and "loss" in logs:
            wanted = ("loss", "grad_norm", "logps/chosen", "logps/rejected")
            self.first = {name: float(logs[name]) for name in wanted if name in logs}

    def seconds(self, warmup: int) -> list[float]:
        """Return the seconds of every step after the first `warmup`."""
        return [b - a for a, b in zip(self.ended[warmup:-1], self.ended[warmup + 1 :], strict=True)]


def start(model: torch.nn.Module, job: Job) -> None:
    """Move the policy away from its reference, on every side the same way."""
    if job.policy == "lora":
        start_adapter(model, job.seed)
        return
    generator = torch.Generator().manual_seed(job.seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.add_((drawn * NOISE).to(parameter.dtype))


def start_adapter(model: torch.nn.Module, seed: int) -> int:
    """Give LoRA's A and B the same bf16-representable values on every side; return how many tensors were set.

    B is not zero, or the first loss would be log 2 and A's gradient zero whatever a side computes.
    """
    generator = torch.Generator().manual_seed(seed)
    named = sorted(
        (name, p) for name, p in model.named_parameters() if ".lora_A.default" in name or ".lora_B.default" in name
    )
    with torch.no_grad():
        for name, parameter in named:
            scale = parameter.shape[1] ** -0.5 / 3**0.5 if ".lora_A." in name else B_SCALE
            drawn = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(drawn.bfloat16())
    return len(named)


def peak_rss() -> int:
    """Return the largest resident size this process has had, in bytes (Linux; counted from its own start)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM line; peak memory can only be measured on Linux.")


def outcome(job: Job, clock: Clock, ids: str, **extra: Any) -> dict[str, Any]:
    """Put together what a child reports."""
    seconds = clock.seconds(job.warmup)
    return {
        "pairs_per_second": job.pairs_per_step * len(seconds) / sum(seconds),
        "step_seconds": seconds,
        "first": clock.first,
        "ids": ids,
        **extra,
    }
