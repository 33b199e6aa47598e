"""`train.token_budget: auto`: whether packs of a size fit, found out by trying one on the device."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from prefopt.data import build_packs
from prefopt.losses import Loss
from prefopt.records import Group
from prefopt.train.offload import forward_context
from prefopt.train.retry import is_out_of_memory
from prefopt.train.step import run_step
from prefopt.train.trainer import PreferenceTrainer

_SMALLER = 0.75
"""What the next try is of one that failed."""
_STEP = 64


def rounded_down(budget: int) -> int:
    """Return the next lower of few sizes, 2^k or 3 * 2^(k - 1), so that a little memory more or less says the same."""
    power = 1 << max(0, budget.bit_length() - 1)
    return power + power // 2 if budget >= power + power // 2 else power


def try_budget(trainer: PreferenceTrainer, groups: Sequence[Group], guess: int, *, spare: int = 0) -> int:
    """Return the largest budget, from `guess` downwards, of which one pack passes forward and backward.

    Nothing is left behind: no gradient, nothing remembered by the loss, and no memory kept by the allocator.

    Args:
        trainer: ready to train, and not trained yet.
        groups: of one step.
        guess: tried first.
        spare: bytes held back meanwhile, for what comes later, such as the optimizer's state.
    """
    budget = guess
    while not _fits(trainer, groups, budget, spare):
        smaller = int(budget * _SMALLER) // _STEP * _STEP
        if smaller < _STEP:
            return budget  # a pack of one example; what it needs, the first step says
        budget = smaller
    return budget


def _fits(trainer: PreferenceTrainer, groups: Sequence[Group], budget: int, spare: int) -> bool:
    """Whether the largest pack of a step under this budget passes."""
    admission, device = trainer.packed.admission, trainer.args.device
    packs = build_packs(groups, token_budget=budget, shared=admission.shared, one_row=admission.one_row)
    largest = max(packs, key=lambda pack: pack.tokens.numel()).to(device)
    reference = trainer.reference.live or trainer.reference  # what a trial computes is not kept
    with _nothing_left(trainer):
        try:
            held = torch.empty(spare, dtype=torch.uint8, device=device) if device.type == "cuda" else None
            with trainer.packed.attached(), reference.attached(), torch.random.fork_rng():
                run_step(
                    trainer.packed,
                    reference,
                    _own(trainer.loss_module),
                    [largest],
                    backward=_backward,
                    autocast=forward_context(
                        trainer.model, trainer.accelerator.autocast, offload=trainer.arguments.activation_offload
                    ),
                )
            del held
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
    return True


def _own(loss: Loss) -> Loss:
    """Return a loss that may remember the trial."""
    return copy.deepcopy(loss)


def _backward(value: Tensor) -> None:
    torch.autograd.backward(value)


@contextmanager
def _nothing_left(trainer: PreferenceTrainer) -> Iterator[None]:
    model = trainer.packed.model
    training = model.training
    model.train()
    try:
        yield
    finally:
        model.train(training)
        model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
