"""Supervised fine-tuning on the completions to imitate."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.losses.base import Loss, at_least_float32
from prefopt.records import LossOutput, SequenceLogprobs


class SFT(Loss):
    """Supervised fine-tuning: the negative log-likelihood of a token of the completions to imitate.

        loss = -log pi(y|x),   weight = length(y),   of every chosen and every desirable completion y

    A step's loss is sum(loss) / sum(weight): a mean over tokens, as models are pretrained, so a long completion counts
    more than a short one. Rejected and undesirable completions are no part of it.

    Mixed with a preference loss it keeps the chosen completions likely: a sum with `dpo` is what RPO (arXiv:2405.16436)
    and IRPO (arXiv:2404.19733) train, but that IRPO takes the mean over tokens pair by pair. Alone on completions that
    a scorer selected it is RAFT (arXiv:2304.06767).

    The implicit reward is log pi.
    """

    name = "sft"
    form = "demonstration"
    paper = "arXiv:2405.16436 (RPO), arXiv:2404.19733 (IRPO), both in a mixture; arXiv:2304.06767 (RAFT)"
    needs_reference = False

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        policy = at_least_float32(seqs.policy)
        imitated = demonstrations(seqs)
        return LossOutput(loss=-policy[imitated], weight=seqs.length[imitated].to(policy.dtype), reward=policy.detach())


def demonstrations(seqs: SequenceLogprobs) -> Tensor:
    """Return the completions to imitate, (D,) int64: chosen ones of pairs and desirable ones of labels."""
    return torch.cat([seqs.pair[:, 0], seqs.labelled[seqs.label]])
