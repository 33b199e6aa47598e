"""A causal language model as a reward model: a number for each completion of a pack, from its last token's state."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from prefopt.errors import ModelError
from prefopt.models.packed import PackedModel
from prefopt.models.states import Reduction
from prefopt.records import Pack

HEAD = "prefopt_reward_head"
"""The name of the head in the model that it is a part of."""


class PackedRewards(PackedModel):
    """Computes rewards of packs: backbone, then a scalar head on the state of each completion's last token.

    The head is made a part of the model, so that it trains and is found among its parameters. It is drawn with the
    variance 1 / (H + 1), as in arXiv:2009.01325, and computes in float32.

    Args:
        model: a causal language model, with or without adapters; its language model head is not used.
        seed: what the head is drawn with.

    Raises:
        ModelError: as PackedModel.
    """

    reads_last = True

    def __init__(self, model: nn.Module, *, seed: int) -> None:
        super().__init__(model)
        hidden = self.head_weight.shape[1]
        head = nn.Linear(hidden, 1, bias=False, dtype=torch.float32)
        drawn = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
        head.weight.data.copy_(drawn / (hidden + 1) ** 0.5)
        self.reward_head = head.to(self.head_weight.device)
        model.add_module(HEAD, self.reward_head)

    def logprobs(self, pack: Pack, reduction: Reduction = "sum") -> Tensor:
        """Return the reward of each completion, (S,) float32, differentiable: not a log-prob, and not of tokens.

        Raises:
            ModelError: for any other reduction than "sum", and as PackedModel.
        """
        if reduction != "sum":
            raise ModelError("a reward is of a whole completion: it has no tokens' parts and no mean over them.")
        states = self._scored(replace(pack, score_at=last_at(pack)))
        with torch.autocast(states.device.type, enabled=False):
            rewards: Tensor = self.reward_head(states.float())[:, 0]
        return rewards


def last_at(pack: Pack) -> Tensor:
    """Return where the last token of each completion stands, (S,) int64, in the flattened (R * T) hidden states."""
    device = pack.tokens.device
    if pack.layout is not None:
        ends = [
            group.start + group.prompt + sum(group.completions[: place + 1]) - 1
            for group in pack.layout.groups
            for place in range(len(group.completions))
        ]
        return torch.tensor(ends, dtype=torch.int64, device=device)
    rows, width = pack.tokens.shape
    lengths = torch.full((rows,), width, device=device) if pack.mask is None else pack.mask.sum(1)
    return torch.arange(rows, device=device) * width + lengths - 1
