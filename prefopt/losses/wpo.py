"""Weighted preference optimization: any other loss, on what the policy itself would have written."""

from __future__ import annotations

from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.losses.base import Form, Loss, at_least_float32
from prefopt.losses.dpo import DPO
from prefopt.losses.expression import spelled
from prefopt.losses.mixture import Mixture
from prefopt.losses.sft import demonstrations
from prefopt.records import LossOutput, SequenceLogprobs


class WPO(Loss):
    """Weighted preference optimization: another loss, each example by how likely the policy is to write it.

        w(y) = exp(mean over the tokens of y of (log pi(y_t) - log sum_v pi(v)^2)),   at the same place of the text
        loss = min(1, product of w over the example's completions) * the loss of the example in `of`

    arXiv:2406.11827, with its sampled alignment: a token counts by its probability against the mean probability of a
    token that the policy would sample there. Data that other models wrote are so brought nearer to on-policy ones. The
    weights are constants to the gradient and do not enter the divisor, so a mean is still over all examples. They are
    logged as `wpo_weight`.

    Written `wpo(simpo(beta=2))`: `of` is any loss of pairs, labels or demonstrations that looks at one example at a
    time, in the paper DPO, SimPO and IPO. The paper's code limits a pair's weight to 1 and so does this.

    Raises RecipeError for a loss of lists or of a whole step, a mixture, or another `wpo`.
    """

    name = "wpo"
    form: Form = "paired"
    paper = "arXiv:2406.11827"
    extras = frozenset({"log_sum_p2"})
    wraps = "of"

    def __init__(self, *, of: Loss | None = None) -> None:
        super().__init__()
        self.of = of = of or DPO()
        refused = {
            "is a sum of losses: weigh its parts": isinstance(of, Mixture),
            "weighs its examples already": isinstance(of, WPO),
            "takes lists, and the weights are those of single completions and pairs": of.form == "listwise",
            "looks at its whole step at once": of.statistics == "step",
        }
        for why, so in refused.items():
            if so:
                raise RecipeError(f"of = {of.name} is not allowed for the loss wpo: it {why}.")
        self.form, self.beta, self.statistics = of.form, of.beta, of.statistics
        self.needs_reference, self.needs_mismatched = of.needs_reference, of.needs_mismatched
        self.scores, self.extras = of.scores, of.extras | WPO.extras

    def hyper(self) -> dict[str, float | bool | str]:
        return {"of": spelled(self.of.name, self.of.hyper())}

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        output: LossOutput = self.of(seqs)
        likely = at_least_float32(seqs.policy.detach()) - at_least_float32(self.extra(seqs, "log_sum_p2"))
        score = (likely / seqs.length.clamp(min=1)).to(output.loss.dtype)
        weight = self._of_examples(score, seqs).exp().clamp(max=1)
        metrics = {**output.metrics, "wpo_weight": weight}
        return LossOutput(loss=weight * output.loss, weight=output.weight, reward=output.reward, metrics=metrics)

    def _of_examples(self, score: Tensor, seqs: SequenceLogprobs) -> Tensor:
        """Return the sum of each example's completions' `score` (S,), in the order of the losses of `of`."""
        if self.of.form == "paired":
            return score[seqs.pair].sum(-1)
        if self.of.form == "unpaired":
            return score[seqs.labelled]
        return score[demonstrations(seqs)]
