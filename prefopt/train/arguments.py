"""The training arguments: transformers' own, plus the step of a preference run, minus what has no meaning here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, get_args

from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from prefopt.data.pack import OverBudget
from prefopt.errors import RecipeError, nearest
from prefopt.train.zero_config import zero_config

NonFinite = Literal["stop", "skip"]

# A field that prefopt decides itself, and what to write instead. Setting one would silently do nothing, or harm.
OWNED: dict[str, str] = {
    "per_device_train_batch_size": "write train.examples_per_step (what a step counts) and train.token_budget (memory)",
    "per_device_eval_batch_size": "write train.token_budget: it bounds the memory of evaluation too",
    "gradient_accumulation_steps": "write train.token_budget: a step is cut into packs by tokens",
    "auto_find_batch_size": "write train.token_budget: it changes memory, never the result",
    "train_sampling_strategy": "the order of steps is a function of the data, train.seed and the epoch",
    "dataloader_drop_last": "the last step of an epoch keeps its examples",
    "dataloader_num_workers": "write data.workers",
    "remove_unused_columns": "write data.columns",
    "label_names": "preferences have no labels of that kind",
    "label_smoothing_factor": "write loss.label_smoothing",
    "ignore_data_skip": "resuming restarts the data at the step it stopped",
    "resume_from_checkpoint": "give --resume on the command line, or train(resume_from_checkpoint=...) in Python",
    "gradient_checkpointing": "write train.activation_checkpointing",
    "gradient_checkpointing_kwargs": "write train.activation_checkpointing_kwargs",
    "use_liger_kernel": "prefopt.kernels computes the log-probs",
    "torch_compile": "write model.compile",
    "neftune_noise_alpha": "noise in the embeddings would differ between policy and reference",
    "fsdp": "write train.shard_weights: true",
    "fsdp_config": "write train.shard_weights: true",
    "parallelism_config": "write train.shard_weights: true",
    "do_train": "prefopt train trains",
    "do_eval": "write data.eval and train.eval_strategy",
    "do_predict": "use prefopt eval",
    "local_rank": "the launcher sets it",
    "save_on_each_node": "rank 0 writes, into a train.output_dir that all machines share",
}

_PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "tensorboard": "tensorboardX"}
"""Where a logger's package has another name than the logger."""
_OF_PARTS = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Optimizers that compute on sharded tensors."""


@dataclass
class PreferenceArguments(TrainingArguments):
    """`transformers.TrainingArguments` with what shapes a step and its packs.

    Raises `RecipeError` for a combination that can't be: fp16 without a GPU, a step without examples, more than one
    visible GPU in one process.
    """

    examples_per_step: int = field(default=32, metadata={"help": "Examples an optimizer step counts."})
    token_budget: int = field(default=4096, metadata={"help": "Tokens of a pack at most; memory, never the result."})

    over_budget: OverBudget = field(
        default="own_pack", metadata={"help": "What becomes of an example that is longer than token_budget."}
    )

    non_finite: NonFinite = field(
        default="stop", metadata={"help": "What becomes of a step whose loss or gradient is NaN or infinite."}
    )

    activation_offload: bool = field(
        default=False, metadata={"help": "Keep what the backward pass needs in the computer's memory."}
    )

    shard_weights: bool = field(
        default=False, metadata={"help": "Whether each process keeps its part of the weights alone."}
    )

    deepspeed: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "DeepSpeed's configuration, or the JSON file that holds it: ZeRO 1 or 2."}
    )

    # Where transformers' default would be wrong or noisy for this trainer.
    learning_rate: float = 5e-5
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    remove_unused_columns: bool | None = False
    ignore_data_skip: bool = True
    logging_nan_inf_filter: bool = False
    logging_steps: float = 1
    disable_tqdm: bool | None = True
    ddp_find_unused_parameters: bool | None = False
    report_to: str | list[str] | None = "none"

    def __post_init__(self) -> None:
        if self.examples_per_step < 1:
            raise RecipeError(f"train.examples_per_step is {self.examples_per_step}; it must be 1 or more.")
        if self.token_budget < 1:
            raise RecipeError(f"train.token_budget is {self.token_budget}; it must be 1 or more.")
        if self.non_finite not in get_args(NonFinite):
            rules = " or ".join(get_args(NonFinite))
            raise RecipeError(f"train.non_finite is {self.non_finite!r}; it must be {rules}.")
        if self.over_budget not in get_args(OverBudget):
            allowed = " or ".join(get_args(OverBudget))
            raise RecipeError(f"train.over_budget is {self.over_budget!r}; it must be {allowed}.")
        if self.activation_checkpointing:
            given: Any = getattr(self, "activation_checkpointing_kwargs", None)
            self.activation_checkpointing_kwargs: Any = {"use_reentrant": False, **(given or {})}
        self._check_report_to()
        _refuse_launchers_wrappers()
        if self.deepspeed is not None:
            self.deepspeed = self._zero(self.deepspeed)
        super().__post_init__()
        if self.fp16 and self.device.type == "cpu":
            raise RecipeError(
                "train.fp16 is true, but the CPU has no fp16 training; write train.bf16: true or leave both out."
            )
        if self.activation_offload and self.device.type == "cpu":
            raise RecipeError(
                "train.activation_offload moves activations from an accelerator to the computer's memory, and this run "
                "is on the CPU; leave it out, or write train.activation_checkpointing: true."
            )
        optimizer = str(getattr(self.optim, "value", self.optim))
        if (self.shard_weights or self.deepspeed) and optimizer not in _OF_PARTS:
            asked = "train.deepspeed is set" if self.deepspeed else "train.shard_weights is true"
            raise RecipeError(
                f"train.optim is {optimizer} and {asked}, but only {', '.join(_OF_PARTS)} are known to work on weights "
                "in parts: take one of them."
            )
        if self.n_gpu > 1:
            raise RecipeError(
                f"{self.n_gpu} GPUs are visible to one process, and each process trains on one; start one a GPU by "
                f"torchrun --nproc_per_node {self.n_gpu} -m prefopt train RECIPE, or set CUDA_VISIBLE_DEVICES to one "
                "of them, for example CUDA_VISIBLE_DEVICES=0."
            )

    def _zero(self, given: str | dict[str, Any]) -> dict[str, Any] | None:
        """Return the engine's configuration, filled in; None in one process, which has nothing to share out."""
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        if alone and isinstance(given, str):
            return None  # what it would say nobody asks
        config = zero_config(given, max_grad_norm=self.max_grad_norm)
        if self.shard_weights:
            raise RecipeError(
                "train.deepspeed and train.shard_weights both cut the optimizer into parts: leave one out."
            )
        if self.bf16 or self.fp16:
            raise RecipeError(
                f"train.{'bf16' if self.bf16 else 'fp16'} is true, which DeepSpeed's engine takes for the dtype of the "
                "whole model; leave it out, and write model.dtype: bfloat16."
            )
        if alone:
            return None
        if find_spec("deepspeed") is None:
            raise RecipeError(
                "train.deepspeed is set, but DeepSpeed is not installed: run pip install 'prefopt[deepspeed]', or "
                "write train.shard_weights: true, which needs no other package."
            )
        if self.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes"):
            raise RecipeError(
                "train.deepspeed is set, but accelerate leaves DeepSpeed out where the CPU is asked for by "
                "train.use_cpu or ACCELERATE_USE_CPU; leave both out: without a GPU the CPU is taken anyway."
            )
        return config

    def _check_report_to(self) -> None:
        """Refuse a logger that nobody knows, or that is not installed, before anything is loaded."""
        names = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or [])
        for name in names:
            if name in ("none", "all"):
                continue
            if name not in INTEGRATION_TO_CALLBACK:
                raise RecipeError(
                    f"train.report_to names {name}, and there is no such logger; there are "
                    f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))}, all (what is installed) and none"
                    f"{nearest(name, INTEGRATION_TO_CALLBACK)}"
                )
            if name not in get_available_reporting_integrations():
                package = _PACKAGES.get(name, name)
                raise RecipeError(
                    f"train.report_to names {name}, which is not installed: run pip install {package}, or leave it "
                    "out; metrics.jsonl is written in any case."
                )


def _refuse_launchers_wrappers() -> None:
    """Refuse what `accelerate launch` asks for by its environment, and would do to the model behind our back."""
    for name, said in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(name, "false").lower() in ("1", "true", "yes"):
            raise RecipeError(
                f"the accelerate configuration of this launch asks for {said} ({name}), which would average gradients "
                "over processes whatever they hold, and on a CPU do nothing; launch with torchrun, or with "
                "distributed_type: MULTI_GPU, and write train.shard_weights: true or train.deepspeed in the recipe."
            )
