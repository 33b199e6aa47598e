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
from prefopt.train.scored import Scored, detached, placeholder, score_pack, score_sources, sequences


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


@dataclass(frozen=True)
class _Step:
    """What `run_step` was given."""

    policy: PackedModel
    reference: Reference
    loss: Loss
    packs: Sequence[Pack]
    backward: Callable[[Tensor], object]
    autocast: Callable[[], AbstractContextManager[object]]


def run_step(
    policy: PackedModel,
    reference: Reference,
    loss: Loss,
    packs: Sequence[Pack],
    *,
    backward: Callable[[Tensor], object],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> StepResult:
    """Compute the loss of a step and add its gradients to the policy's parameters.

    The step's loss is sum(loss) / sum(weight) over all packs, whatever they are; a mixture's parts are each divided by
    their own weight. A loss whose statistics are taken over the step sees all of it before any gradient: what its
    statistic needs is scored first, without one. A step of one pack needs no second pass.

    Args:
        policy: the model in training, attached.
        reference: gives (S,) log-probs of a pack, or None.
        loss: the loss module.
        packs: the step's packs, on the model's device.
        backward: called with a scalar for each pack; what it adds to the gradients must be linear in it.
        autocast: wraps every forward pass, and no backward pass.
    """
    if len(packs) > 1 and loss.statistics != "none":
        # Scoring the mismatched completions alone gives log-probs, and nothing else of them.
        passes = _mismatched_first if loss.statistics == "mismatched" and not loss.extras else _all_first
        return passes(_Step(policy, reference, loss, packs, backward, autocast))
    weights = [_weights(loss, pack) for pack in packs]
    divisors = [sum(parts) for parts in zip(*weights, strict=True)]
    metrics, total, widest = MeanMetrics(), 0.0, 0.0
    for pack, expected in zip(packs, weights, strict=True):
        with autocast():
            seqs = sequences([pack], [score_pack(policy, reference, pack, loss.extras)])
        output = loss(seqs)
        if not np.allclose(_divisors(output), expected, rtol=1e-5):
            raise RecipeError(
                f"the weights of the loss {loss.name} depend on log-probs, and the divisor of a step must be known "
                "before them: let `LossOutput.weight` depend on lengths, labels and scores alone."
            )
        value = _value(output, divisors)
        backward(value)
        total += float(value.detach())
        seqs = detached(seqs)
        metrics.update(preference_metrics(seqs, output))
        widest = max(widest, _widest_log_ratio(seqs))
        if loss.statistics != "none":
            loss.end_step(seqs)
    return StepResult(total, sum(pack.num_examples for pack in packs), metrics, widest)


@torch.no_grad()
def evaluate_step(
    policy: PackedModel, reference: Reference, loss: Loss, packs: Sequence[Pack]
) -> tuple[LossOutput, SequenceLogprobs]:
    """Return the loss and the log-probs of every example in `packs`, without gradient, as one batch."""
    seqs = sequences(packs, [score_pack(policy, reference, pack, loss.extras) for pack in packs])
    return loss(seqs), seqs


def _all_first(step: _Step) -> StepResult:
    """Score every completion, which gives d loss / d log-prob, and carry that back through the model pack by pack."""
    with torch.no_grad(), step.autocast():
        scored = [score_pack(step.policy, step.reference, pack, step.loss.extras) for pack in step.packs]
    leaves = [s.leaves() for s in scored]
    seqs = sequences(step.packs, leaves)
    output = step.loss(seqs)
    sources = [source for s in leaves for source in s.sources]
    upstream = iter(torch.autograd.grad(_value(output), sources, allow_unused=True))
    for pack, own in zip(step.packs, leaves, strict=True):
        gradients = [next(upstream) for _ in own.sources]
        if any(gradient is not None and bool(gradient.any()) for gradient in gradients):
            with step.autocast():
                again = score_sources(step.policy, step.reference, pack, step.loss.extras)
            pairs = zip(again, gradients, strict=True)
            step.backward(torch.stack([(x * g).double().sum() for x, g in pairs if g is not None]).sum())
    return _result(step.loss, output, detached(seqs))


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
    whole = sequences(step.packs, values)
    divisors = _divisors(step.loss(whole))
    for index, pack in enumerate(step.packs):
        if (own := pack.labelled.unique()).numel():
            with step.autocast():
                logprobs = step.policy.logprobs(only(pack, own))
            frozen = values[index].reference
            step.backward(_value(step.loss(_beside_mismatched(pack, own, logprobs, frozen, whole)), divisors))
            found = values[index].policy.to(logprobs.dtype).index_copy(0, own, logprobs.detach())
            values[index] = Scored(found, frozen)
    seqs = sequences(step.packs, values)
    return _result(step.loss, step.loss(seqs), seqs)


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
def _result(loss: Loss, output: LossOutput, seqs: SequenceLogprobs) -> StepResult:
    """Return what a step came to from the log-probs of all its completions and their loss."""
    examples = seqs.pair.shape[0] + seqs.labelled.numel() + seqs.list_index.unique().numel()
    metrics, widest = preference_metrics(seqs, output), _widest_log_ratio(seqs)
    loss.end_step(seqs)
    return StepResult(float(_value(output)), examples, metrics, widest)


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
