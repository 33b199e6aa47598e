"""A step that runs out of memory is computed in smaller packs, and comes to what it comes to without that."""

import pytest
import torch

from prefopt.data import build_packs
from prefopt.data.halve import cost, cut, units
from prefopt.errors import RunError
from prefopt.losses import build
from prefopt.models.references import build_reference
from prefopt.records import Pack
from prefopt.train.ranks import Ranks
from prefopt.train.retry import PackLimit, is_out_of_memory
from prefopt.train.step import run_step
from tests.models.tiny import InFloat64
from tests.train.test_step import adapted, all_groups, draw_examples

CPU_ERROR = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1600000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_ERROR), MemoryError()]


def packed(loss, *, budget=70, shared=True, seed=3):
    form = loss.form if loss.form == "listwise" else "paired"
    data = draw_examples(seed, 8, form).for_loss(loss.form, needs_mismatched=loss.needs_mismatched)
    return build_packs(all_groups(data, loss), token_budget=budget if shared else 2 * budget, shared=shared)


@pytest.fixture(scope="module")
def policy():
    return adapted("llama")


def trained(policy, loss, packs, limit=None, *, fails=lambda moment, pack: None):
    """One step through a `PackLimit`; `fails` may raise at a ("forward" or "backward", packs so far)."""
    reference = build_reference("adapter_off", policy, needed=loss.needs_reference)
    policy.model.zero_grad()
    policy.model.train()
    own, counts = policy.logprobs, {"forward": 0, "backward": 0}

    def forward(pack, *args, **kwargs):
        found = own(pack, *args, **kwargs)
        if found.requires_grad:  # and not the reference, or a pass for a statistic
            counts["forward"] += 1
            fails("forward", counts["forward"])
        return found

    def backward(value):
        counts["backward"] += 1
        parameters = [p for p in policy.model.parameters() if p.requires_grad]
        # In the middle: the gradients of the last layers are there, those of the first are not.
        handle = parameters[len(parameters) // 2].register_hook(lambda _: fails("backward", counts["backward"]))
        try:
            value.backward()
        finally:
            handle.remove()

    policy.logprobs = forward
    try:
        with InFloat64(), policy.attached(), reference.attached():

            def step(packs):
                return run_step(policy, reference, loss, packs, backward=backward)

            result = (limit or PackLimit()).run(packs, step, policy.model.parameters())
    finally:
        del policy.logprobs
    gradients = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])
    return result, gradients, counts


MOMENTS = [("forward", 1), ("forward", 2), ("backward", 1), ("backward", 2)]
CASES = [
    *(("dpo", True, *moment, ERRORS[2]) for moment in MOMENTS),
    *(("dpo", True, "backward", 2, error) for error in ERRORS[:2]),
    *((name, True, "backward", 2, ERRORS[2]) for name in ("kto", "bco", "plackett_luce", "wpo(tdpo(beta=0.5))")),
    *((name, False, "backward", 1, ERRORS[2]) for name in ("dpo", "kto", "plackett_luce")),
]


@pytest.mark.parametrize(("name", "shared", "moment", "at", "error"), CASES)
def test_running_out_of_memory_changes_neither_loss_nor_gradients(policy, name, shared, moment, at, error, caplog):
    loss = build(name, beta=0.5) if name.isidentifier() else build(name)
    packs = packed(loss, shared=shared)
    assert len(packs) > 1
    expected, gradients, _ = trained(policy, loss, packs)
    failed = []

    def fails(when, number):
        if (when, number) == (moment, at) and not failed:
            failed.append(number)
            raise error

    limit = PackLimit()
    found, again, counts = trained(policy, loss, packs, limit, fails=fails)
    assert failed
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert found.examples == expected.examples
    assert found.metrics.means() == pytest.approx(expected.metrics.means(), rel=1e-9, abs=1e-9)
    assert gradients.norm() > 1e-6
    assert (again - gradients).norm() <= 1e-9 * gradients.norm()
    assert limit.tokens == max(map(cost, packs)) // 2
    assert counts["backward"] > len(packs)
    assert f"train.token_budget: {limit.tokens}" in caplog.text


