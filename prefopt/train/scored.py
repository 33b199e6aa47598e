"""What is computed of a pack for a loss: sums of log-probs, and the extras that the loss declares."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.kernels import reduce_segments
from prefopt.losses import Loss
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.models.states import States
from prefopt.records import Pack, SequenceLogprobs, TokenLogprobs


@dataclass(frozen=True)
class Scored:
    """Numbers of one pack's completions, (S,) float32, nats; token by token, (N,), where the loss asks for it."""

    policy: Tensor
    reference: Tensor | None
    token: TokenLogprobs | None = None
    log_sum_p2: Tensor | None = None
    divergence: Tensor | None = None

    @property
    def sources(self) -> list[Tensor]:
        """What carries gradients to the model: the others are made from these, or need none."""
        first = self.policy if self.token is None else self.token.policy
        return [first] if self.divergence is None else [first, self.divergence]

    def leaves(self) -> Scored:
        """Return the same numbers, with gradients that end at `sources`."""
        if self.token is None:
            own = replace(self, policy=self.policy.detach().requires_grad_())
        else:
            token = replace(self.token, policy=self.token.policy.detach().requires_grad_())
            own = replace(self, token=token, policy=_sums(token.policy, token.segment, len(self.policy)))
        return own if self.divergence is None else replace(own, divergence=self.divergence.detach().requires_grad_())


def check_extras(loss: Loss, policy: PackedModel, reference: Reference) -> None:
    """Refuse before a step what the policy or the reference can't give to the loss.

    Raises:
        RecipeError: the loss compares distributions, and the reference has log-probs alone or the head trains.
    """
    if "divergence" not in loss.extras:
        return
    if not reference.gives_states:
        raise RecipeError(
            f"the loss {loss.name} compares whole distributions with the reference's, and the reference "
            f"'{reference.name}' gives log-probs of single tokens alone: write 'reference: auto', or choose another "
            "loss."
        )
    if policy.trains_head:
        raise RecipeError(
            f"the loss {loss.name} has no gradient for a head that trains, and the policy's does (or the embedding "
            "that it is tied to): set model.lora and leave lm_head out of it, or choose another loss."
        )
    rows, others = policy.head_weight.shape[0], reference.head_rows
    if others != rows:
        raise RecipeError(
            f"the loss {loss.name} compares whole distributions, and the heads have {rows} rows in the policy and "
            f"{others} in the reference, tokens or not: choose a reference of the policy's own size of vocabulary."
        )


def score_pack(policy: PackedModel, reference: Reference, pack: Pack, extras: Collection[str] = ()) -> Scored:
    """Compute log-probs of a pack's completions, the reference's first, and what else `extras` name."""
    if not extras:
        frozen = reference.logprobs(pack)
        return Scored(policy.logprobs(pack), frozen)
    others = reference.states(pack).to(pack.target.device) if "divergence" in extras else None
    frozen_token = reference.logprobs(pack, "none") if others is None else _tokens(others, pack)
    states = policy.states(pack)
    token = _tokens(states, pack)
    return Scored(
        policy=_sums(token, pack.segment, pack.num_sequences),
        reference=None if frozen_token is None else _sums(frozen_token, pack.segment, pack.num_sequences),
        token=TokenLogprobs(token, frozen_token, pack.segment),
        log_sum_p2=states.log_sum_p2(pack) if "log_sum_p2" in extras else None,
        divergence=None if others is None else states.divergence(others, pack),
    )


def score_sources(policy: PackedModel, reference: Reference, pack: Pack, extras: Collection[str] = ()) -> list[Tensor]:
    """Compute `Scored.sources` of a pack once more, and nothing that no gradient goes through."""
    if not extras:
        return [policy.logprobs(pack)]
    if "divergence" not in extras:
        return [policy.logprobs(pack, "none")]
    others = reference.states(pack).to(pack.target.device)
    states = policy.states(pack)
    return [_tokens(states, pack), states.divergence(others, pack)]


def placeholder(pack: Pack, extras: Collection[str] = ()) -> Scored:
    """Return zeros in the place of everything, for what a loss says of lengths, labels and scores alone."""
    zeros = torch.zeros(pack.num_sequences, device=pack.length.device)
    if not extras:
        return Scored(zeros, zeros)
    token = torch.zeros(pack.target.numel(), device=pack.length.device)
    return Scored(zeros, zeros, TokenLogprobs(token, token, pack.segment), zeros, zeros)


def sequences(packs: Sequence[Pack], scored: Sequence[Scored]) -> SequenceLogprobs:
    """Join the packs of a step to one record, completions and lists numbered through."""
    offsets = torch.tensor([0, *(pack.num_sequences for pack in packs)]).cumsum(0).tolist()
    lists = torch.tensor([0, *(pack.num_lists for pack in packs)]).cumsum(0).tolist()
    shifted = list(zip(packs, offsets[:-1], strict=True))
    return SequenceLogprobs(
        policy=torch.cat([s.policy for s in scored]),
        reference=_joined([s.reference for s in scored]),
        length=torch.cat([pack.length for pack in packs]),
        pair=torch.cat([pack.pair + offset for pack, offset in shifted]),
        labelled=torch.cat([pack.labelled + offset for pack, offset in shifted]),
        label=torch.cat([pack.label for pack in packs]),
        mismatched=torch.cat([pack.mismatched + offset for pack, offset in shifted]),
        pair_score=torch.cat([pack.pair_score for pack in packs]),
        listed=torch.cat([pack.listed + offset for pack, offset in shifted]),
        list_index=torch.cat([pack.list_index + first for pack, first in zip(packs, lists[:-1], strict=True)]),
        list_score=torch.cat([pack.list_score for pack in packs]),
        token=_joined_tokens([s.token for s in scored], offsets[:-1]),
        log_sum_p2=_joined([s.log_sum_p2 for s in scored]),
        divergence=_joined([s.divergence for s in scored]),
    )


def detached(seqs: SequenceLogprobs) -> SequenceLogprobs:
    """Return the same numbers without a graph."""
    token = seqs.token and replace(seqs.token, policy=seqs.token.policy.detach())
    divergence = None if seqs.divergence is None else seqs.divergence.detach()
    return replace(seqs, policy=seqs.policy.detach(), token=token, divergence=divergence)


def _tokens(states: States, pack: Pack) -> Tensor:
    """Return the log-prob of every token, (N,)."""
    return states.logprobs(pack.target, pack.segment, pack.num_sequences, reduction="none")


def _sums(token: Tensor, segment: Tensor, count: int) -> Tensor:
    """Return sums over completions, (S,), the bits that `PackedModel.logprobs` gives."""
    return reduce_segments(token, segment, count).to(token.dtype)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def _joined_tokens(parts: Sequence[TokenLogprobs | None], offsets: Sequence[int]) -> TokenLogprobs | None:
    there = [(part, offset) for part, offset in zip(parts, offsets, strict=True) if part is not None]
    if not there:
        return None
    return TokenLogprobs(
        policy=torch.cat([part.policy for part, _ in there]),
        reference=_joined([part.reference for part, _ in there]),
        segment=torch.cat([part.segment + offset for part, offset in there]),
    )
