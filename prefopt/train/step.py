"""One optimizer step as a function of its packs: log-probs, loss, gradients. No optimizer, no loop, no device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prefopt.data.layout import only
from prefopt.errors import RecipeError
from prefopt.losses import Loss
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.records import LossOutput, Pack, SequenceLogprobs
from prefopt.train.metrics import MeanMetrics, preference_metrics
from prefopt.train.ranks import ALONE, Ranks
from prefopt.train.scored import Scored, detached, placeholder, score_pack, score_sources, sequences
from prefopt.train.whole import passable, whole_step


@dataclass(frozen=True)
class StepResult:
    """What a step came to."""

    loss: float
    """sum(loss) / sum(weight) over every example of the step, or the sum of that over a mixture's parts."""
    examples: int
    """Pairs, labelled completions and lists."""
    metrics: MeanMetrics
    first_log_ratio: float
    """max |policy - reference| over the step's completions, nats; 0 without a reference."""
    tokens: int
    """Tokens that were computed, without the passes that only keep ranks together."""


@dataclass(frozen=True)
class _Step:
    """What `run_step` was given."""

    policy: PackedModel
    reference: Reference
    loss: Loss
    packs: Sequence[Pack]
    backward: Callable[[Tensor], object]
    autocast: Callable[[], AbstractContextManager[object]]
    ranks: Ranks
    device: torch.device


def run_step(
    policy: PackedModel,
    reference: Reference,
    loss: Loss,
    packs: Sequence[Pack],
    *,
    backward: Callable[[Tensor], object],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ranks: Ranks = ALONE,
) -> StepResult:
    """Compute the loss of a step and add its gradients to the policy's parameters.

    The step's loss is sum(loss) / sum(weight) over all packs of all ranks, whatever they are; a mixture's parts are
    each divided by their own weight. A loss whose statistics are taken over the step sees all of it before any
    gradient: what its statistic needs is scored first, without one. A step of one pack needs no second pass.

    Args:
        policy: the model in training, attached; without gradients, where there are several ranks.
        reference: gives (S,) log-probs of a pack, or None.
        loss: the loss module.
        packs: the packs of the step, on the model's device; with several ranks, this one's as `shard` gives them.
        backward: called with a scalar for each pack; what it adds to the gradients must be linear in it.
        autocast: wraps every forward pass, and no backward pass.
        ranks: who has the other packs. All of them end with the same gradients and the same result.
    """
    # Where weights are sharded, every rank walks through the model equally often, also with a pack that is empty.
    own = [pack for pack in packs if pack.num_sequences or ranks.sharded]
    step = _Step(policy, reference, loss, own, backward, autocast, ranks, packs[0].length.device)
    if loss.statistics == "none" or (len(own) == 1 and ranks.size == 1):
        result = _pack_by_pack(step)
    elif loss.statistics == "mismatched" and not loss.extras and not ranks.sharded:
        # Scoring the mismatched completions alone gives log-probs, and nothing else of them.
        result = _mismatched_first(step)
    else:
        result = _all_first(step)
    ranks.sum_gradients(policy.model.parameters())
    return result


def _pack_by_pack(step: _Step) -> StepResult:
    """Run every pack once: no example's loss depends on another pack."""
    loss = step.loss
    weights = [_weights(loss, pack) for pack in step.packs if pack.num_sequences]
    local = [sum(parts) for parts in zip(*weights, strict=True)]
    divisors = [sum(parts) for parts in zip(*(part for part in step.ranks.gather(local) if part), strict=True)]
    expected = iter(weights)
    metrics, total, widest = MeanMetrics(), 0.0, 0.0
    for pack in step.packs:
        with step.autocast():
            scored = score_pack(step.policy, step.reference, passable(pack), loss.extras)
        if not pack.num_sequences:
            step.backward(_nothing(scored.sources))
            continue
        seqs = sequences([pack], [scored])
        output = loss(seqs)
        if not np.allclose(_divisors(output), next(expected), rtol=1e-5):
            raise RecipeError(
                f"the weights of the loss {loss.name} depend on log-probs, and the divisor of a step must be known "
                "before them: let `LossOutput.weight` depend on lengths, labels and scores alone."
            )
        value = _value(output, divisors)
        step.backward(value)
        total += float(value.detach())
        seqs = detached(seqs)
        metrics.update(preference_metrics(seqs, output))
        widest = max(widest, _widest_log_ratio(seqs))
        if loss.statistics != "none":
            loss.end_step(seqs)
    return _summed(step, StepResult(total, sum(p.num_examples for p in step.packs), metrics, widest, _tokens(step)))


def _summed(step: _Step, own: StepResult) -> StepResult:
    """Return the result of the step from each rank's of its packs."""
    metrics, parts = MeanMetrics(), step.ranks.gather(own)
    for part in parts:
        metrics.update(part.metrics)
    return StepResult(
        loss=sum(part.loss for part in parts),
        examples=sum(part.examples for part in parts),
        metrics=metrics,
        first_log_ratio=max(part.first_log_ratio for part in parts),
        tokens=sum(part.tokens for part in parts),
    )


def _nothing(sources: Sequence[Tensor]) -> Tensor:
    """Return a zero whose backward pass walks through the model and changes nothing."""
    return torch.stack([source.double().sum() for source in sources]).sum() * 0


@torch.no_grad()
def evaluate_step(
    policy: PackedModel, reference: Reference, loss: Loss, packs: Sequence[Pack], ranks: Ranks = ALONE
) -> tuple[LossOutput, SequenceLogprobs]:
    """Return the loss and the log-probs of every example in the packs of all ranks, without gradient, as one batch."""
    own = [pack for pack in packs if pack.num_sequences or ranks.sharded]
    scored = [score_pack(policy, reference, passable(pack), loss.extras) for pack in own]
    seqs = whole_step(ranks, own, scored, packs[0].length.device)
    return loss(seqs), seqs


