"""Sums of losses, each normalised by its own weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from prefopt.losses.base import Extra, Form, Loss, Statistics, best_and_worst
from prefopt.losses.expression import spelled
from prefopt.records import LossOutput, LossPart, Scores, SequenceLogprobs

_ORDER: tuple[Form, ...] = ("listwise", "paired", "unpaired", "demonstration")
_STRICTEST: tuple[Scores, ...] = ("ordered", "given", "unused")


@dataclass(frozen=True)
class Share:
    """A loss and what it is multiplied by."""

    factor: float
    loss: Loss


class Mixture(Loss):
    """A sum of losses: the step's loss is the sum of factor * sum(loss) / sum(weight) over the parts.

    So a mean over pairs and a mean over tokens are each what they are alone, whatever the lengths. Its needs are those
    of its parts together. Where one part takes pairs, the data are pairs, and a part for labels sees each pair as a
    desirable and an undesirable completion. Where one takes lists, a part for pairs sees the best and the worst
    completion of each. The implicit reward is that of the first part that compares completions.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        """Mix `shares`, one at least."""
        super().__init__()
        self.factors = [share.factor for share in shares]
        self.parts = torch.nn.ModuleList(share.loss for share in shares)
        self._losses = losses = [share.loss for share in shares]
        self.name = " + ".join(_spelled(share) for share in shares)
        self.paper = "; ".join(dict.fromkeys(loss.paper for loss in losses if loss.paper))
        self.form = min((loss.form for loss in losses), key=_ORDER.index)
        self.needs_reference = any(loss.needs_reference for loss in losses)
        self.needs_mismatched = any(loss.needs_mismatched for loss in losses)
        self.scores = min((loss.scores for loss in losses), key=_STRICTEST.index)
        if self.form == "listwise" and self.scores == "given" and any(loss.form != "listwise" for loss in losses):
            self.scores = "ordered"  # the other parts see best and worst by score: of a pair that must be its order
        self.needs_preference = all(loss.needs_preference for loss in losses if loss.form == "listwise")
        self.extras = frozenset[Extra]().union(*(loss.extras for loss in losses))
        self.statistics = _together([loss.statistics for loss in losses])
        names = [loss.name.rpartition(":")[2] for loss in losses]
        # The same loss may stand there twice, with other settings.
        self._names = [f"{n}_{i}" if names.count(n) > 1 else n for i, n in enumerate(names, start=1)]
        self._leading = next((i for i, loss in enumerate(losses) if loss.form != "demonstration"), 0)
        self.beta = losses[self._leading].beta

    def hyper(self) -> dict[str, float | bool | str]:
        """Return nothing: the hyper-parameters stand in the name."""
        return {}

    def extra_repr(self) -> str:
        return self.name

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        views = self._views(seqs)
        found: list[LossOutput] = [loss(views[loss.form]) for loss in self._losses]
        parts = tuple(
            LossPart(name, factor, output.loss, output.weight)
            for name, factor, output in zip(self._names, self.factors, found, strict=True)
        )
        return LossOutput.of_parts(
            parts,
            reward=found[self._leading].reward,
            metrics={
                f"{name}/{part}" if len(self.parts) > 1 else name: value
                for part, output in zip(self._names, found, strict=True)
                for name, value in output.metrics.items()
            },
        )

    def end_step(self, seqs: SequenceLogprobs) -> None:
        views = self._views(seqs)
        for loss in self._losses:
            loss.end_step(views[loss.form])

    def _views(self, seqs: SequenceLogprobs) -> dict[Form, SequenceLogprobs]:
        """Return the step as a loss of each form sees it."""
        pairs = _as_pairs(seqs) if self.form == "listwise" else seqs
        labels = pairs if self.form == "unpaired" else _as_labels(pairs)
        return {"listwise": seqs, "paired": pairs, "unpaired": labels, "demonstration": pairs}


def _spelled(share: Share) -> str:
    """Return a share as the expression that makes it, every hyper-parameter included."""
    call = spelled(share.loss.name, share.loss.hyper())
    return call if share.factor == 1 else f"{share.factor!r}*{call}"


def _together(statistics: list[Statistics]) -> Statistics:
    """Return what has to be seen at once: with several parts all of it, where one of them needs anything."""
    return statistics[0] if len(statistics) == 1 else "none" if set(statistics) == {"none"} else "step"


def _as_pairs(seqs: SequenceLogprobs) -> SequenceLogprobs:
    """Return the best and the worst completion of each list that prefers one to another as a pair."""
    entries = best_and_worst(seqs)
    return replace(seqs, pair=seqs.listed[entries], pair_score=seqs.list_score[entries])


def _as_labels(seqs: SequenceLogprobs) -> SequenceLogprobs:
    """Return the pairs as labelled completions, chosen ones desirable."""
    chosen, rejected = seqs.pair.unbind(-1)
    label = torch.cat([torch.ones_like(chosen), torch.zeros_like(rejected)]).bool()
    return replace(seqs, labelled=torch.cat([chosen, rejected]), label=label)
