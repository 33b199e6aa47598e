"""Steps, groups, mismatched completions and the loader's place: functions of data, seed and epoch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import Example, PreferenceData, StepLoader, StepPlan
from prefopt.errors import DataError
from tests.data.test_pack import scored

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)
pairs = st.builds(Example, tokens, st.tuples(tokens, tokens))


def labelled(count, *, prompts=7):
    return PreferenceData(
        "unpaired",
        [Example((1, i % prompts), ((2, i % 5, i % 11),), label=i % 3 == 0, source=f"f:{i}") for i in range(count)],
    )


def paired(count):
    return PreferenceData("paired", [Example((1, i % 9), ((2, i), (3, i)), source=f"f:{i}") for i in range(count)])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3), st.integers(-3, 2**40))
def test_the_steps_of_an_epoch_hold_every_example_once(count, per_step, epoch, seed):
    plan = StepPlan(paired(count), examples_per_step=per_step, seed=seed)
    steps = [plan.examples(epoch, index) for index in range(plan.steps_per_epoch)]
    assert sorted(i for step in steps for i in step) == list(range(count))
    assert all(len(step) == per_step for step in steps[:-1])
    assert 1 <= len(steps[-1]) <= per_step


def test_order_changes_with_seed_epoch_and_data_and_with_nothing_else():
    data = paired(200)

    def order(of, seed, epoch):
        return StepPlan(of, examples_per_step=200, seed=seed).examples(epoch, 0)

    first = order(data, 0, 0)
    assert first == order(paired(200), 0, 0)
    for other in (order(data, 1, 0), order(data, 0, 1), order(data.for_loss("unpaired"), 0, 0)):
        assert other != first
    plan = StepPlan(data, examples_per_step=16, seed=0)
    plan.examples(5, 2)  # looking elsewhere first changes nothing
    assert [i for index in range(plan.steps_per_epoch) for i in plan.examples(0, index)] == first


def test_order_and_mismatches_are_the_same_in_another_process():
    code = (
        "from tests.data.test_steps import labelled; from prefopt.data import StepPlan; import json;"
        "plan = StepPlan(labelled(50), examples_per_step=50, seed=3, mismatched=True);"
        "print(json.dumps([plan.examples(2, 0), plan.mismatches(2).tolist()]))"
    )
    plan = StepPlan(labelled(50), examples_per_step=50, seed=3, mismatched=True)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == [plan.examples(2, 0), plan.mismatches(2).tolist()]


def test_the_order_is_the_one_that_earlier_versions_drew():
    # Written down once: a change here breaks the resumption of every run that was started before it.
    plan = StepPlan(labelled(12), examples_per_step=12, seed=0, mismatched=True)
    assert plan.examples(0, 0) == [2, 6, 10, 1, 5, 0, 9, 8, 11, 7, 4, 3]
    assert plan.mismatches(0).tolist() == [3, 9, 6, 6, 7, 11, 4, 9, 9, 8, 5, 2]


def test_every_place_of_the_order_is_equally_likely():
    data = paired(8)
    counts = np.zeros((8, 8))
    for seed in range(2000):
        counts[np.arange(8), StepPlan(data, examples_per_step=8, seed=seed).examples(0, 0)] += 1
    chi_square = ((counts - 250) ** 2 / 250).sum()
    assert chi_square < 85.4  # 49 degrees of freedom, 99.9 %


@settings(max_examples=60, deadline=None)
@given(st.lists(pairs, min_size=1, max_size=25))
def test_groups_merge_equal_prompts_and_lose_or_repeat_nothing(example_list):
    data = PreferenceData("paired", example_list)
    plan = StepPlan(data, examples_per_step=10, seed=0)
    for index in range(plan.steps_per_epoch):
        groups = plan.groups(0, index)
        assert len({group.prompt for group in groups}) == len(groups)
        for group in groups:
            assert len(set(group.completions)) == len(group.completions)
        found = sorted((g.prompt, (g.completions[a], g.completions[b])) for g in groups for a, b in g.pairs)
        assert found == sorted((data[i].prompt, data[i].completions) for i in plan.examples(0, index))


def test_mismatched_completions_differ_in_prompt_and_in_completion():
    data = labelled(60)
    plan = StepPlan(data, examples_per_step=16, seed=0, mismatched=True)
    drawn = {epoch: plan.mismatches(epoch) for epoch in range(3)}
    for epoch, others in drawn.items():
        for i, j in enumerate(others):
            assert data[i].prompt != data[int(j)].prompt
            assert data[i].completions != data[int(j)].completions
        groups = [group for index in range(plan.steps_per_epoch) for group in plan.groups(epoch, index)]
        assert sum(len(group.mismatched) for group in groups) == 60
        taken = sorted((g.prompt, g.completions[m]) for g in groups for m in g.mismatched)
        assert taken == sorted((data[i].prompt, data[int(j)].completions[0]) for i, j in enumerate(others))
    assert (drawn[0] != drawn[1]).any()


def test_mismatches_are_uniform_over_those_allowed_even_where_they_are_few():
    # 60 of 64 examples share a prompt, so that redrawing alone would miss: their mismatches are the other four.
    rows = [Example((1,), ((2, i),), label=True) for i in range(60)]
    rows += [Example((5, i), ((6, i),), label=False) for i in range(4)]
    data = PreferenceData("unpaired", rows)
    counts = np.zeros(64)
    for epoch in range(50):
        counts += np.bincount(
            StepPlan(data, examples_per_step=8, seed=0, mismatched=True).mismatches(epoch)[:60], minlength=64
        )
    assert counts[:60].sum() == 0
    assert ((counts[60:] - 750) ** 2 / 750).sum() < 16.3  # 3 degrees of freedom, 99.9 %


def test_data_without_a_possible_mismatch_is_refused():
    one = PreferenceData("unpaired", [Example((1,), ((2, i),), label=True) for i in range(5)])
    with pytest.raises(DataError, match="only one distinct prompt"):
        one.for_loss("unpaired", needs_mismatched=True)
    with pytest.raises(DataError, match="only one distinct prompt"):
        StepPlan(one, examples_per_step=2, seed=0, mismatched=True)
    same = PreferenceData("unpaired", [Example((i,), ((2,),), label=True, source=f"f:{i}") for i in range(5)])
    with pytest.raises(DataError, match=r"very same completion for 5 of 5 examples \(the first is f:0\)"):
        same.for_loss("unpaired", needs_mismatched=True)


def test_pairs_become_two_labelled_examples_and_labels_never_become_pairs():
    data = paired(2).for_loss("unpaired")
    assert [(e.prompt, e.completions, e.label) for e in data] == [
        ((1, 0), ((2, 0),), True),
        ((1, 0), ((3, 0),), False),
        ((1, 1), ((2, 1),), True),
        ((1, 1), ((3, 1),), False),
    ]
    assert paired(2).for_loss("paired").fingerprint == paired(2).fingerprint
    with pytest.raises(DataError, match="compares completions of a prompt"):
        data.for_loss("paired")


def test_examples_come_back_as_they_were_given():
    rows = [Example((1, 2), ((3,), (4, 5)), source="f:1", meta={"score": 1}), Example((6,), ((7,), (8,)), source="f:2")]
    data = PreferenceData("paired", iter(rows))
    assert list(data.examples) == rows
    assert data.examples[-1] == rows[1]
    assert data.examples[0:1] == rows[:1]
    assert data.prompt_lengths.tolist() == [2, 1]
    assert data.completion_lengths.tolist() == [[1, 2], [1, 1]]


def test_the_fingerprint_follows_tokens_labels_boundaries_and_order_only():
    def of(*rows):
        return PreferenceData("unpaired", rows).fingerprint

    base = Example((1, 2), ((3,),), label=True)
    assert of(base) == of(Example((1, 2), ((3,),), label=True, source="elsewhere:9", meta={"a": 1}))
    others = [
        of(Example((1, 2), ((3,),), label=False)),
        of(Example((1,), ((2, 3),), label=True)),
        of(Example((1, 2), ((4,),), label=True)),
        of(base, base),
    ]
    assert len({of(base), *others}) == 5
    a, b = base, Example((9,), ((3,),), label=True)
    assert of(a, b) != of(b, a)


def stream(loader, epochs):
    """Everything that the loader hands out, token by token."""
    return [
        [(pack.tokens.tolist(), pack.score_at.tolist(), pack.pair.tolist()) for pack in item["micro"]]
        for _ in range(epochs)
        for item in loader
    ]


def loader_of(data=None, **options):
    plan = StepPlan(data or paired(23), examples_per_step=options.pop("per_step", 4), seed=options.pop("seed", 1))
    return StepLoader(plan, token_budget=20, shared=True)


def test_a_loader_hands_out_every_step_and_goes_on_to_the_next_epoch():
    loader = loader_of()
    assert len(loader) == 6
    first, second = stream(loader, 1), stream(loader, 1)
    assert len(first) == len(second) == 6
    assert first != second
    loader.set_epoch(0)
    assert stream(loader, 2) == first + second


@pytest.mark.parametrize("stop", range(13))
def test_a_resumed_loader_goes_on_to_the_token(stop):
    whole = stream(loader_of(), 2)
    loader = loader_of()
    taken = []
    while len(taken) < stop:
        for item in loader:
            taken.append(item)
            if len(taken) == stop:
                break
    state = json.loads(json.dumps(loader.state_dict()))
    resumed = loader_of()
    resumed.load_state_dict(state)
    resumed.set_epoch(state["epoch"])  # as a trainer does, after it restored its state
    rest = stream(resumed, 2 - state["epoch"]) if state["epoch"] < 2 else []
    assert rest == whole[stop:]


def test_a_loaded_place_needs_no_more_than_epoch_and_step():
    whole = stream(loader_of(), 2)
    resumed = loader_of()
    resumed.load_state_dict({"epoch": 0, "step": 6})
    assert stream(resumed, 1) == whole[6:]
    resumed.set_epoch(1)  # nothing is loaded any more: this is the start of the epoch
    assert stream(resumed, 1) == whole[6:]


def test_a_place_in_other_data_or_steps_is_refused():
    state = loader_of().state_dict()
    for other, word in (
        (loader_of(paired(24)), "data"),
        (loader_of(seed=2), "seed"),
        (loader_of(per_step=5), "examples_per_step"),
    ):
        with pytest.raises(DataError, match=f"its {word} was"):
            other.load_state_dict(state)
    with pytest.raises(DataError, match="step 7 of epoch 0; an epoch has 6 steps"):
        loader_of().load_state_dict({"epoch": 0, "step": 7})


def test_a_step_holds_the_same_sequences_for_every_budget_and_form():
    plan = StepPlan(paired(23), examples_per_step=10, seed=0)
    found = []
    for budget, shared in ((8, True), (1000, True), (30, False)):
        packs = StepLoader(plan, token_budget=budget, shared=shared).packs(0, 1)
        found.append(sorted({text for pack in packs for text in scored(pack)}))
        assert sum(pack.num_examples for pack in packs) == 10
        assert all(pack.tokens.dtype == torch.int64 for pack in packs)
    assert found[0] == found[1] == found[2]
