"""The passes of one pack through an imagined model: what they keep and compute, and how that grows with layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from prefopt.kernels import footprint
from prefopt.models.plan.imagined import ImaginedModel
from prefopt.models.plan.tracing import Trace
from prefopt.models.references import Reference
from prefopt.records import Group, Pack

Work = Mapping[tuple[float, float], float]
"""(flops, bytes) of an operator -> how often."""


@dataclass(frozen=True)
class Passes:
    """Bytes of one pack's passes beside weights, gradients and optimizer, and their work."""

    reference: float = 0.0
    """At the peak of the reference's pass."""
    forward: float = 0.0
    """At the peak of the policy's forward pass."""
    kept: float = 0.0
    """Kept between forward and backward."""
    backward: float = 0.0
    """At the peak of the backward pass, gradients of every weight having been there before."""
    head: float = 0.0
    """Of this, what the head takes beside hidden states and results, at most."""
    work: Work = field(default_factory=dict)
    attention: float = 0.0
    """Flops of attention where `work` has none of them."""

    @property
    def peak(self) -> float:
        return max(self.reference, self.forward, self.backward)

    @property
    def flops(self) -> float:
        return self.attention + sum(flops * times for (flops, _), times in self.work.items())

    def plus(self, other: Passes, times: float) -> Passes:
        """Return the sum with `times` another, which may be negative."""
        numbers = {f.name: getattr(self, f.name) + times * getattr(other, f.name) for f in fields(self)
                   if f.name != "work"}  # fmt: skip
        work = Counter(dict(self.work))
        for key, count in other.work.items():
            work[key] += times * count  # type: ignore[assignment]
        return Passes(**numbers, work={key: count for key, count in work.items() if count})


@dataclass(frozen=True)
class PassOptions:
    """What of a run decides how its passes go."""

    extras: Collection[str] = ()
    """What the loss asks for beside sums of log-probs."""
    labelled_alone: bool = False
    """Mismatched completions are scored before, and go through no pass with a gradient."""
    autocast: torch.dtype | None = None


def trace_passes(
    model: ImaginedModel, reference: Reference | None, groups: Sequence[Group], options: PassOptions
) -> Passes:
    """Run one pack of `groups` through reference and policy, forward and backward, and count."""
    watch = _Inside(model.gpu)
    with model.running(), _cast(options), _gradients_there(model):
        pack = model.pack(groups)
        with Trace(watch) as first:
            frozen = None if reference is None else reference.logprobs(pack)
        before, model.attended = model.attended, 0.0
        with Trace(watch) as second:
            value = _scores(model, _differentiated(pack, groups, model, options), options.extras).sum()
            forward, kept = second.peak, second.live
            second.restart()
            value.backward()
        del frozen, value
        work: Counter[tuple[float, float]] = Counter(first.work)
        work.update(second.work)
        after, model.attended = model.attended, 0.0
    there = model.planned_bytes
    return Passes(
        reference=there + first.peak,
        forward=there + forward,
        kept=there + kept,
        backward=there + second.peak,
        head=watch.most,
        work=work,
        attention=before + after,
    )


def for_layers(kinds: Sequence[Any], trace: Callable[[Sequence[Any]], Passes]) -> Passes:
    """Return the passes of a model with layers of these kinds from those of models with two and three.

    The first layers are unlike the others (nothing before them may train), every further one of a kind adds the same.
    """
    if len(kinds) < 3:
        return trace(kinds)
    base, rest = [kinds[0], kinds[0]], Counter(kinds)
    rest[kinds[0]] -= 2
    two = trace(base)
    found = two
    for kind, count in rest.items():
        if count:
            found = found.plus(trace([*base, kind]).plus(two, -1), count)
    return replace(found, head=two.head)  # that does not add up


def _differentiated(pack: Pack, groups: Sequence[Group], model: ImaginedModel, options: PassOptions) -> Pack:
    """Return what of the pack goes through the pass with a gradient."""
    if not options.labelled_alone:
        return pack
    own = [
        Group(g.prompt, tuple(c for i, c in enumerate(g.completions) if i not in g.mismatched), labels=g.labels[:1])
        for g in groups
        if len(g.mismatched) < len(g.completions)
    ]
    return model.pack(own)


def _scores(model: ImaginedModel, pack: Pack, extras: Collection[str]) -> Tensor:
    """Return what gradients start from, computed as `train.scored.score_pack` does."""
    if not extras:
        return model.logprobs(pack)
    states = model.states(pack)
    token = states.logprobs(pack.target, pack.segment, pack.num_sequences, reduction="none")
    if "log_sum_p2" in extras:
        states.log_sum_p2(pack)
    return token


def _cast(options: PassOptions) -> Any:
    return nullcontext() if options.autocast is None else torch.autocast("cpu", options.autocast)


@contextmanager
def _gradients_there(model: ImaginedModel) -> Iterator[None]:
    """Give every weight that trains its gradient: what a backward pass adds to it then takes no more room."""
    own = [p for p in model.model.parameters() if p.requires_grad]
    for parameter in own:
        parameter.grad = model.tensor(parameter.data)
    try:
        yield
    finally:
        for parameter in own:
            parameter.grad = None


class _Inside:
    """What the operators of the fused log-prob take inside; remembers the most."""

    def __init__(self, gpu: bool) -> None:
        self._gpu = gpu
        self.most = 0

    def __call__(self, func: Any, args: tuple[Any, ...]) -> tuple[int, float]:
        space, _, name = func._schema.name.partition("::")
        if space != "prefopt" or name not in ("token_scores", "token_directions", "token_statistics", "head_gradients"):
            return 0, 0.0
        weights = [x for x in args[1:4] if isinstance(x, Tensor) and x.dim() == 2]
        hidden, weight = args[0], weights[-1]
        (n, h), v = hidden.shape, weight.shape[0]
        capped = next((x for x in args[-6:] if isinstance(x, float) and not math.isclose(x, 1.0)), None) is not None
        options = {"gpu": self._gpu, "capped": capped}
        if name == "head_gradients":
            inside = footprint.head_gradient(n, h, v, hidden.dtype, **options)
            flops = footprint.scoring_flops(n, h, v, gradient=False) * (1 + sum(args[-1][:2]))
        else:
            gradient = name == "token_directions"
            inside = footprint.scoring(n, h, v, hidden.dtype, gradient=gradient, **options)
            flops = footprint.scoring_flops(n, h, v, gradient=gradient)
        self.most = max(self.most, inside)
        return inside, flops
