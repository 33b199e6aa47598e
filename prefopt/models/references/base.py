"""What every reference can do, and the one for losses that compare with nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from prefopt.errors import ModelError, RunError
from prefopt.models.references.identity import Identity
from prefopt.models.states import Reduction, States
from prefopt.records import Pack


class Reference(ABC):
    """Gives the log-probs that the policy is compared with.

    Whatever happens inside, the policy keeps its weights, its adapter, its mode and the trainability of each weight.
    """

    name: str
    """One of adapter_off, frozen_copy, model, moving, none."""
    reason: str
    """A sentence: why it is this one."""
    gives_states: bool = False
    """Whether it has distributions over next tokens, not only the log-probs of those that are there."""
    head_rows: int | None = None
    """Rows of its head, padding of the vocabulary included, if `gives_states`."""
    holds_memory: bool = False
    """Whether it holds weights beside the policy's, which `release` gives back."""
    start_tolerance: float | None
    """How far a completion's log-prob may be from the policy's before the first update, nats; None: anywhere."""

    @abstractmethod
    def logprobs(self, pack: Pack, reduction: Reduction = "sum") -> Tensor | None:
        """Return the (S,) float32 log-probs of the pack's completions in nats, without gradient, or None.

        `reduction` is that of `PackedModel.logprobs`.
        """

    def states(self, pack: Pack) -> States:
        """Return what the distributions at the pack's tokens are made from, without gradient, if `gives_states`."""
        raise ModelError(f"the reference {self.name} has log-probs of single tokens alone, no distributions.")

    @abstractmethod
    def attached(self) -> AbstractContextManager[Any]:
        """Return the context within which `logprobs` works."""

    def identity(self) -> Identity | None:
        """Return what its log-probs are a function of besides the tokens; None: of more than can be named."""
        return None

    def release(self) -> None:
        """Give back the memory that it holds beside the policy; from then on it computes nothing."""
        raise ModelError(f"the reference {self.name} holds no memory of its own.")

    def end_step(self, step: int) -> bool:
        """Take note that optimizer step number `step`, from 1, is done; returns whether the reference moved."""
        return False

    def state_dict(self) -> dict[str, Tensor]:
        """Return what of it changes in training."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state_dict` gave. Raises `RunError` when that is of another reference."""
        if state:
            raise RunError(
                f"the checkpoint holds a reference that moved, and this run's is {self.name}: resume with the recipe "
                "the run began with."
            )

    @property
    def live(self) -> Reference | None:
        """What computes log-probs that nobody will ask for again; None where its memory was given back."""
        return self

    @property
    def separate(self) -> Any:
        """The model that it is, where that is another than the policy ever was; None otherwise."""
        return None

    @property
    def start(self) -> Reference:
        """What the policy was compared with before training, where that is still to be had."""
        return self


class NoReference(Reference):
    """For losses that compare with nothing."""

    name = "none"
    start_tolerance = None

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def logprobs(self, pack: Pack, reduction: Reduction = "sum") -> None:
        return None

    def attached(self) -> AbstractContextManager[Any]:
        return nullcontext()
