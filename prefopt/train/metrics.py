"""What a step is worth logging: sums and counts, so that packs and logging windows add up to exact means."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prefopt.losses import best_and_worst
from prefopt.records import LossOutput, SequenceLogprobs


@dataclass
class MeanMetrics:
    """Means by name over any number of packs, kept as (sum, count) so that two of them can be added."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, total: float, count: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + total
        self.counts[name] = self.counts.get(name, 0.0) + count

    def update(self, other: MeanMetrics) -> None:
        for name, total in other.sums.items():
            self.add(name, total, other.counts[name])

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items() if self.counts[name]}

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    @classmethod
    def from_state(cls, state: dict[str, dict[str, float]]) -> MeanMetrics:
        return cls(dict(state["sums"]), dict(state["counts"]))


@torch.no_grad()
def preference_metrics(seqs: SequenceLogprobs, output: LossOutput) -> MeanMetrics:
    """Return the metrics that dashboards know, for the examples of `seqs`.

    `rewards/*` are implicit rewards, `logps/*` sums in nats, `log_ratios/*` policy minus reference. Of a list the best
    completion is chosen and the worst rejected, unless all are scored alike. For labelled completions chosen means
    desirable, the margin is the difference of the two means' parts, and no accuracy exists. `losses/*` are the parts of
    a mixture, before they are multiplied and added.
    """
    metrics = MeanMetrics()
    pair = torch.cat([seqs.pair, seqs.listed[best_and_worst(seqs)]])
    if pair.numel():
        chosen, rejected = pair.unbind(1)
        margin = output.reward[chosen] - output.reward[rejected]
        _add(metrics, "rewards/accuracies", (margin > 0).float())
        _add(metrics, "rewards/margins", margin)
    else:
        chosen, rejected = seqs.labelled[seqs.label], seqs.labelled[~seqs.label]
    for side, index in (("chosen", chosen), ("rejected", rejected)):
        _add(metrics, f"rewards/{side}", output.reward[index])
        _add(metrics, f"logps/{side}", seqs.policy[index])
        if seqs.reference is not None:
            _add(metrics, f"log_ratios/{side}", seqs.policy[index] - seqs.reference[index])
    _add_per_token(metrics, seqs, chosen)
    for part in output.parts:
        metrics.add(f"losses/{part.name}", float(part.loss.double().sum()), float(part.weight.double().sum()))
    for name, value in output.metrics.items():
        _add(metrics, name, value.reshape(-1))
    return metrics


def _add_per_token(metrics: MeanMetrics, seqs: SequenceLogprobs, chosen: Tensor) -> None:
    """Add the mean log-prob and log-ratio of a token of the chosen completions: what does not depend on length."""
    tokens = float(seqs.length[chosen].sum())
    if tokens:
        own = float(seqs.policy[chosen].double().sum())
        metrics.add("logps/chosen_per_token", own, tokens)
        if seqs.reference is not None:
            metrics.add("log_ratios/chosen_per_token", own - float(seqs.reference[chosen].double().sum()), tokens)


def _add(metrics: MeanMetrics, name: str, values: Tensor) -> None:
    if values.numel():
        metrics.add(name, float(values.double().sum()), float(values.numel()))
