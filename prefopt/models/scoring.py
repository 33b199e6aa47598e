"""Sequence log-probs of completions, by packs of shared prompts: what evaluations, samples and scores stand on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.data import Example, assemble, plan_packs
from prefopt.data.pack import Part
from prefopt.errors import ModelError
from prefopt.kernels import reduce_segments, token_divergences, token_statistics
from prefopt.models.modes import evaluating
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.records import Group, Pack

Floats = NDArray[np.float64]

DEFAULT_BUDGET = 8192
"""Tokens computed at once where nobody says how many."""
CPU_BUDGET = 2048
"""The same on a CPU, whose caches hold the activations of so many: a twentieth faster."""
_SHARE = 512
"""Tokens of a group (twice its prompt, if that is more) up to which completions share one prompt's computation: more
would save little of the prompt and let the attention inside a group grow."""
_LEARNED = (32 << 20) - (1 << 13)
"""Bytes of the largest block that glibc learns from as it is freed (32 MiB with what it puts in front)."""


def fitting_budget(token_budget: int | None, policy: PackedModel, groups: Sequence[Group]) -> int:
    """Return the budget, or for None what suits the device: at least the longest group, which then isn't split."""
    if token_budget is not None:
        return token_budget
    suits = CPU_BUDGET if policy.head_weight.device.type == "cpu" else DEFAULT_BUDGET
    return max(suits, min(DEFAULT_BUDGET, max((group.tokens for group in groups), default=0)))


def example_packs(examples: Sequence[Example], policy: PackedModel, token_budget: int | None) -> Iterator[Pack]:
    """Yield the packs that `example_logprobs` scores, in its order."""
    groups, _ = _distinct(examples, shared=policy.admission.shared, token_budget=token_budget)
    for _, pack in _packs(groups, policy, token_budget):
        yield pack


@torch.no_grad()
def example_logprobs(
    examples: Sequence[Example], policy: PackedModel, reference: Reference | None, token_budget: int | None
) -> tuple[Floats, Floats | None]:
    """Return log-probs of all completions of all examples, in order, (completions,) nats: policy's and reference's.

    The token budget, here and below, is what is computed at once; None takes what suits the device.

    Raises:
        ModelError: a log-prob is not finite.
    """
    shared = policy.admission.shared
    groups, place = _distinct(examples, shared=shared, token_budget=token_budget)
    first = np.cumsum([0, *(len(group.completions) for group in groups)])
    found = np.full(int(first[-1]), np.nan)
    frozen = np.full(int(first[-1]), np.nan) if reference is not None else None
    with ExitStack() as stack:
        stack.enter_context(evaluating(policy.model))
        stack.enter_context(policy.attached())
        if reference is not None:
            stack.enter_context(reference.attached())
        for plan, pack in _packs(groups, policy, token_budget):
            at = np.concatenate([first[part.index] + np.array(part.completions) for part in plan])
            found[at] = policy.logprobs(pack).double().cpu().numpy()
            if reference is not None and frozen is not None:
                compared = reference.logprobs(pack)
                if compared is None:
                    frozen = None
                else:
                    frozen[at] = compared.double().cpu().numpy()
    for values in (found, frozen):
        if values is not None and not np.isfinite(values).all():
            raise ModelError(
                f"{int((~np.isfinite(values)).sum())} of {values.size} completions have no finite log-prob: "
                "the model's weights or its precision are broken; try model.dtype=float32."
            )
    return found[place], None if frozen is None else frozen[place]


@torch.no_grad()
def token_log_ratios(
    examples: Sequence[Example], policy: PackedModel, reference: Reference, token_budget: int | None
) -> list[Floats] | None:
    """Return log pi - log pi_ref at every token of all completions of all examples, in order: (tokens,) nats each.

    None where the reference has no log-probs.
    """
    groups, place = _distinct(examples, shared=policy.admission.shared, token_budget=token_budget)
    first = np.cumsum([0, *(len(group.completions) for group in groups)])
    found: dict[int, Floats] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(policy.model))
        stack.enter_context(policy.attached())
        stack.enter_context(reference.attached())
        for plan, pack in _packs(groups, policy, token_budget):
            at = np.concatenate([first[part.index] + np.array(part.completions) for part in plan])
            compared = reference.logprobs(pack, "none")
            if compared is None:
                return None
            ratio = policy.logprobs(pack, "none").double() - compared.double()
            parts = np.split(ratio.cpu().numpy(), np.cumsum(pack.length.cpu().numpy())[:-1])
            found.update(zip(at.tolist(), parts, strict=True))
    return [found[index] for index in place.tolist()]


def _packs(
    groups: Sequence[Group], policy: PackedModel, token_budget: int | None
) -> Iterator[tuple[tuple[Part, ...], Pack]]:
    """Yield every pack, on the policy's device, and the plan that it was made by."""
    shared = policy.admission.shared
    budget = fitting_budget(token_budget, policy, groups)
    _keep_freed_pages()
    plans = plan_packs(
        groups,
        token_budget=budget,
        shared=shared,
        one_row=policy.admission.one_row,
        by_prompt=True,
        ends=policy.reads_last,
    )
    for plan in plans:
        yield plan, assemble([part.group for part in plan], shared=shared).to(policy.head_weight.device)


