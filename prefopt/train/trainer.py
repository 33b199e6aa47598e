"""PreferenceTrainer: a transformers.Trainer whose unit is the step, cut into packs by a token budget."""

from __future__ import annotations

import copy
import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import TrainOutput

from prefopt.data import PreferenceData, PreferenceStream, StepPlan, Weighted, build_packs
from prefopt.errors import RunError
from prefopt.losses import Loss
from prefopt.models.adapters import save_weights
from prefopt.models.packed import PackedModel
from prefopt.models.references import FrozenModel, Reference, build_reference
from prefopt.records import Pack
from prefopt.train.arguments import PreferenceArguments
from prefopt.train.callbacks import ExactEpoch
from prefopt.train.checkpoint import last_whole_checkpoint, missing_parts, rotate, staged
from prefopt.train.feed import Feed, StreamFeed, feed_of, for_loss
from prefopt.train.metrics import MeanMetrics, preference_metrics
from prefopt.train.retry import PackLimit
from prefopt.train.scored import check_extras
from prefopt.train.step import StepResult, evaluate_step, run_step

STATE = "prefopt_state.json"


class PreferenceTrainer(Trainer):
    """Trains a policy on preferences: schedulers, loggers, callbacks and mixed precision are transformers' own.

    The loader yields one item a step, `{"micro": [pack, ...]}`; `training_step` walks the packs. How a step is cut
    into packs bounds memory and never changes the result.

    Args:
        model: a causal language model, or a PeftModel around one (the adapter is then what learns).
        data: what `prefopt.load_preferences` returned, or a `PreferenceStream`; pairs serve unpaired losses too.
        loss: what `prefopt.losses.build` returned.
        reference: "auto", "adapter_off", "none", a frozen model, or a `Reference` of your own.
        args: `PreferenceArguments`: `transformers.TrainingArguments` plus examples_per_step and token_budget.
        eval_data: held-out preferences for `evaluate`.
        tokenizer: saved beside the weights in every checkpoint.
        callbacks: transformers.TrainerCallback objects.
        group_prompts: let examples of one prompt stand in one step, where they fit.
        weights: how much of an epoch each source of `data` makes; a stream has weights of its own.
        workers: processes that build packs ahead; a stream has workers of its own.

    Raises:
        DataError: the data can't serve the loss, or has an example that is too long where that is refused.
        RecipeError: the loss needs a reference and `reference` is "none", or the arguments contradict each other.
    """

    loss_is_scaled_for_ga = True  # a step's loss is already a mean over the whole step

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        data: PreferenceData | PreferenceStream,
        loss: Loss,
        reference: Any = "auto",
        args: PreferenceArguments | None = None,
        *,
        eval_data: PreferenceData | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        group_prompts: bool = True,
        weights: Sequence[Weighted] = (),
        workers: int = 0,
    ) -> None:
        # What a loss remembers belongs to a run: the caller's own stays as it is.
        self.loss_module = loss = copy.deepcopy(loss)
        self.eval_data = eval_data and for_loss(eval_data, loss)
        self.arguments = args or PreferenceArguments(output_dir="prefopt-run")
        self.feed: Feed | StreamFeed = feed_of(
            data, loss, self.arguments, group_prompts=group_prompts, weights=weights, workers=workers
        )
        exact_epoch = ExactEpoch(self.feed.steps_per_epoch)
        super().__init__(
            model=model,
            args=self.arguments,
            processing_class=tokenizer,
            # `evaluate` is ours; the Trainer only checks that there is something to evaluate on.
            eval_dataset=self.eval_data,
            callbacks=[exact_epoch, *(callbacks or [])],
        )
        self.remove_callback(PrinterCallback)  # it prints every log to stdout, which is for results
        loss.to(self.args.device)
        self.packed = PackedModel(model)
        self.reference = self._reference(reference, tokenizer)
        check_extras(loss, self.packed, self.reference)
        self.feed.check_longest(shared=self.packed.admission.shared)
        self._limit = PackLimit()
        self._window = MeanMetrics()
        self._tokens = 0
        self._resume: dict[str, Any] | None = None
        self._staging: Path | None = None

    def _reference(self, wanted: Any, tokenizer: PreTrainedTokenizerBase | None) -> Reference:
        if isinstance(wanted, Reference):
            return wanted
        if isinstance(wanted, nn.Module):
            return FrozenModel(self.packed, PackedModel(wanted), "the model was given as the reference.")
        return build_reference(wanted, self.packed, needed=self.loss_module.needs_reference, tokenizer=tokenizer)

    # ---- data ----

    @property
    def data(self) -> PreferenceData | PreferenceStream:
        """What is learned from, in the form that the loss asks for."""
        return self.feed.data

    def get_train_dataloader(self) -> Any:
        admission = self.packed.admission
        return self.feed.loader(shared=admission.shared, one_row=admission.one_row)

    def num_examples(self, dataloader: Any) -> int:
        return self.feed.examples_per_epoch

    def get_total_train_batch_size(self, args: Any) -> int:
        return self.arguments.examples_per_step

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        self.state.num_input_tokens_seen += sum(pack.tokens.numel() for pack in inputs["micro"])

    # ---- the step ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run one step's packs forward and backward; returns the step's loss, detached."""
        model.train()
        self.loss_module.train()
        packs = [pack.to(self.args.device) for pack in inputs["micro"]]

        def step(packs: Sequence[Pack]) -> StepResult:
            return run_step(
                self.packed,
                self.reference,
                self.loss_module,
                packs,
                backward=self.accelerator.backward,
                autocast=self.accelerator.autocast,
            )

        result = self._limit.run(packs, step, self.model.parameters())
        if self.state.global_step == 0:
            self._check_start(result)
        self._window.update(result.metrics)
        self._tokens += sum(pack.tokens.numel() for pack in packs)
        return torch.tensor(result.loss, device=self.args.device)

    def _check_start(self, result: StepResult) -> None:
        """Say it when policy and reference differ before the first update: rewards would not start at zero."""
        allowed = self.reference.start_tolerance
        if allowed is not None and result.first_log_ratio > allowed:
            warnings.warn(
                f"before the first update policy and reference ({self.reference.name}) differ by up to "
                f"{result.first_log_ratio:.3g} nats a completion, where at most {allowed:.3g} is expected; rewards "
                "will not start at zero. An adapter that is not zero at its start, or a reference that is another "
                "model than the policy began as, explains it.",
                stacklevel=2,
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._window.means())
            logs["tokens"] = self._tokens
            self._window = MeanMetrics()
        if "train_loss" in logs and self._resume:
            # The Trainer averages over the steps since the resume; a run's loss is over all its steps.
            total = self._total_loss_scalar + self._resume["total_loss"]
            logs["train_loss"] = total / max(self.state.global_step, 1)
        super().log(logs, start_time)

    # ---- evaluation ----

    def evaluate(
        self,
        eval_dataset: PreferenceData | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Return and log the loss and the preference metrics on held-out data, every example counted once."""
        data = eval_dataset or self.eval_data
        if data is None:
            raise RunError("there is nothing to evaluate on: give the trainer eval_data, or write data.eval.")
        loss, began = self.loss_module, time.monotonic()
        data = for_loss(data, loss)
        was_training = self.model.training
        self.model.eval()
        loss.eval()
        try:
            with self._attached(), self.accelerator.autocast():
                output, seqs = evaluate_step(self.packed, self.reference, loss, list(self._eval_packs(data)))
        finally:
            self.model.train(was_training)
            loss.train()
        means = {"loss": float(output.loss.sum() / output.weight.sum()), **preference_metrics(seqs, output).means()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.monotonic() - began
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _eval_packs(self, data: PreferenceData) -> Iterator[Any]:
        plan = StepPlan(data, examples_per_step=len(data), seed=0, mismatched=self.loss_module.needs_mismatched)
        admission = self.packed.admission
        packs = build_packs(
            plan.groups(0, 0),
            token_budget=self.arguments.token_budget,
            shared=admission.shared,
            one_row=admission.one_row,
        )
        return (pack.to(self.args.device) for pack in packs)

    # ---- checkpoints ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train, or go on from a checkpoint (True: the newest whole one of the run).

        Raises `RunError` when the named checkpoint is incomplete or was made from other data or steps.
        """
        checkpoint = self._checkpoint(resume_from_checkpoint)
        self._resume = None if checkpoint is None else self._read_state(checkpoint)
        if checkpoint is not None and self._resume is not None and self._is_finished(checkpoint):
            total = self._resume["total_loss"] + self._resume["loss_sum"]
            return TrainOutput(self.state.global_step, total / max(self.state.global_step, 1), {})
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
        self.state = state
        return True

    @contextmanager
    def _attached(self) -> Iterator[None]:
        with self.packed.attached(), self.reference.attached():
            yield

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
        return state

    def _identity(self) -> dict[str, Any]:
        return {
            **self.feed.identity(),
            "loss": repr(self.loss_module),
        }

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(super()._get_output_dir(trial))
        final = run / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with staged(final) as folder:
                # super() writes into `<output dir>/checkpoint-N`: let that be a folder inside, then lift it up.
                self._staging = folder
                super()._save_checkpoint(model, trial)
                inner = folder / final.name
                for path in inner.iterdir():
                    path.rename(folder / path.name)
                inner.rmdir()
                if self.state.best_global_step:
                    self.state.best_model_checkpoint = str(run / f"checkpoint-{self.state.best_global_step}")
                self.state.save_to_json(str(folder / "trainer_state.json"))
        finally:
            self._staging, self.args.save_total_limit = None, limit
        best = self.state.best_model_checkpoint
        rotate(run, limit, Path(best) if best else None)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.model, folder)
        if isinstance(self.processing_class, PreTrainedTokenizerBase):
            self.processing_class.save_pretrained(str(folder))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        state = {
            "identity": self._identity(),
            "window": self._window.state_dict(),
            "tokens": self._tokens,
            "loss": {name: buffer.tolist() for name, buffer in self.loss_module.state_dict().items()},
            "loss_sum": float(self._tr_loss),
            "total_loss": self._total_loss_scalar + (self._resume["total_loss"] if self._resume else 0.0),
            "last_logged": self._globalstep_last_logged,
            "place": self.callback_handler.train_dataloader.state_dict(),
        }
        (Path(output_dir) / STATE).write_text(json.dumps(state))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore what the Trainer forgets; it calls this just before it asks the loader for the first step."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None or self._resume is None:
            return
        self._window = MeanMetrics.from_state(self._resume["window"])
        self._tokens = self._resume["tokens"]
        self._load_loss(self._resume)
        self._tr_loss += self._resume["loss_sum"]
        self._globalstep_last_logged = self._resume["last_logged"]
        self.callback_handler.train_dataloader.load_state_dict(self._resume["place"])

    def _load_loss(self, state: dict[str, Any] | None) -> None:
        """Let the loss remember what it did when `state` was saved."""
        for name, buffer in self.loss_module.state_dict().items():
            if state is not None:
                buffer.copy_(torch.tensor(state["loss"][name], dtype=buffer.dtype))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = self.state.best_model_checkpoint
        if best and (Path(best) / STATE).is_file():
            self._load_loss(json.loads((Path(best) / STATE).read_text()))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Copy weights into the model as it stands: PEFT's own loader would change an adapter's dtype."""
        target = model or self.model
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
