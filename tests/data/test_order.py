"""Prompts that stand in one step, mixtures by weight, and what that saves."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import Example, PreferenceData, StepLoader, StepPlan, Weighted
from prefopt.data.mixing import shares, turn
from prefopt.errors import DataError


def sharing(count, prompts, *, form="paired"):
    """Examples of `prompts` prompts in turn, each prompt ten tokens long."""
    rows = [Example((1,) * 9 + (i % prompts,), ((2, i), (3, i)), source=f"f:{i}") for i in range(count)]
    return PreferenceData("paired", rows).for_loss(form)


def steps_of(plan, epoch=0):
    return [plan.examples(epoch, index) for index in range(plan.steps_per_epoch)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 9), st.integers(0, 5), st.booleans())
def test_every_example_comes_once_an_epoch_in_full_steps_with_prompts_together_or_not(count, prompts, per, seed, on):
    plan = StepPlan(sharing(count, prompts), examples_per_step=per, seed=seed, group_prompts=on)
    for epoch in range(2):
        steps = steps_of(plan, epoch)
        assert sorted(i for step in steps for i in step) == list(range(count))
        assert all(len(step) == per for step in steps[:-1])


def test_examples_of_a_prompt_stand_in_one_step():
    plan = StepPlan(sharing(240, 80), examples_per_step=16, seed=0)
    where = Counter((index, i % 80) for index, step in enumerate(steps_of(plan)) for i in step)
    whole = sum(times == 3 for times in where.values())
    assert whole >= 70, "five threes fit into each of 15 steps, and what is left of them takes pieces of the others"
    apart = StepPlan(sharing(240, 80), examples_per_step=16, seed=0, group_prompts=False)
    assert (
        sum(t > 1 for t in Counter((n, i % 80) for n, step in enumerate(steps_of(apart)) for i in step).values()) < 30
    )


def test_no_prompt_has_a_step_for_itself_however_many_examples_it_has():
    plan = StepPlan(sharing(256, 8), examples_per_step=16, seed=0)
    held = [Counter(i % 8 for i in step) for step in steps_of(plan)]
    assert all(len(step) >= 2 for step in held)
    assert sum(map(len, held)) / len(held) > 3
    # Pieces of four: a step has four of a prompt, or eight where two pieces of it came together.
    assert {times % 4 for step in held for times in step.values()} == {0}


def test_a_prompt_with_many_examples_is_no_more_likely_to_come_early():
    rows = [Example((1,), ((2, i), (3, i))) for i in range(4)] + [Example((i,), ((2,), (3,))) for i in range(5, 65)]
    data = PreferenceData("paired", rows)
    first = [StepPlan(data, examples_per_step=16, seed=seed).examples(0, 0) for seed in range(1000)]
    early = sum({0, 1, 2, 3} <= set(step) for step in first)
    # It stands in the first step if it is among the first 13 of 61 prompts, or later where room is left for it. By the
    # earliest of its four examples it would be there in two of three.
    assert abs(early / 1000 - 13 / 61) < 0.06


def test_the_grouped_order_is_the_one_that_earlier_versions_drew():
    plan = StepPlan(sharing(12, 7), examples_per_step=4, seed=0)
    rows = PreferenceData(
        "unpaired",
        [Example((1, i % 7), ((2, i % 5, i % 11),), label=i % 3 == 0, source=f"f:{i}") for i in range(12)],
    )
    plan = StepPlan(rows, examples_per_step=8, seed=0)
    # Written down once: a change here breaks the resumption of every run that was started before it.
    assert steps_of(plan) == [[2, 9, 6, 1, 8, 5, 0, 7], [11, 4, 10, 3]]
    assert steps_of(plan, 1) == [[5, 11, 4, 6, 0, 7, 1, 8], [9, 2, 10, 3]]


@pytest.mark.parametrize("mismatched", [False, True])
@pytest.mark.parametrize("form", ["paired", "unpaired"])
def test_the_saving_is_what_packs_compute(form, mismatched):
    options = {"examples_per_step": 8, "seed": 3, "mismatched": mismatched}
    found = []
    for on in (True, False):
        plan = StepPlan(sharing(120, 40, form=form), group_prompts=on, **options)
        loader = StepLoader(plan, token_budget=10_000, shared=True)
        found.append(sum(pack.tokens.numel() for item in loader for pack in item["micro"]))
    saving = StepPlan(sharing(120, 40, form=form), **options).saving()
    assert [saving.computed, saving.apart] == found
    assert saving.computed < 0.9 * saving.apart
    assert f"{1 - found[0] / found[1]:.1%}" in str(saving)
    assert StepPlan(sharing(40, 40), examples_per_step=8, seed=3).saving() is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0.05, 20)), min_size=1, max_size=5))
def test_shares_follow_the_weights_and_show_every_example(sources):
    sizes, weights = zip(*sources, strict=True)
    drawn = shares(sizes, weights)
    assert all(n >= size for n, size in zip(drawn, sizes, strict=True))
    assert any(n == size for n, size in zip(drawn, sizes, strict=True))
    exact = np.array(weights) / sum(weights)
    assert np.abs(np.array(drawn) - exact * sum(drawn)).max() <= len(sizes)


def mixed(few, many):
    rows = [Example((1, i), ((2,), (3,)), source=f"a.jsonl:{i}") for i in range(few)]
    rows += [Example((4, i), ((2,), (3,)), source=f"b.jsonl:{i}") for i in range(many)]
    return PreferenceData("paired", rows)


WEIGHTS = (Weighted(("a.jsonl",), 0.6), Weighted(("b.jsonl",), 0.4))


def test_an_epoch_of_a_mixture_repeats_the_source_that_its_weight_asks_more_of():
    plan = StepPlan(mixed(10, 40), examples_per_step=16, seed=0, weights=WEIGHTS)
    assert [(share.examples, share.drawn) for share in plan.shares] == [(10, 60), (40, 40)]
    times = Counter(i for step in steps_of(plan) for i in step)
    assert [times[i] for i in range(50)] == [6] * 10 + [1] * 40
    uneven = StepPlan(mixed(10, 30), examples_per_step=16, seed=0, weights=WEIGHTS)
    for epoch in range(2):
        times = Counter(i for step in steps_of(uneven, epoch) for i in step)
        assert sorted(times[i] for i in range(10)) == [4] * 5 + [5] * 5
    extra = [
        {i for i, n in Counter(i for step in steps_of(uneven, e) for i in step).items() if n == 5} for e in range(4)
    ]
    assert len(set(map(frozenset, extra))) > 1, "what comes once more is drawn anew every epoch"


def test_a_mixture_changes_the_identity_of_the_order():
    plain, weighed, apart = (
        StepPlan(mixed(10, 40), examples_per_step=16, seed=0, **options)
        for options in ({}, {"weights": WEIGHTS}, {"group_prompts": False})
    )
    assert len({str(plan.identity()) for plan in (plain, weighed, apart)}) == 3
    place = StepLoader(plain, token_budget=100, shared=True).state_dict()
    for other, word in ((weighed, "weights"), (apart, "group_prompts")):
        with pytest.raises(DataError, match=f"its {word} was"):
            StepLoader(other, token_budget=100, shared=True).load_state_dict(place)


def test_weights_that_do_not_name_the_sources_are_refused():
    with pytest.raises(DataError, match=r"from b\.jsonl:0 belongs to no weighted source"):
        StepPlan(mixed(2, 2), examples_per_step=2, seed=0, weights=WEIGHTS[:1])
    with pytest.raises(DataError, match=r"b\.jsonl has no example that this loss can use"):
        StepPlan(mixed(2, 0), examples_per_step=2, seed=0, weights=WEIGHTS)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=4), st.integers(1, 300))
def test_turns_of_a_stream_are_never_a_row_per_source_off_their_weights(weights, rows):
    drawn = [0] * len(weights)
    for _ in range(rows):
        drawn[turn(weights, drawn)] += 1
    exact = np.array(weights) / sum(weights) * rows
    assert np.abs(np.array(drawn) - exact).max() <= len(weights)