def test_packs_are_halved_until_they_fit_and_later_steps_begin_with_that(policy, caplog):
    loss = build("dpo", beta=0.5)
    packs = packed(loss, budget=1000)
    [whole] = packs
    room = whole.tokens.numel() / 3.5
    expected, gradients, _ = trained(policy, loss, packs)
    limit, seen = PackLimit(), []

    def step(packs):
        seen.append(max(map(cost, packs)))
        if seen[-1] > room:
            raise MemoryError
        return trained(policy, loss, packs)

    (found, again, _), tries = limit.run(packs, step, policy.model.parameters()), len(seen)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert (again - gradients).norm() <= 1e-9 * gradients.norm()
    assert tries > 1
    assert len(caplog.records) == tries - 1
    limit.run(packs, step, policy.model.parameters())
    assert len(seen) == tries + 1


def test_gradients_from_before_the_step_stay_whatever_fails(policy):
    loss = build("dpo", beta=0.5)
    packs = packed(loss)
    _, gradients, _ = trained(policy, loss, packs)
    failed = []

    def step(packs):
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.grad += 1.0
        if not failed:
            failed.append(1)
            raise MemoryError

    PackLimit().run(packs, step, policy.model.parameters())
    again = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])
    assert torch.equal(again, gradients + 1.0)


def test_one_example_that_does_not_fit_is_a_sentence_with_its_lengths(policy):
    loss = build("dpo", beta=0.5)
    packs = packed(loss)

    def step(packs: list[Pack]) -> None:
        raise MemoryError  # until nothing is left to cut

    with pytest.raises(
        RunError, match=r"a single example .* completions of \d+, \d+ tokens, \d+ in one pack.*data.max_length"
    ):
        PackLimit().run(packs, step, policy.model.parameters())


@pytest.mark.parametrize("error", ERRORS)
def test_memory_that_runs_out_while_ranks_sum_gradients_is_a_sentence_and_no_second_try(monkeypatch, error):
    ranks, parameter = Ranks(0, 2), torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    monkeypatch.setattr(ranks, "gather", lambda value: [value, value])

    def all_reduce(tensor):
        raise error

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    with pytest.raises(RunError, match=r"Gradients could not be summed .* lower train\.token_budget"):
        PackLimit().run([], lambda packs: ranks.sum_gradients([parameter]), [parameter], ranks)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert all(is_out_of_memory(error) for error in ERRORS)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        PackLimit().run([], lambda packs: torch.ones(2, 3) @ torch.ones(2, 3), [])


def test_the_allocator_of_this_cpu_says_what_is_looked_for():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ["dpo", "kto", "plackett_luce"])
def test_the_parts_of_a_pack_hold_each_of_its_examples_once(name, shared):
    loss = build(name)
    [pack] = packed(loss, budget=10**6, shared=shared)
    parts = cut(pack, 40)
    assert len(parts) > 2
    assert sum(part.num_sequences for part in parts) == pack.num_sequences
    assert sum(part.num_examples for part in parts) == pack.num_examples
    assert sum(part.mismatched.numel() for part in parts) == pack.mismatched.numel()
    assert all(cost(part) <= 40 or len(units(part)) == 1 for part in parts)

    def texts(pack: Pack) -> list[object]:
        """What each example compares, in tokens."""
        of = [tuple(pack.target[pack.segment == c].tolist()) for c in range(pack.num_sequences)]
        lists = [[(of[c], round(float(s), 6)) for c, i, s in
                  zip(pack.listed.tolist(), pack.list_index.tolist(), pack.list_score, strict=True) if i == number]
                 for number in range(pack.num_lists)]  # fmt: skip
        pairs = [(of[a], of[b]) for a, b in pack.pair.tolist()]
        labels = [(of[c], bool(d)) for c, d in zip(pack.labelled.tolist(), pack.label, strict=True)]
        return sorted(map(repr, [*pairs, *labels, *lists, *(of[c] for c in pack.mismatched.tolist())]))

    assert sorted(text for part in parts for text in texts(part)) == texts(pack)
