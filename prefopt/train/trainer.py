"""PreferenceTrainer: a transformers.Trainer whose unit is the step, cut into packs by a token budget."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from prefopt.data import PreferenceData, PreferenceStream, StepPlan, Weighted, build_packs, shard
from prefopt.errors import RunError
from prefopt.losses import Loss
from prefopt.models.packed import PackedModel
from prefopt.models.references import FrozenModel, Reference
from prefopt.models.sharded import shard_weights
from prefopt.models.work import Work
from prefopt.records import Pack
from prefopt.train import zero
from prefopt.train.arguments import PreferenceArguments
from prefopt.train.callbacks import EndOfStep, ExactEpoch
from prefopt.train.feed import Feed, StreamFeed, feed_of, for_loss
from prefopt.train.finite import FILE as NON_FINITE
from prefopt.train.finite import Culprits, is_finite
from prefopt.train.metrics import MeanMetrics, preference_metrics
from prefopt.train.offload import forward_context
from prefopt.train.pace import Pace, peak_memory, peak_rate
from prefopt.train.ranks import ranks_of_this_run
from prefopt.train.reference import reference_of, release_if_stored, sharded_reference
from prefopt.train.retry import PackLimit
from prefopt.train.saving import ResumableTrainer
from prefopt.train.scored import check_extras
from prefopt.train.step import StepResult, evaluate_step, run_step

Measure = Callable[[PackedModel, Reference, int], Mapping[str, float]]
_CONTROL = ("should_log", "should_evaluate", "should_save", "should_epoch_stop", "should_training_stop")


class PreferenceTrainer(ResumableTrainer):
    """Trains a policy on preferences: schedulers, loggers, callbacks and mixed precision are transformers' own.

    The loader yields one item a step, `{"micro": [pack, ...]}`; `training_step` walks the packs. How a step is cut
    into packs bounds memory and never changes the result. Where a launcher started several processes, each runs some of
    a step's packs: the step, its loss and its gradients are those of one process.

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
        measures: called at every evaluation with the policy, the reference (both ready to score packs) and the step;
            each returns more numbers by name, logged behind `eval_`.

    Raises:
        DataError: the data can't serve the loss, or has an example that is too long where that is refused.
        RecipeError: the loss needs a reference and `reference` is "none", or the arguments contradict each other.
    """

    loss_is_scaled_for_ga = True  # a step's loss is already a mean over the whole step
    unlogged: tuple[str, ...] = ()
    """Beginnings of names of metrics that mean nothing of what is trained."""

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
        measures: Sequence[Measure] = (),
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
        self.ranks = ranks_of_this_run()
        self._join_ranks()
        if self.arguments.deepspeed:
            self._leave_steps_to_engine()
        loss.to(self.args.device)
        self.packed = self.pack_model(model)
        if self.arguments.shard_weights and self.ranks.size > 1:
            shard_weights(self.packed)
            self.ranks = self.ranks.with_sharded_weights()
        self.reference = self._reference(reference, tokenizer)
        self.add_callback(EndOfStep(self.reference))
        check_extras(loss, self.packed, self.reference)
        self.feed.check_longest(shared=self.packed.admission.shared)
        self._measures = tuple(measures)
        self._limit = PackLimit()
        self._window = MeanMetrics()
        self._pace = Pace()
        self._work = Work.of(self.packed)
        self._peak: float | None = None
        self._tokens = 0
        self._skipped = 0

    def pack_model(self, model: PreTrainedModel | PeftModel) -> PackedModel:
        """Return what gives the number of each completion that the loss is of: its log-prob."""
        return PackedModel(model)

    def _join_ranks(self) -> None:
        """Begin with the weights of rank 0, draw dropout apart, and sum gradients in `run_step` instead of hooks."""
        if self.ranks.size == 1:
            return
        self.ranks.take_from_main(self.model.parameters())
        torch.manual_seed(self.args.seed + self.ranks.rank)
        # DistributedDataParallel would average over ranks, once a backward pass, whatever a step's packs hold.
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def _leave_steps_to_engine(self) -> None:
        """Let DeepSpeed's engine, which the Trainer makes when training starts, sum gradients and update weights."""
        zero.forget_launch()
        self.ranks = self.ranks.without_sums()
        # accelerate's own would exchange gradients and update in every backward pass.
        self.accelerator.backward = partial(zero.backward, self.ranks)
        if next(self.model.parameters()).device != self.args.device:  # the engine would move it, which is too late
            self.model.to(self.args.device)

    def _reference(self, wanted: Any, tokenizer: PreTrainedTokenizerBase | None) -> Reference:
        if isinstance(wanted, Reference):
            return wanted
        if isinstance(wanted, nn.Module):
            return FrozenModel(self.packed, PackedModel(wanted), "the model was given as the reference.")
        if self.ranks.sharded:
            return sharded_reference(wanted, self.packed, self.loss_module, tokenizer=tokenizer)
        built = reference_of(wanted, self.packed, self.loss_module, self.feed, self.arguments, tokenizer=tokenizer)
        release_if_stored(built, self.loss_module, self.feed, self.eval_data, self.arguments, self._autocast_dtype())
        return built

    # ---- data ----

    @property
    def data(self) -> PreferenceData | PreferenceStream:
        """What is learned from, in the form that the loss asks for."""
        return self.feed.data

    def get_train_dataloader(self) -> Any:
        admission = self.packed.admission
        return self.feed.loader(shared=admission.shared, one_row=admission.one_row, ranks=self.ranks)

    def num_examples(self, dataloader: Any) -> int:
        return self.feed.examples_per_epoch

    def get_total_train_batch_size(self, args: Any) -> int:
        return self.arguments.examples_per_step

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        self.state.num_input_tokens_seen = self._tokens

    # ---- the step ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run one step's packs forward and backward; returns the step's loss, detached."""
        if self._work and self._peak is None:
            dtype = self._autocast_dtype() or self.packed.head_weight.dtype
            self._peak = peak_rate(self.args.device, dtype) or 0.0
        self._pace.start()
        model.train()
        self.loss_module.train()
        packs = [pack.to(self.args.device) for pack in inputs["micro"]]
        context = forward_context(self.model, self.accelerator.autocast, offload=self.arguments.activation_offload)

        remembered = {name: buffer.clone() for name, buffer in self.loss_module.state_dict().items()}

        def step(packs: Sequence[Pack]) -> StepResult:
            self.loss_module.load_state_dict(remembered)  # as before a try that another rank broke off
            return run_step(
                self.packed,
                self.reference,
                self.loss_module,
                packs,
                backward=self.accelerator.backward,
                autocast=context,
                ranks=self.ranks,
            )

        with zero.gradients_stay(model) if self.arguments.deepspeed else nullcontext():
            result = self._limit.run(packs, step, self.model.parameters(), self.ranks)
        self._tokens += result.tokens
        self._pace.add(result.tokens, self._flops(packs))
        # A gradient that is scaled for float16 may overflow: its scaler sees to that.
        finite = self.accelerator.scaler is not None or is_finite(result.loss, model.parameters())
        if not all(self.ranks.gather(finite)):
            self.model.zero_grad(set_to_none=True)  # without gradients the optimizer leaves weights and moments alone
            self.loss_module.load_state_dict(remembered)
            return self._not_finite(packs, context)
        if self.state.global_step == 0 and self.ranks.main:
            self._check_start(result)
        self._window.update(result.metrics)
        self._window.add("loss", result.loss, 1)
        if self.arguments.deepspeed:  # the Trainer's own call of its optimizer does nothing then
            self._grad_norm = zero.step(model, self.ranks)
        return torch.tensor(result.loss, device=self.args.device)

    def _flops(self, packs: Sequence[Pack]) -> float:
        """Return what this rank's packs take: with the reference's pass, where it is a model that always computes."""
        if self._work is None:
            return 0.0
        computes = self.reference.name != "none" and self.reference.live is self.reference
        return sum(self._work.flops(pack, reference=computes) for pack in packs if pack.num_sequences)

    def _autocast_dtype(self) -> torch.dtype | None:
        device = self.args.device.type
        with self.accelerator.autocast():
            return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def _not_finite(self, packs: Sequence[Pack], context: Callable[[], Any]) -> Tensor:
        """Save the rows of a step that is no number; then stop, or go on with the weights as they are."""
        step, path = self.state.global_step + 1, Path(str(self.args.output_dir)) / NON_FINITE
        with context():
            culprits = Culprits.among(self.packed, self.reference.live, packs, self.ranks)
        sources = self.feed.sources(self.state.global_step)
        if self.ranks.main:
            culprits.write(path, step, sources, self.processing_class)
        sentence = culprits.sentence(step, sources, path)
        if self.arguments.non_finite == "stop":
            raise RunError(
                f"{sentence} The weights are those of the step before. Lower train.learning_rate, compute in "
                "model.dtype=float32, take the rows out, or write train.non_finite: skip."
            )
        if self.ranks.main:
            warnings.warn(f"{sentence} The step is skipped, as train.non_finite says.", stacklevel=2)
        self._skipped += 1
        self._grad_norm = 0.0
        return torch.zeros((), device=self.args.device)

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

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate, save and stop on all ranks when a callback of one of them asks for it."""
        self._agree(_CONTROL)
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._agree(_CONTROL[-2:])  # a callback may have asked for the end meanwhile

    def _agree(self, names: Sequence[str]) -> None:
        """Let all ranks do what one of them is asked to do."""
        asked = self.ranks.gather([getattr(self.control, name) for name in names])
        for name, answers in zip(names, zip(*asked, strict=True), strict=True):
            setattr(self.control, name, any(answers))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            del logs["loss"]  # the Trainer's mean counts steps that were skipped
            logs.update(self._window.means())
            logs["tokens"] = self._tokens
            logs.update(self._pace.take(self._peak))
            logs["memory_bytes"] = peak_memory(self.args.device)
            if self._skipped:
                logs["skipped_steps"] = self._skipped
            self._window = MeanMetrics()
        if "train_loss" in logs and (self._resume or self._skipped):
            # The Trainer averages over the steps since the resume; a run's loss is over all its steps.
            total = self._total_loss_scalar + (self._resume["total_loss"] if self._resume else 0.0)
            logs["train_loss"] = total / max(self.state.global_step - self._skipped, 1)
        shown = {
            name: value for name, value in logs.items() if not name.removeprefix("eval_").startswith(self.unlogged)
        }
        super().log(shown, start_time)

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
        measured: dict[str, float] = {}
        try:
            with self._pace.paused(), self._attached():
                with self.accelerator.autocast():
                    output, seqs = evaluate_step(self.packed, self.reference, loss, self.eval_packs(data), self.ranks)
                for measure in self._measures:
                    call = partial(measure, self.packed, self.reference, self.state.global_step)
                    measured |= self.ranks.of_model(call)
        finally:
            self.model.train(was_training)
            loss.train()
        means = {
            "loss": float(output.loss.sum() / output.weight.sum()),
            **preference_metrics(seqs, output).means(),
            **measured,
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        metrics[f"{metric_key_prefix}_runtime"] = time.monotonic() - began
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @contextmanager
    def _attached(self) -> Iterator[None]:
        with self.packed.attached(), self.reference.attached():
            yield

    def eval_packs(self, data: PreferenceData) -> list[Pack]:
        """Return this rank's packs of all of `data`, which is in the form that the loss asks for."""
        plan = StepPlan(data, examples_per_step=len(data), seed=0, mismatched=self.loss_module.needs_mismatched)
        admission = self.packed.admission
        packs = build_packs(
            plan.groups(0, 0),
            token_budget=self.arguments.token_budget,
            shared=admission.shared,
            one_row=admission.one_row,
        )
        return [pack.to(self.args.device) for pack in shard(packs, self.ranks.rank, self.ranks.size)]
