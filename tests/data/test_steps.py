"""Steps, groups, mismatched completions and the loader's place: functions of data, seed and epoch."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import Example, PreferenceData, StepLoader, StepPlan
from prefopt.errors import DataError
from tests.data.test_pack import examples, known, scored

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)
pairs = st.builds(Example, tokens, st.tuples(tokens, tokens))
score = st.sampled_from([-1.5, 0.0, 0.25, 3.0])


@st.composite
def scored_pairs(draw):
    return replace(draw(pairs), scores=draw(st.just(()) | st.tuples(score, score)))


@st.composite
def lists(draw):
    completions = tuple(draw(st.lists(tokens, min_size=2, max_size=5)))
    scores = draw(st.lists(score, min_size=len(completions), max_size=len(completions)))
    return Example(draw(tokens), completions, scores=tuple(sorted(scores, reverse=True)))


def labelled(count, *, prompts=7):
    return PreferenceData(
        "unpaired",
        [Example((1, i % prompts), ((2, i % 5, i % 11),), label=i % 3 == 0, source=f"f:{i}") for i in range(count)],
    )


def paired(count):
    return PreferenceData("paired", [Example((1, i % 9), ((2, i), (3, i)), source=f"f:{i}") for i in range(count)])


def listed(count):
    """Lists of two to five completions; every ninth has a prompt in common, and every fourth prefers nothing."""
    return PreferenceData(
        "listwise",
        [
            Example(
                (1, i % 9),
                tuple((2, i, c) for c in range(2 + i % 4)),
                source=f"f:{i}",
                meta={"row": i},
                scores=tuple(float(-c if i % 4 else 1) for c in range(2 + i % 4)),
            )
            for i in range(count)
        ],
    )


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
        return StepPlan(of, examples_per_step=200, seed=seed, group_prompts=False).examples(epoch, 0)

    first = order(data, 0, 0)
    assert first == order(paired(200), 0, 0)
    for other in (order(data, 1, 0), order(data, 0, 1), order(data.for_loss("unpaired"), 0, 0)):
        assert other != first
    plan = StepPlan(data, examples_per_step=16, seed=0, group_prompts=False)
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
    plan = StepPlan(labelled(12), examples_per_step=12, seed=0, mismatched=True, group_prompts=False)
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


LAYOUTS = [{"shared": True}, {"shared": False}, {"shared": False, "one_row": True}]


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(["paired", "listwise"]), st.integers(1, 30), st.sampled_from(LAYOUTS))
def test_every_example_and_its_scores_arrive_once_whatever_the_budget(draw, form, budget, layout):
    each = lists() if form == "listwise" else scored_pairs()
    data = PreferenceData(form, draw.draw(st.lists(each, min_size=1, max_size=12)))
    plan = StepPlan(data, examples_per_step=5, seed=0)
    arrived = Counter()
    for item in StepLoader(plan, token_budget=budget, **layout):
        for pack in item["micro"]:
            arrived.update(examples(pack))
    wanted = Counter()
    for example in data:
        texts = [(example.prompt, completion) for completion in example.completions]
        if data.form == "listwise":
            wanted["list", *zip(texts, example.scores, strict=True)] += 1
        else:
            wanted["pair", *texts, known(example.scores or (float("nan"),))] += 1
    assert arrived == wanted


def test_lists_of_one_prompt_share_a_group_and_their_completions_are_held_once():
    first = Example((1,), ((2,), (3,), (2,)), scores=(3.0, 1.0, 1.0))
    second = Example((1,), ((4,), (3,)), scores=(0.5, 0.5))
    plan = StepPlan(PreferenceData("listwise", [first, second]), examples_per_step=2, seed=0)
    (group,) = plan.groups(0, 0)
    assert sorted(group.completions) == [(2,), (3,), (4,)]
    assert (group.pairs, group.labels, group.pair_scores) == ((), (), ())
    held = [[(group.completions[c], value) for c, value in entries] for entries in group.lists]
    assert [held[i] for i in np.argsort(plan.examples(0, 0))] == [
        [((2,), 3.0), ((3,), 1.0), ((2,), 1.0)],
        [((4,), 0.5), ((3,), 0.5)],
    ]


def test_scores_of_pairs_travel_in_a_group_where_any_pair_has_them():
    rows = [Example((1,), ((2,), (3,)), scores=(3.0, 1.0)), Example((1,), ((2,), (4,))), Example((5,), ((2,), (3,)))]
    groups = StepPlan(PreferenceData("paired", rows), examples_per_step=3, seed=0).groups(0, 0)
    mixed, bare = sorted(groups, key=lambda group: group.prompt)
    held = {mixed.completions[b]: known(s) for (_, b), s in zip(mixed.pairs, mixed.pair_scores, strict=True)}
    assert held == {(3,): (3.0, 1.0), (4,): None}
    assert bare.pair_scores == ()


@settings(max_examples=150, deadline=None)
@given(st.lists(lists(), min_size=1, max_size=6), st.integers(0, 3))
def test_mismatches_of_lists_are_those_that_a_search_finds(example_list, epoch):
    data = PreferenceData("listwise", example_list)
    able = [
        {j for j, b in enumerate(data) if a.prompt != b.prompt and b.completions[0] not in a.completions} for a in data
    ]
    if not all(able):
        with pytest.raises(DataError, match=r"only one distinct prompt|very same completion for \d of"):
            StepPlan(data, examples_per_step=2, seed=0, mismatched=True)
        return
    drawn = StepPlan(data, examples_per_step=2, seed=0, mismatched=True).mismatches(epoch).tolist()
    assert all(j in possible for j, possible in zip(drawn, able, strict=True))


def test_mismatched_completions_of_lists_of_unequal_length_are_the_best_of_others():
    data = listed(40)
    plan = StepPlan(data, examples_per_step=8, seed=0, mismatched=True)
    groups = [group for index in range(plan.steps_per_epoch) for group in plan.groups(0, index)]
    taken = sorted((g.prompt, g.completions[m]) for g in groups for m in g.mismatched)
    others = plan.mismatches(0)
    assert taken == sorted((data[i].prompt, data[int(j)].completions[0]) for i, j in enumerate(others))
    assert all(data[i].prompt != data[int(j)].prompt for i, j in enumerate(others))
    packs = StepLoader(plan, token_budget=60, shared=True).packs(0, 1)
    assert sum(pack.mismatched.numel() for pack in packs) == sum(pack.num_examples for pack in packs) == 8


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
