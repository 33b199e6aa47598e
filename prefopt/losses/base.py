"""What every loss has in common: its declared needs, the log-ratio, and how pairs and lists are laid out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from prefopt.errors import ModelError
from prefopt.losses.hyper import Hyperparameters
from prefopt.records import LossOutput, Scores, SequenceLogprobs

Form = Literal["paired", "unpaired", "listwise", "demonstration"]
Statistics = Literal["none", "step", "mismatched"]
Extra = Literal["token", "log_sum_p2", "divergence"]


class Loss(Hyperparameters):
    """A preference loss: a function of sequence log-probs that declares what it needs.

    The declarations are read by the trainer, the data and the command line, so that no loss name appears there.
    A subclass takes its hyper-parameters as keyword arguments, checks them with `number`, `choice` and `switch`, keeps
    each under its own name, and implements `forward`. The first line of its docstring says what it is, in one sentence.
    """

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
    needs_preference: bool = False
    """Of lists: whether one whose scores are all equal is no example."""
    extras: frozenset[Extra] = frozenset()
    """Fields of `SequenceLogprobs` beside the sums over tokens that must be there: each costs memory or time."""
    wraps: str = ""
    """The hyper-parameter that is another loss, written first and without its name: `wpo(dpo)`."""
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

    def score_gap(self, seqs: SequenceLogprobs) -> Tensor:
        """Return score(chosen) - score(rejected) of every pair, (P,); raise ModelError when there are none."""
        if seqs.pair_score is None or bool(seqs.pair_score.isnan().any()):
            raise ModelError(
                f"The loss {self.name} goes by the scores of pairs, and some have none: give "
                "`SequenceLogprobs.pair_score`."
            )
        chosen, rejected = seqs.pair_score.unbind(-1)
        return chosen - rejected


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


class ListLoss(Loss):
    """A loss of the implicit rewards and scores of a list's completions, and of nothing else.

    A subclass implements `value`, and sets `needs_preference` where a list of equal scores is no example.
    """

    form = "listwise"

    def value(self, reward: Tensor, score: Tensor, there: Tensor) -> Tensor:
        """Return the loss of each list, (Q,).

        Args:
            reward: (Q, K) implicit rewards, 0 where a list has no more completions.
            score: (Q, K), 0 where a list has no more.
            there: (Q, K) bool, false where a list has no more.
        """
        raise NotImplementedError

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        reward = self.beta * self.log_ratio(seqs)
        size = seqs.list_index.unique(return_counts=True)[1]
        place = torch.arange(seqs.listed.numel(), device=size.device) - (size.cumsum(0) - size)[seqs.list_index]
        at, shape = (seqs.list_index, place), (size.numel(), int(size.max()) if size.numel() else 1)
        entries = reward.new_zeros(shape).index_put(at, reward[seqs.listed])
        score = reward.new_zeros(shape).index_put(at, seqs.list_score.to(reward.dtype))
        there = torch.zeros(shape, dtype=torch.bool, device=size.device).index_put(at, torch.ones_like(place).bool())
        loss = self.value(entries, score, there)
        counts = _prefers(score, there) if self.needs_preference else there.any(-1)
        return LossOutput(loss=loss * counts, weight=counts.to(loss.dtype), reward=reward.detach())


def _prefers(score: Tensor, there: Tensor) -> Tensor:
    """Return which lists, (Q, K) each, have two different scores: (Q,) bool."""
    highest = score.masked_fill(~there, -torch.inf).amax(-1)
    return highest > score.masked_fill(~there, torch.inf).amin(-1)


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