def _keep_freed_pages() -> None:
    """Let the process keep up to 64 MiB that it freed, where its memory comes from glibc; elsewhere nothing changes.

    glibc gives back to the system what is free above twice the largest block that it has seen freed. The blocks of
    small packs are small, so every layer's memory would go back and be mapped anew, page by page, for the next one. One
    freed block of the largest size that counts ends that; its pages are never touched.
    """
    torch.empty(_LEARNED, dtype=torch.uint8)


def _distinct(
    examples: Sequence[Example], *, shared: bool, token_budget: int | None
) -> tuple[list[Group], np.ndarray[Any, np.dtype[np.int64]]]:
    """Return groups in which every distinct completion of every distinct prompt stands once, and where to find it.

    The second is (completions of all examples,): the place of each among the groups' completions laid end to end.
    """
    prompts: dict[tuple[int, ...], dict[tuple[int, ...], int]] = {}
    wanted: list[tuple[tuple[int, ...], int]] = []
    for example in examples:
        known = prompts.setdefault(example.prompt, {})
        wanted += [(example.prompt, known.setdefault(c, len(known))) for c in example.completions]
    groups: list[Group] = []
    start: dict[tuple[int, ...], int] = {}
    total = 0
    for prompt, known in prompts.items():
        start[prompt] = total
        total += len(known)
        limit = min(token_budget or DEFAULT_BUDGET, max(_SHARE, 2 * len(prompt))) if shared else 0
        groups += [Group(prompt, part) for part in _cut(len(prompt), list(known), limit)]
    return groups, np.array([start[prompt] + index for prompt, index in wanted], dtype=np.int64)


def _cut(prompt: int, completions: list[tuple[int, ...]], limit: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield runs of completions that fit in `limit` tokens behind a prompt of `prompt` tokens; at least one each."""
    held: list[tuple[int, ...]] = []
    size = prompt
    for completion in completions:
        if held and size + len(completion) > limit:
            yield tuple(held)
            held, size = [], prompt
        held.append(completion)
        size += len(completion)
    yield tuple(held)


@torch.no_grad()
def example_divergences(
    examples: Sequence[Example], policy: PackedModel, reference: Reference, token_budget: int | None
) -> tuple[Floats, Floats, Floats]:
    """Return of all completions of all examples, in order, what the policy is at them and how far from its reference.

    One pass of each model over a pack gives all three, and no tokens x vocabulary tensor is made:

    - (completions,) nats, the sum over its tokens of the exact KL(policy || reference) of the next token;
    - (completions,) nats, log policy(completion);
    - (completions,) nats, log reference(completion).

    Raises:
        ModelError: the reference has log-probs but no distributions, or a number is not finite.
    """
    groups, place = _distinct(examples, shared=policy.admission.shared, token_budget=token_budget)
    first = np.cumsum([0, *(len(group.completions) for group in groups)])
    found = np.full((3, int(first[-1])), np.nan)
    with ExitStack() as stack:
        stack.enter_context(evaluating(policy.model))
        stack.enter_context(policy.attached())
        stack.enter_context(reference.attached())
        for plan, pack in _packs(groups, policy, token_budget):
            at = np.concatenate([first[part.index] + np.array(part.completions) for part in plan])
            own = policy.states(pack)
            other = reference.states(pack).to(own.hidden.device, own.hidden.dtype)
            tokens = token_divergences(
                own.hidden, other.hidden, own.head, "policy_reference", reference_head=other.head
            )
            sums = (
                reduce_segments(tokens, pack.segment, pack.num_sequences),
                *(states.logprobs(pack.target, pack.segment, pack.num_sequences) for states in (own, other)),
            )
            for row, values in zip(found, sums, strict=True):
                row[at] = values.double().cpu().numpy()
    if not np.isfinite(found).all():
        raise ModelError(
            f"{int((~np.isfinite(found)).any(axis=0).sum())} of {found.shape[1]} completions have no finite divergence "
            "or log-prob: the model's weights or its precision are broken; try model.dtype=float32."
        )
    kl, log_policy, log_reference = found[:, place]
    return kl, log_policy, log_reference


@torch.no_grad()
def example_entropies(examples: Sequence[Example], policy: PackedModel, token_budget: int | None) -> Floats:
    """Return of all completions of all examples, in order, the mean entropy of the next token, (completions,) nats."""
    groups, place = _distinct(examples, shared=policy.admission.shared, token_budget=token_budget)
    first = np.cumsum([0, *(len(group.completions) for group in groups)])
    found = np.full(int(first[-1]), np.nan)
    with evaluating(policy.model), policy.attached():
        for plan, pack in _packs(groups, policy, token_budget):
            at = np.concatenate([first[part.index] + np.array(part.completions) for part in plan])
            states = policy.states(pack)
            head = states.head
            tokens = token_statistics(
                states.hidden, head.weight, pack.target, bias=head.bias, softcap=head.softcap, logit_scale=head.scale
            ).entropy
            total = reduce_segments(tokens, pack.segment, pack.num_sequences)
            found[at] = (total.double() / pack.length).cpu().numpy()
    return found[place]