def _all_first(step: _Step) -> StepResult:
    """Score every completion, which gives d loss / d log-prob, and carry that back through the model pack by pack."""
    with torch.no_grad(), step.autocast():
        scored = [score_pack(step.policy, step.reference, passable(p), step.loss.extras) for p in step.packs]
    leaves = [s.leaves() for s in scored]
    seqs = whole_step(step.ranks, step.packs, leaves, step.device)
    output = step.loss(seqs)
    # Each rank takes the gradient of the whole step's loss at its own completions.
    upstream = iter(_gradients(_value(output), [source for s in leaves for source in s.sources]))
    for pack, own in zip(step.packs, leaves, strict=True):
        gradients = [next(upstream) for _ in own.sources]
        wanted = any(gradient is not None and bool(gradient.any()) for gradient in gradients)
        if wanted or step.ranks.sharded:
            with step.autocast():
                again = score_sources(step.policy, step.reference, passable(pack), step.loss.extras)
            pairs = zip(again, gradients, strict=True)
            parts = [(x * g).double().sum() for x, g in pairs if g is not None] if wanted else [_nothing(again)]
            step.backward(torch.stack(parts).sum())
    return _result(step, output, detached(seqs))


def _gradients(value: Tensor, sources: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return d value / d source of each; None of those that it does not depend on."""
    if not sources or not value.requires_grad:
        return [None] * len(sources)
    return torch.autograd.grad(value, sources, allow_unused=True)


def _mismatched_first(step: _Step) -> StepResult:
    """Score the mismatched completions, then run every pack's examples beside all the mismatched ones of the step.

    Neither pass computes the other's completions; the reference is computed once for both.
    """
    values: list[Scored] = []
    for pack in step.packs:
        with torch.no_grad(), step.autocast():
            frozen = step.reference.logprobs(pack)
            found = torch.zeros(pack.num_sequences, device=pack.length.device)
            if (others := pack.mismatched.unique()).numel():
                scored = step.policy.logprobs(only(pack, others))
                found = found.to(scored.dtype).index_copy(0, others, scored)
        values.append(Scored(found, frozen))
    whole = whole_step(step.ranks, step.packs, values, step.device)
    divisors = _divisors(step.loss(whole))
    for index, pack in enumerate(step.packs):
        if (own := pack.labelled.unique()).numel():
            with step.autocast():
                logprobs = step.policy.logprobs(only(pack, own))
            frozen = values[index].reference
            step.backward(_value(step.loss(_beside_mismatched(pack, own, logprobs, frozen, whole)), divisors))
            found = values[index].policy.to(logprobs.dtype).index_copy(0, own, logprobs.detach())
            values[index] = Scored(found, frozen)
    seqs = whole_step(step.ranks, step.packs, values, step.device)
    return _result(step, step.loss(seqs), seqs)


def _beside_mismatched(
    pack: Pack, own: Tensor, logprobs: Tensor, frozen: Tensor | None, step: SequenceLogprobs
) -> SequenceLogprobs:
    """Return the pack's labelled completions `own` (K,), with their log-probs, and the step's mismatched ones."""
    others = step.mismatched
    both = None if frozen is None or step.reference is None else torch.cat([frozen[own], step.reference[others]])
    return SequenceLogprobs(
        policy=torch.cat([logprobs, step.policy[others].to(logprobs.dtype)]),
        reference=both,
        length=torch.cat([pack.length[own], step.length[others]]),
        pair=pack.pair[:0],
        labelled=torch.searchsorted(own, pack.labelled),
        label=pack.label,
        mismatched=torch.arange(others.numel(), device=own.device) + own.numel(),
        pair_score=pack.pair_score[:0],
        listed=pack.listed[:0],
        list_index=pack.list_index[:0],
        list_score=pack.list_score[:0],
    )


@torch.no_grad()
def _result(step: _Step, output: LossOutput, seqs: SequenceLogprobs) -> StepResult:
    """Return what a step came to from the log-probs of all its completions, of every rank, and their loss."""
    examples = seqs.pair.shape[0] + seqs.labelled.numel() + seqs.list_index.unique().numel()
    metrics, widest = preference_metrics(seqs, output), _widest_log_ratio(seqs)
    step.loss.end_step(seqs)
    return StepResult(float(_value(output)), examples, metrics, widest, sum(step.ranks.gather(_tokens(step))))


def _tokens(step: _Step) -> int:
    return sum(pack.tokens.numel() for pack in step.packs if pack.num_sequences)


def _weights(loss: Loss, pack: Pack) -> list[float]:
    """Return sum(weight) of a pack before its forward pass: weights depend on lengths and labels alone."""
    with torch.no_grad():
        return _divisors(loss(sequences([pack], [placeholder(pack, loss.extras)])))


def _divisors(output: LossOutput) -> list[float]:
    """Return what each term of the loss is divided by, if `output` is of a whole step."""
    return [float(term.weight.double().sum()) for term in output.terms]


def _value(output: LossOutput, divisors: list[float] | None = None) -> Tensor:
    """Return what `output` adds to the loss of a step with these divisors; without, of a step that is all of it."""
    terms = zip(output.terms, _divisors(output) if divisors is None else divisors, strict=True)
    # A term without weight has no examples in this step, and no loss.
    values = [term.factor * term.loss.double().sum() / divisor for term, divisor in terms if divisor]
    return torch.stack(values).sum() if values else output.loss.sum()


def _widest_log_ratio(seqs: SequenceLogprobs) -> float:
    if seqs.reference is None or not seqs.policy.numel():
        return 0.0
    return float((seqs.policy - seqs.reference).abs().max())
