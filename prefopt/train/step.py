"""One optimizer step as a function of its packs: log-probs, loss, gradients. No optimizer, no loop, no device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.losses import Loss
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.records import LossOutput, Pack, SequenceLogprobs
from prefopt.train.metrics import MeanMetrics, preference_metrics


@dataclass(frozen=True)
class StepResult:
    """What a step came to."""

    loss: float
    """sum(loss) / sum(weight) over every example of the step."""
    examples: float
    """sum(weight)."""
    metrics: MeanMetrics
    first_log_ratio: float
    """max |policy - reference| over the step's completions, nats; 0 without a reference."""


@dataclass(frozen=True)
class Scored:
    """Log-probs of one pack's completions, (S,) each."""

    policy: Tensor
    reference: Tensor | None


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

    The step's loss is sum(loss) / sum(weight) over all packs, whatever they are. A loss whose statistics are taken
    over the step sees all its completions at once: a first pass without gradient gives d loss / d log-prob, a second
    one carries it back through the model. A step of one pack needs no second pass.

    Args:
        policy: the model in training, attached.
        reference: gives (S,) log-probs of a pack, or None.
        loss: the loss module.
        packs: the step's packs, on the model's device.
        backward: called with a scalar for each pack; what it adds to the gradients must be linear in it.
        autocast: wraps every forward pass, and no backward pass.
    """
    if loss.statistics == "step" and len(packs) > 1:
        return _two_passes(policy, reference, loss, packs, backward, autocast)
    weight = sum(_weight(loss, pack) for pack in packs)
    metrics, total, widest = MeanMetrics(), 0.0, 0.0
    for pack in packs:
        with autocast():
            frozen = reference.logprobs(pack)
            seqs = sequences([pack], [Scored(policy.logprobs(pack), frozen)])
        output = loss(seqs)
        backward(output.loss.sum() / weight)
        total += float(output.loss.detach().double().sum())
        seqs = _detached(seqs)
        metrics.update(preference_metrics(seqs, output))
        widest = max(widest, _widest_log_ratio(seqs))
    return StepResult(total / weight, weight, metrics, widest)


@torch.no_grad()
def evaluate_step(
    policy: PackedModel, reference: Reference, loss: Loss, packs: Sequence[Pack]
) -> tuple[LossOutput, SequenceLogprobs]:
    """Return the loss and the log-probs of every example in `packs`, without gradient, as one batch."""
    scored = [Scored(policy.logprobs(pack), reference.logprobs(pack)) for pack in packs]
    seqs = sequences(packs, scored)
    return loss(seqs), seqs


def sequences(packs: Sequence[Pack], scored: Sequence[Scored]) -> SequenceLogprobs:
    """Join the packs of a step to one record, completions numbered through."""
    offsets = torch.tensor([0, *(pack.num_sequences for pack in packs)]).cumsum(0).tolist()
    shifted = list(zip(packs, offsets[:-1], strict=True))
    references = [s.reference for s in scored if s.reference is not None]
    return SequenceLogprobs(
        policy=torch.cat([s.policy for s in scored]),
        reference=torch.cat(references) if references else None,
        length=torch.cat([pack.length for pack in packs]),
        pair=torch.cat([pack.pair + offset for pack, offset in shifted]),
        labelled=torch.cat([pack.labelled + offset for pack, offset in shifted]),
        label=torch.cat([pack.label for pack in packs]),
        mismatched=torch.cat([pack.mismatched + offset for pack, offset in shifted]),
    )


def _two_passes(
    policy: PackedModel,
    reference: Reference,
    loss: Loss,
    packs: Sequence[Pack],
    backward: Callable[[Tensor], object],
    autocast: Callable[[], AbstractContextManager[object]],
) -> StepResult:
    with torch.no_grad(), autocast():
        scored = [Scored(policy.logprobs(pack), reference.logprobs(pack)) for pack in packs]
    leaves = [Scored(s.policy.detach().requires_grad_(), s.reference) for s in scored]
    seqs = sequences(packs, leaves)
    output = loss(seqs)
    weight = float(output.weight.sum())
    mean = output.loss.sum() / weight
    upstream = torch.autograd.grad(mean, [s.policy for s in leaves], allow_unused=True)
    for pack, gradient in zip(packs, upstream, strict=True):
        # A pack whose completions all have gradient zero (mismatched ones only) needs no pass of its own.
        if gradient is not None and bool(gradient.any()):
            with autocast():
                logprobs = policy.logprobs(pack)
            backward((logprobs * gradient).sum())
    seqs = _detached(seqs)
    return StepResult(float(mean.detach()), weight, preference_metrics(seqs, output), _widest_log_ratio(seqs))


def _weight(loss: Loss, pack: Pack) -> float:
    """Return sum(weight) of a pack before its forward pass: weights depend on lengths and labels alone."""
    zeros = torch.zeros(pack.num_sequences, device=pack.length.device)
    with torch.no_grad():
        return float(loss(sequences([pack], [Scored(zeros, zeros)])).weight.sum())


def _detached(seqs: SequenceLogprobs) -> SequenceLogprobs:
    return SequenceLogprobs(**{**vars(seqs), "policy": seqs.policy.detach()})


def _widest_log_ratio(seqs: SequenceLogprobs) -> float:
    if seqs.reference is None or not seqs.policy.numel():
        return 0.0
    return float((seqs.policy - seqs.reference).abs().max())
