"""What a run goes on from: a transformers.Trainer whose checkpoints are whole and hold all that it forgets."""

from __future__ import annotations

import json
import math
import warnings
from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import TrainOutput

from prefopt.errors import RunError
from prefopt.losses import Loss
from prefopt.models.adapters import save_weights
from prefopt.models.references import Reference
from prefopt.models.sharded import (
    clip_gradients,
    load_optimizer_state,
    load_weights,
    optimizer_state,
    trained_weights,
)
from prefopt.train.arguments import PreferenceArguments
from prefopt.train.checkpoint import last_whole_checkpoint, missing_parts, rotate, staged_by_all
from prefopt.train.feed import Feed, StreamFeed
from prefopt.train.metrics import MeanMetrics
from prefopt.train.pace import Pace
from prefopt.train.ranks import Ranks

STATE = "prefopt_state.json"
REFERENCE = "reference.safetensors"
"""Weights of a reference that moves."""


class ResumableTrainer(Trainer):
    """Saves and restores a run to the bit; what a step is belongs to the subclass."""

    feed: Feed | StreamFeed
    loss_module: Loss
    reference: Reference
    arguments: PreferenceArguments
    ranks: Ranks
    _window: MeanMetrics
    _pace: Pace
    _tokens: int
    _skipped: int
    _grad_norm: float = 0.0
    """Of the last step, where DeepSpeed's engine has clipped it already."""
    _resume: dict[str, Any] | None = None
    """What `STATE` of the checkpoint holds that this run goes on from."""
    _staging: Path | None = None

    @abstractmethod
    def _attached(self) -> AbstractContextManager[None]:
        """Return the context within which policy and reference compute log-probs."""

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train, or go on from a checkpoint (True: the newest whole one of the run).

        Raises `RunError` when the named checkpoint is incomplete or was made from other data or steps.
        """
        with self.ranks.together():
            checkpoint = self.ranks.of_main(lambda: self._checkpoint(resume_from_checkpoint))
            self._resume = None if checkpoint is None else self._read_state(checkpoint)
            if checkpoint is not None and self._resume is not None and self._is_finished(checkpoint):
                total = self._resume["total_loss"] + self._resume["loss_sum"]
                counted = self.state.global_step - self._resume["skipped"]
                return TrainOutput(self.state.global_step, total / max(counted, 1), {})
            if checkpoint is not None:  # before the Trainer measures what train.eval_on_start asks for
                self._load_loss(self._resume)
                self._load_reference(checkpoint)
            with self._attached():
                output = super().train(resume_from_checkpoint=checkpoint and str(checkpoint), **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def _is_finished(self, checkpoint: Path) -> bool:
        """Load a checkpoint made after the last step and say so: the Trainer's loop would run one step too many."""
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        planned = self.args.max_steps
        if planned < 0:
            planned = math.ceil(self.args.num_train_epochs * self.feed.steps_per_epoch)
        if state.global_step < planned:
            return False
        self._load_from_checkpoint(str(checkpoint))
        self._load_loss(self._resume)
        self._load_reference(checkpoint)
        self.state = state
        if self.args.load_best_model_at_end and state.best_model_checkpoint:
            self._load_best_model()
        return True

    def _checkpoint(self, wanted: str | bool | None) -> Path | None:
        if not wanted:
            return None
        if wanted is True:
            found = last_whole_checkpoint(Path(self.args.output_dir))
            if found is None:
                warnings.warn(f"{self.args.output_dir} has no whole checkpoint; starting at step 0.", stacklevel=3)
            return found
        if wrong := missing_parts(Path(wanted)):
            raise RunError(f"checkpoint {wanted} can't be resumed: {'; '.join(wrong)}. Name another, or leave it out.")
        return Path(wanted)

    def _read_state(self, checkpoint: Path) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
        mine = self._identity()
        if changed := [name for name, value in mine.items() if state["identity"].get(name) != value]:
            raise RunError(
                f"checkpoint {checkpoint} was made with other {' and '.join(changed)}, so the run can't go on exactly; "
                "restore them, or start in a new train.output_dir."
            )
        if (parts := state.get("zero", 0)) != self._zero:
            raise RunError(
                f"checkpoint {checkpoint} was written {_by(parts)}, and this run goes on {_by(self._zero)}, which "
                "can't read its optimizer; go on as it was written, or start in a new train.output_dir."
            )
        return state

    @property
    def _zero(self) -> int:
        """How many parts DeepSpeed cuts the optimizer into; none without it."""
        return self.ranks.size if self.arguments.deepspeed else 0

    def _identity(self) -> dict[str, Any]:
        return {
            **self.feed.identity(),
            "loss": repr(self.loss_module),
        }

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._pace.paused():
            self._stage_checkpoint(model, trial)

    def _stage_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(super()._get_output_dir(trial))
        final = run / f"checkpoint-{self.state.global_step}"
        # What super() would do with these, it would do in the staging folder: rotate, and wait for all ranks to look.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        best, self.state.best_global_step = self.state.best_global_step, None
        try:
            with staged_by_all(final, self.ranks) as folder:
                self._staging = folder
                super()._save_checkpoint(model, trial)
                self.ranks.meet()
                self.state.best_global_step = best
                if best:
                    self.state.best_model_checkpoint = str(run / f"checkpoint-{best}")
                if self.ranks.main:
                    _lift(folder / final.name)
                    self.state.save_to_json(str(folder / "trainer_state.json"))
        finally:
            self._staging, self.args.save_total_limit, self.state.best_global_step = None, limit, best
        if self.ranks.main:
            rotate(run, limit, Path(kept) if (kept := self.state.best_model_checkpoint) else None)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter, or the model, and the tokenizer; every rank calls it and rank 0 writes."""
        weights = trained_weights(self.model) if self.ranks.sharded else None
        if self.ranks.main:
            self._save(output_dir, weights)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.model, folder, state_dict)
        if isinstance(self.processing_class, PreTrainedTokenizerBase):
            self.processing_class.save_pretrained(str(folder))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.ranks.sharded:  # by the names of weights and whole, so that any number of ranks can go on
            state = optimizer_state(self.model, self.optimizer.optimizer)
            if self.ranks.main:
                torch.save(state, Path(output_dir) / OPTIMIZER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.arguments.shard_weights:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state, schedule = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
        if any(isinstance(name, str) for group in state["param_groups"] for name in group["params"]):
            load_optimizer_state(self.model, self.optimizer.optimizer, state)
        elif self.ranks.sharded:
            raise RunError(
                f"checkpoint {checkpoint} was written by one process, and its optimizer can't be cut into parts; go on "
                "with one process, or start in a new train.output_dir."
            )
        else:
            self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(schedule)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.arguments.deepspeed:
            return self._grad_norm
        if not self.ranks.sharded:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        return clip_gradients(self.model, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if grad_norm is None and self.arguments.deepspeed:
            return self._grad_norm
        if grad_norm is None and self.ranks.sharded:
            return clip_gradients(self.model, float("inf"))
        return super()._get_grad_norm(model, grad_norm)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if not self.ranks.main:
            return  # the rest is the same on every rank
        state = {
            "identity": self._identity(),
            "zero": self._zero,
            "window": self._window.state_dict(),
            "tokens": self._tokens,
            "skipped": self._skipped,
            "loss": {name: buffer.tolist() for name, buffer in self.loss_module.state_dict().items()},
            "loss_sum": float(self._tr_loss),
            "total_loss": self._total_loss_scalar + (self._resume["total_loss"] if self._resume else 0.0),
            "last_logged": self._globalstep_last_logged,
            "place": self.callback_handler.train_dataloader.state_dict(),
        }
        (Path(output_dir) / STATE).write_text(json.dumps(state))
        if moved := self.reference.state_dict():
            save_file({name: tensor.contiguous() for name, tensor in moved.items()}, Path(output_dir) / REFERENCE)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore what the Trainer forgets; it calls this just before it asks the loader for the first step."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None or self._resume is None:
            return
        self._window = MeanMetrics.from_state(self._resume["window"])
        self._tokens = self._resume["tokens"]
        self._skipped = self._resume["skipped"]
        self._tr_loss += self._resume["loss_sum"]
        self._globalstep_last_logged = self._resume["last_logged"]
        self.callback_handler.train_dataloader.load_state_dict(self._resume["place"])

    def _load_loss(self, state: dict[str, Any] | None) -> None:
        """Let the loss remember what it did when `state` was saved."""
        for name, buffer in self.loss_module.state_dict().items():
            if state is not None:
                buffer.copy_(torch.tensor(state["loss"][name], dtype=buffer.dtype))

    def _load_reference(self, checkpoint: Path) -> None:
        """Let a reference that moves stand where it stood when `checkpoint` was saved."""
        saved = checkpoint / REFERENCE
        self.reference.load_state_dict(load_file(saved) if saved.is_file() else {})

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if self.ranks.sharded and best:
            load_weights(self.model, _saved_weights(self.model, Path(best)))
        elif self.arguments.deepspeed and best:
            self._load_from_checkpoint(best)  # the engine's own would load its optimizer too, which has ended
        else:
            super()._load_best_model()
        if best and (Path(best) / STATE).is_file():
            self._load_loss(json.loads((Path(best) / STATE).read_text()))
            self._load_reference(Path(best))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Copy weights into the model as it stands: PEFT's own loader would change an adapter's dtype."""
        target = model or self.model
        if self.ranks.sharded:
            load_weights(target, _saved_weights(target, Path(resume_from_checkpoint)))
            return
        weights = Path(resume_from_checkpoint) / "adapter_model.safetensors"
        if not isinstance(target, PeftModel) or not weights.is_file():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        result = set_peft_model_state_dict(target, load_file(weights), adapter_name=target.active_adapter)
        if result.unexpected_keys:
            raise RunError(
                f"{weights} does not fit the adapter of this recipe: {', '.join(result.unexpected_keys[:3])} ... have "
                "no place in it. Resume with the recipe the run began with."
            )


def _by(parts: int) -> str:
    return f"by {parts} processes with train.deepspeed" if parts else "without train.deepspeed"


def _lift(inner: Path) -> None:
    """Move what super() wrote into `<output dir>/checkpoint-N` up into the output dir: the checkpoint in the making."""
    for path in inner.iterdir():
        path.rename(inner.parent / path.name)
    inner.rmdir()


def _saved_weights(model: nn.Module, checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds, by the names that weights have in the model."""
    files = sorted(checkpoint.glob("*.safetensors"))
    found = {name: weight for file in files for name, weight in load_file(file).items()}
    if not isinstance(model, PeftModel):
        return found
    # PEFT leaves the adapter's name out: `...lora_A.weight` is `...lora_A.default.weight` in the model.
    own = {name.replace(f".{model.active_adapter}.", "."): name for name, _ in model.named_parameters()}
    return {own.get(name, name): weight for name, weight in found.items()}
