"""What every loss has in common: its declared needs, its validated hyper-parameters, and the log-ratio."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from itertools import pairwise
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from prefopt.errors import ModelError, RecipeError, nearest
from prefopt.records import LossOutput, Scores, SequenceLogprobs

Form = Literal["paired", "unpaired", "listwise", "demonstration"]
Statistics = Literal["none", "step", "mismatched"]
Extra = Literal["token", "log_sum_p2", "divergence"]


class Loss(torch.nn.Module):
    """A preference loss: a function of sequence log-probs that declares what it needs.

    The declarations are read by the trainer, the data and the command line, so that no loss name appears there.
    A subclass takes its hyper-parameters as keyword arguments, checks them with `number`, `choice` and `switch`, keeps
    each under its own name, and implements `forward`. The first line of its docstring says what it is, in one sentence.
    """

    name: str
    """What a recipe calls it. A class of this package that sets it is found by the registry."""
    paper: str = ""
    """Where its formula is written: `arXiv:2305.18290, Eq. 7`."""
    source: str = ""
    """sha256 of the file that a loss of the user's own stands in: a changed file is another loss."""
    form: Form
    """What an example is: a pair, a labelled completion, a scored list, or a completion to imitate."""
    needs_reference: bool = True
    """Whether `SequenceLogprobs.reference` must be there."""
    statistics: Statistics = "none"
    """`step`: the value of one example depends on others of its step, so `forward` must see the whole step at once.
    `mismatched`: it depends on the step's mismatched completions alone, so `forward` must see all of those, beside any
    part of the examples."""
    needs_mismatched: bool = False
    """Whether every step must hold completions of other prompts (`SequenceLogprobs.mismatched`)."""
    scores: Scores = "unused"
    """Whether completions must have scores, and in a pair the chosen one the higher."""
    extras: frozenset[Extra] = frozenset()
    """Fields of `SequenceLogprobs` beside the sums over tokens that must be there: each costs memory or time."""
    beta: float = 1.0
    """Scales the implicit reward; with a reference, the strength of the pull towards it."""

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        """Return the unreduced loss of every example of `seqs`, and the implicit reward of every completion."""
        raise NotImplementedError

    def end_step(self, seqs: SequenceLogprobs) -> None:
        """Take note of a step of training, given whole and without gradient, after its gradients.

        A loss that remembers something of the steps before keeps it in buffers, which checkpoints hold; it declares
        `statistics = "step"`, and changes them here alone. Evaluation never calls this.
        """

    def hyper(self) -> dict[str, float | bool | str]:
        """Return every hyper-parameter with its value, defaults included."""
        return {key: getattr(self, key) for key in self.hyper_names()}

    @classmethod
    def meaning(cls) -> str:
        """Return the first sentence of the docstring, without its full stop: what the loss is."""
        return inspect.cleandoc(cls.__doc__ or "").split("\n", 1)[0].removesuffix(".")

    @classmethod
    def hyper_names(cls) -> list[str]:
        """Return the names of the hyper-parameters, in the constructor's order."""
        found = inspect.signature(cls).parameters.values()
        return [each.name for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]

    @classmethod
    def needed_names(cls) -> list[str]:
        """Return the names of those without a default."""
        found = inspect.signature(cls).parameters
        return [name for name in cls.hyper_names() if found[name].default is inspect.Parameter.empty]

    def extra_repr(self) -> str:
        own = {"source": self.source} if self.source else {}
        return ", ".join(f"{key}={value}" for key, value in {**self.hyper(), **own}.items())

    def log_ratio(self, seqs: SequenceLogprobs) -> Tensor:
        """Return log pi(y|x) - log pi_ref(y|x), (S,), nats, in float32 or, for float64 input, float64.

        Raises ModelError when `seqs` has no reference.
        """
        return at_least_float32(seqs.policy) - self.reference(seqs)

    def reference(self, seqs: SequenceLogprobs) -> Tensor:
        """Return log pi_ref(y|x), (S,), as `log_ratio` does; raise ModelError when `seqs` has none."""
        if seqs.reference is None:
            raise ModelError(
                f"The loss {self.name} compares the policy with a reference, but there are no reference log-probs: "
                "set `reference: auto` (or a model) in the recipe, or choose a loss that needs none."
            )
        return at_least_float32(seqs.reference)

    def extra(self, seqs: SequenceLogprobs, name: Extra) -> Any:
        """Return a field of `seqs` that `extras` declares; raise ModelError when it is not there."""
        found = getattr(seqs, name)
        if found is None:
            raise ModelError(
                f"The loss {self.name} needs `SequenceLogprobs.{name}`, which was not computed: declare it in `extras`."
            )
        return found

    def number(
        self,
        key: str,
        value: object,
        *,
        above: float | None = None,
        at_least: float | None = None,
        below: float | None = None,
        at_most: float | None = None,
    ) -> float:
        """Return `value` as a float, or raise RecipeError with the allowed range when it is not a number in it."""
        bounds = [(above, "greater than"), (at_least, "at least"), (below, "less than"), (at_most, "at most")]
        allowed = " and ".join(f"{words} {bound:g}" for bound, words in bounds if bound is not None) or "finite"
        try:
            # YAML 1.1 reads 1e-2 as text, so text that spells a number is one.
            found = math.nan if isinstance(value, bool) or not isinstance(value, (Real, str)) else float(value)
        except (ValueError, OverflowError):
            found = math.nan
        inside = (
            math.isfinite(found)
            and (above is None or found > above)
            and (at_least is None or found >= at_least)
            and (below is None or found < below)
            and (at_most is None or found <= at_most)
        )
        if not inside:
            raise RecipeError(
                f"{key} = {value!r} is not allowed for the loss {self.name}: it must be a number {allowed}."
            )
        return found

    def choice(self, key: str, value: object, allowed: Collection[str]) -> str:
        """Return `value`, or raise RecipeError with what is allowed when it is none of these words."""
        if not isinstance(value, str) or value not in allowed:
            raise RecipeError(
                f"{key} = {value!r} is not allowed for the loss {self.name}: it must be one of "
                f"{', '.join(allowed)}{nearest(str(value), allowed)}"
            )
        return value

    def switch(self, key: str, value: object) -> bool:
        """Return `value`, or raise RecipeError when it is not true or false."""
        if not isinstance(value, bool):
            raise RecipeError(f"{key} = {value!r} is not allowed for the loss {self.name}: it must be true or false.")
        return value


