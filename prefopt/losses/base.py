"""What every loss has in common: its declared needs, its validated hyper-parameters, and the log-ratio."""

from __future__ import annotations

import inspect
import math
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from prefopt.errors import ModelError, RecipeError
from prefopt.records import LossOutput, SequenceLogprobs

Form = Literal["paired", "unpaired"]
Statistics = Literal["none", "step", "mismatched"]


class Loss(torch.nn.Module):
    """A preference loss: a function of sequence log-probs that declares what it needs.

    The declarations are read by the trainer, the data and the command line, so that no loss name appears there.
    A subclass takes its hyper-parameters as keyword arguments, checks them with `number` and `switch`, keeps each
    under its own name, and implements `forward`.
    """

    name: str
    """What a recipe calls it."""
    form: Form
    """What an example is: a pair, or a labelled completion."""
    needs_reference: bool = True
    """Whether `SequenceLogprobs.reference` must be there."""
    statistics: Statistics = "none"
    """`step`: the value of one example depends on others of its step, so `forward` must see the whole step at once.
    `mismatched`: it depends on the step's mismatched completions alone, so `forward` must see all of those, beside any
    part of the examples."""
    needs_mismatched: bool = False
    """Whether every step must hold completions of other prompts (`SequenceLogprobs.mismatched`)."""
    beta: float
    """Strength of the pull towards the reference; scales the implicit reward."""

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        """Return the unreduced loss of every example of `seqs`, and the implicit reward of every completion."""
        raise NotImplementedError

    def hyper(self) -> dict[str, float | bool]:
        """Return every hyper-parameter with its value, defaults included."""
        return {key: getattr(self, key) for key in self.hyper_names()}

    @classmethod
    def hyper_names(cls) -> list[str]:
        """Return the names of the hyper-parameters, in the constructor's order."""
        return list(inspect.signature(cls).parameters)

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.hyper().items())

    def log_ratio(self, seqs: SequenceLogprobs) -> Tensor:
        """Return log pi(y|x) - log pi_ref(y|x), (S,), nats, in float32 or, for float64 input, float64.

        Raises ModelError when `seqs` has no reference.
        """
        if seqs.reference is None:
            raise ModelError(
                f"The loss {self.name} compares the policy with a reference, but there are no reference log-probs: "
                "set `reference: auto` (or a model) in the recipe, or choose a loss that needs none."
            )
        return at_least_float32(seqs.policy) - at_least_float32(seqs.reference)

    def number(
        self,
        key: str,
        value: object,
        *,
        above: float | None = None,
        at_least: float | None = None,
        below: float | None = None,
    ) -> float:
        """Return `value` as a float, or raise RecipeError with the allowed range when it is not a number in it."""
        bounds = [(above, "greater than"), (at_least, "at least"), (below, "less than")]
        allowed = " and ".join(f"{words} {bound:g}" for bound, words in bounds if bound is not None) or "finite"
        try:
            # YAML 1.1 reads 1e-2 as text, so text that spells a number is one.
            found = math.nan if isinstance(value, bool) or not isinstance(value, (Real, str)) else float(value)
        except ValueError:
            found = math.nan
        inside = (
            math.isfinite(found)
            and (above is None or found > above)
            and (at_least is None or found >= at_least)
            and (below is None or found < below)
        )
        if not inside:
            raise RecipeError(
                f"{key} = {value!r} is not allowed for the loss {self.name}: it must be a number {allowed}."
            )
        return found

    def switch(self, key: str, value: object) -> bool:
        """Return `value`, or raise RecipeError when it is not true or false."""
        if not isinstance(value, bool):
            raise RecipeError(f"{key} = {value!r} is not allowed for the loss {self.name}: it must be true or false.")
        return value


def at_least_float32(values: Tensor) -> Tensor:
    """Return `values` in float32; float64 stays what it is."""
    return values if values.dtype == torch.float64 else values.float()
