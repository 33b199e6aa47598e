"""DPO on what a pair's completions have in length, and less on what only the longer one has."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.kernels import reduce_segments
from prefopt.losses.base import Loss, at_least_float32
from prefopt.records import LossOutput, SequenceLogprobs


class LDDPO(Loss):
    """Length-desensitized DPO: tokens of the longer completion beyond the shorter one's length count for less.

        n    = min(length(chosen), length(rejected)),
        s(y) = sum of log_ratio over the first n tokens of y + alpha * sum over its other tokens
        loss = -log sigma(beta * (s(chosen) - s(rejected)))

    arXiv:2409.06411; the n first tokens are its public length. At `alpha = 1` it is DPO, at 0 the excess is not looked
    at. The weights go to policy and reference alike, so that training starts at log 2.

    It needs the log-probs of single tokens (`extras`). The implicit reward is that of whole completions.

    Raises RecipeError unless beta > 0 and 0 <= alpha <= 1.
    """

    name = "ld_dpo"
    form = "paired"
    paper = "arXiv:2409.06411"
    extras = frozenset({"token"})

    def __init__(self, *, beta: float = 0.1, alpha: float = 0.5) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.alpha = self.number("alpha", alpha, at_least=0, at_most=1)

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        log_ratio = self.log_ratio(seqs)
        chosen, rejected = self._scores(seqs).to(log_ratio.dtype).unbind(-1)
        loss = -logsigmoid(self.beta * (chosen - rejected))
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=self.beta * log_ratio.detach())

    def _scores(self, seqs: SequenceLogprobs) -> Tensor:
        """Return s of both completions of every pair, (P, 2) float64, nats."""
        token = self.extra(seqs, "token")
        ratio = at_least_float32(token.policy) - at_least_float32(token.reference)
        side = seqs.pair.flatten()
        length = seqs.length[side]
        public = seqs.length[seqs.pair].amin(-1).repeat_interleave(2)
        # The tokens of each pair's completions one after the other: a completion of two pairs stands there twice.
        owner = torch.arange(side.numel(), device=side.device).repeat_interleave(length)
        inside = torch.arange(owner.numel(), device=side.device) - (length.cumsum(0) - length)[owner]
        start = seqs.length.cumsum(0) - seqs.length
        values = ratio[start[side][owner] + inside]
        weighted = torch.where(inside < public[owner], values, self.alpha * values)
        return reduce_segments(weighted, owner, side.numel()).reshape(-1, 2)