class PairLoss(Loss):
    """A loss of one number for each completion of a pair, and of nothing else.

    A subclass implements `value`, and `score` where the number is not the log-ratio.
    """

    form = "paired"

    def score(self, seqs: SequenceLogprobs) -> Tensor:
        """Return the number that stands for each completion, (S,), nats; beta times it is the implicit reward."""
        return self.log_ratio(seqs)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the loss of pairs whose completions score `chosen` and `rejected`; all (P,)."""
        raise NotImplementedError

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        score = self.score(seqs)
        loss = self.value(*score[seqs.pair].unbind(-1))
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=self.beta * score.detach())


def best_and_worst(seqs: SequenceLogprobs) -> Tensor:
    """Return the entries with the highest and the lowest score of each list that has two scores, (P, 2) int64."""
    found: list[tuple[int, int]] = []
    scores = seqs.list_score.tolist()
    stops = seqs.list_index.unique(return_counts=True)[1].cumsum(0).tolist()
    for start, stop in pairwise([0, *stops]):
        ranked = sorted(range(start, stop), key=lambda entry: -scores[entry])
        if scores[ranked[0]] > scores[ranked[-1]]:
            found.append((ranked[0], ranked[-1]))
    return torch.tensor(found, dtype=torch.int64, device=seqs.listed.device).reshape(-1, 2)


def at_least_float32(values: Tensor) -> Tensor:
    """Return `values` in float32; float64 stays what it is."""
    return values if values.dtype == torch.float64 else values.float()
