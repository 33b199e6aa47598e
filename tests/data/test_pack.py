"""Packs against a brute-force construction, token by token, and how full they are."""

import math
import random
from collections import Counter
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import Example, PreferenceData, assemble, build_packs, plan_packs
from prefopt.data.layout import only
from prefopt.data.pack import check_longest
from prefopt.errors import DataError
from prefopt.kernels.shapes import rounded
from prefopt.records import Group

tokens = st.lists(st.integers(0, 99), min_size=1, max_size=7).map(tuple)
score = st.floats(width=32, allow_nan=False, allow_infinity=False)
NAN = float("nan")


@st.composite
def groups(draw):
    completions = tuple(draw(st.lists(tokens, min_size=1, max_size=5, unique=True)))
    index = st.integers(0, len(completions) - 1)
    pairs = tuple(draw(st.lists(st.tuples(index, index), max_size=4)))
    labels = tuple(draw(st.lists(st.tuples(index, st.booleans()), max_size=3)))
    mismatched = tuple(draw(st.lists(index, max_size=2)))
    known = st.tuples(score, score) | st.just((NAN, NAN))
    pair_scores = tuple(draw(known) for _ in pairs) if draw(st.booleans()) else ()
    entries = st.lists(st.tuples(index, score), min_size=1, max_size=5).map(tuple)
    lists = tuple(draw(st.lists(entries, max_size=3)))
    return Group(draw(tokens), completions, pairs, labels, mismatched, pair_scores, lists)


def scored(pack):
    """What the pack scores, read back without its builder: for each sequence its context and its completion."""
    flat, position = pack.tokens.reshape(-1).tolist(), pack.position.reshape(-1).tolist()
    at, target = pack.score_at.tolist(), pack.target.tolist()
    segment, found = pack.segment.tolist(), []
    assert segment == sorted(segment)
    for s, length in enumerate(pack.length.tolist()):
        first = segment.index(s)
        own, completion = at[first : first + length], tuple(target[first : first + length])
        assert segment.count(s) == length
        # The first completion token is predicted by the prompt's last token, each other one by the one before it.
        size = position[own[0]] + 1
        assert [position[i] for i in own] == list(range(size - 1, size - 1 + length))
        assert tuple(flat[i] for i in own[1:]) == completion[:-1]
        found.append((tuple(flat[own[0] + 1 - size : own[0] + 1]), completion))
    return found


def examples(pack):
    """Every example that the pack holds, as texts of token ids."""
    texts = scored(pack)
    held = Counter()
    pairs = zip(pack.pair.tolist(), pack.pair_score.tolist(), strict=True)
    held.update(("pair", texts[a], texts[b], known(scores)) for (a, b), scores in pairs)
    lists = [[] for _ in range(pack.num_lists)]
    for c, number, value in zip(*(x.tolist() for x in (pack.listed, pack.list_index, pack.list_score)), strict=True):
        lists[number].append((texts[c], value))
    assert all(lists)
    assert pack.list_index.tolist() == sorted(pack.list_index.tolist())
    held.update(("list", *entries) for entries in lists)
    held.update(("label", texts[c], d) for c, d in zip(pack.labelled.tolist(), pack.label.tolist(), strict=True))
    held.update(("mismatched", texts[c], None) for c in pack.mismatched.tolist())
    return held


def known(scores):
    """A pair's scores as something that equals itself."""
    return None if any(map(math.isnan, scores)) else tuple(scores)


def expected(group_list):
    held = Counter()
    for g in group_list:
        texts = [(g.prompt, c) for c in g.completions]
        scores = g.pair_scores or [(NAN, NAN)] * len(g.pairs)
        held.update(("pair", texts[a], texts[b], known(s)) for (a, b), s in zip(g.pairs, scores, strict=True))
        held.update(("list", *((texts[c], value) for c, value in entries)) for entries in g.lists)
        held.update(("label", texts[c], d) for c, d in g.labels)
        held.update(("mismatched", texts[c], None) for c in g.mismatched)
    return held


def test_a_shared_pack_of_two_groups_is_laid_out_as_written_by_hand():
    pack = assemble(
        [Group((1, 2, 3), ((10, 11), (12,)), pairs=((0, 1),)), Group((4,), ((13, 14),), labels=((0, True),))],
        shared=True,
    )
    assert pack.tokens.tolist() == [[1, 2, 3, 10, 11, 12, 4, 13, 14]]
    assert pack.position.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2]]
    assert pack.score_at.tolist() == [2, 3, 2, 6, 7]
    assert pack.target.tolist() == [10, 11, 12, 13, 14]
    assert pack.segment.tolist() == [0, 0, 1, 2, 2]
    assert pack.length.tolist() == [2, 1, 2]
    assert pack.pair.tolist() == [[0, 1]]
    assert pack.labelled.tolist() == [2]
    assert pack.label.tolist() == [True]
    assert pack.mask is None
    assert [(g.start, g.prompt, g.completions) for g in pack.layout.groups] == [(0, 3, (2, 1)), (6, 1, (2,))]
    assert pack.layout.tokens == 9


def test_rows_of_two_groups_are_laid_out_as_written_by_hand():
    pack = assemble(
        [Group((1, 2), ((10, 11), (12,)), pairs=((1, 0),)), Group((4,), ((13,),), mismatched=(0,))], shared=False
    )
    assert pack.tokens.tolist() == [[1, 2, 10, 11], [1, 2, 12, 0], [4, 13, 0, 0]]
    assert pack.mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert pack.position.tolist() == [[0, 1, 2, 3]] * 3
    assert pack.score_at.tolist() == [1, 2, 5, 8]
    assert pack.target.tolist() == [10, 11, 12, 13]
    assert pack.segment.tolist() == [0, 0, 1, 2]
    assert pack.pair.tolist() == [[1, 0]]
    assert pack.mismatched.tolist() == [2]
    assert pack.label.dtype == torch.bool
    assert pack.layout is None


@settings(max_examples=80, deadline=None)
@given(st.lists(groups(), min_size=1, max_size=5), st.integers(1, 40), st.sampled_from(["shared", "rows", "one_row"]))
def test_every_example_is_scored_once_whatever_the_budget(group_list, budget, form):
    options = {"token_budget": budget, "shared": form == "shared", "one_row": form == "one_row"}
    packs = build_packs(group_list, **options)
    held = Counter()
    for plan, pack in zip(plan_packs(group_list, **options), packs, strict=True):
        held.update(examples(pack))
        if pack.tokens.numel() > budget or form == "one_row":  # only what can't be cut may be over it
            (part,) = plan
            whole = set(part.completions)
            assert len(whole) == 1 or whole in compared(group_list[part.index])
    assert held == expected(group_list)
    assert sum(pack.num_examples for pack in packs) == sum(
        len(g.pairs) + len(g.labels) + len(g.lists) for g in group_list
    )
    computed = {text for pack in packs for text in scored(pack)}
    assert computed == {(g.prompt, c) for g in group_list for c in g.completions}


def compared(group):
    """The sets of completions that an example compares with each other."""
    return [set(pair) for pair in group.pairs] + [{c for c, _ in entries} for entries in group.lists]


@settings(max_examples=80, deadline=None)
@given(groups(), st.integers(1, 40), st.sampled_from(["shared", "rows", "one_row"]))
def test_every_part_of_a_split_group_has_an_example_or_a_completion_that_no_other_part_has(group, budget, form):
    plans = plan_packs([group], token_budget=budget, shared=form == "shared", one_row=form == "one_row")
    parts = [part for plan in plans for part in plan]
    held = Counter(c for part in parts for c in part.completions)
    for part in parts:
        own = part.group
        assert own.pairs or own.labels or own.lists or any(held[c] == 1 for c in part.completions)


@settings(max_examples=60, deadline=None)
@given(st.lists(groups(), min_size=1, max_size=5), st.integers(30, 90), st.booleans())
def test_groups_that_fit_stay_whole_and_each_of_their_tokens_stands_once(group_list, budget, shared):
    plans = plan_packs(group_list, token_budget=budget, shared=shared)
    parts = sorted((part for plan in plans for part in plan), key=lambda part: part.index)
    for index, group in enumerate(group_list):
        cost = (
            group.tokens if shared else len(group.completions) * (len(group.prompt) + max(map(len, group.completions)))
        )
        if cost <= budget:
            (part,) = [part for part in parts if part.index == index]
            assert part.group == group
            assert part.completions == tuple(range(len(group.completions)))
    for plan, pack in zip(plans, build_packs(group_list, token_budget=budget, shared=shared), strict=True):
        where = [(part.index, c) for part in plan for c in part.completions]
        assert scored(pack) == [(group_list[i].prompt, group_list[i].completions[c]) for i, c in where]
        rows = [[*part.group.prompt, *c] for part in plan for c in part.group.completions]
        if shared:
            rows = [[t for part in plan for piece in (part.group.prompt, *part.group.completions) for t in piece]]
        width = max(map(len, rows))
        assert pack.tokens.tolist() == [row + [0] * (width - len(row)) for row in rows]


def test_a_group_longer_than_the_budget_is_split_over_its_pairs_with_its_prompt_repeated():
    group = Group((1,) * 4, ((2,) * 5, (3,) * 5, (4,) * 5, (5,) * 5, (6,) * 5), ((0, 1), (2, 3)), mismatched=(4,))
    packs = build_packs([group], token_budget=19, shared=True)
    assert [pack.tokens[0].tolist() for pack in packs] == [
        [1] * 4 + [2] * 5 + [3] * 5,
        [1] * 4 + [4] * 5 + [5] * 5 + [6] * 5,
    ]
    assert [pack.pair.tolist() for pack in packs] == [[[0, 1]], [[0, 1]]]
    assert [pack.mismatched.tolist() for pack in packs] == [[], [2]]


def test_lists_and_scores_are_laid_out_as_written_by_hand():
    listed = Group((1, 2), ((10,), (11, 12), (13,)), lists=(((2, 0.5), (0, 0.25)), ((1, 3.0), (1, 3.0), (2, -1.0))))
    pairs = Group((4,), ((14,), (15,)), pairs=((0, 1), (1, 0)), pair_scores=((8.5, 2.0), (NAN, NAN)))
    for shared in (True, False):
        pack = assemble([listed, pairs, listed], shared=shared)
        assert pack.listed.tolist() == [2, 0, 1, 1, 2, 7, 5, 6, 6, 7]
        assert pack.list_index.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
        assert pack.list_score.tolist() == [0.5, 0.25, 3.0, 3.0, -1.0] * 2
        assert pack.pair.tolist() == [[3, 4], [4, 3]]
        assert pack.pair_score[0].tolist() == [8.5, 2.0]
        assert pack.pair_score[1].isnan().all()
        assert (pack.num_lists, pack.num_examples) == (4, 6)
        assert pack.list_score.dtype == pack.pair_score.dtype == torch.float32
        assert assemble([pairs], shared=shared).num_lists == 0


def test_lists_longer_than_the_budget_stay_whole_and_count_once_where_they_overlap():
    completions = tuple((number,) * 5 for number in range(10, 16))
    first, second = ((0, 3.0), (1, 2.0), (2, 1.0)), ((2, 9.0), (3, 8.0), (4, 7.0))
    group = Group(
        (1,) * 4,
        completions,
        pairs=((0, 1), (2, 5)),
        labels=((2, True),),
        pair_scores=((3.0, 2.0), (NAN, NAN)),
        lists=(first, second, first),
    )
    packs = build_packs([group], token_budget=10, shared=True)
    assert [pack.length.numel() for pack in packs] == [3, 3, 2]
    assert [pack.list_score.tolist() for pack in packs] == [[3.0, 2.0, 1.0] * 2, [9.0, 8.0, 7.0], []]
    assert [pack.pair.tolist() for pack in packs] == [[[0, 1]], [], [[0, 1]]]
    assert [pack.labelled.tolist() for pack in packs] == [[2], [], []]
    assert packs[0].pair_score.tolist() == [[3.0, 2.0]]
    assert packs[2].pair_score.isnan().all()
    assert [pack.num_examples for pack in packs] == [4, 1, 1]  # each once, the list that stands twice twice
    (whole,) = build_packs([group], token_budget=1000, shared=True)
    assert examples(whole) == sum((examples(pack) for pack in packs), Counter())


def test_a_pair_longer_than_the_budget_stays_together_in_a_pack_of_its_own():
    long = Group((1,) * 4, ((2,) * 50, (3,) * 50), ((0, 1),))
    short = Group((7,), ((8,), (9,)), ((0, 1),))
    packs = build_packs([short, long, short], token_budget=20, shared=True)
    assert [pack.num_examples for pack in packs] == [2, 1]
    assert packs[1].tokens.numel() == 104


def test_one_row_keeps_every_labelled_completion_in_a_row_of_its_own():
    group = Group((1, 2), ((3,), (4, 5)), labels=((0, True), (1, False), (1, False)))
    packs = build_packs([group, group], token_budget=1000, shared=False, one_row=True)
    assert [pack.tokens.tolist() for pack in packs] == [[[1, 2, 3]], [[1, 2, 4, 5]]] * 2
    assert [pack.labelled.tolist() for pack in packs] == [[0], [0, 0]] * 2


def lengths(draw, count):
    """Groups with log-normal lengths: prompts about 90 tokens, two completions about 70."""

    def some(mu, sigma):
        return (1,) * max(1, int(draw.lognormvariate(mu, sigma)))

    return [Group(some(4.5, 0.6), (some(4.25, 0.7), (2, *some(4.25, 0.7))), ((0, 1),)) for _ in range(count)]


@pytest.mark.parametrize(("examples_per_step", "budget"), [(32, 2048), (64, 4096), (128, 4096), (128, 8192)])
def test_log_normal_lengths_fill_packs_to_within_a_tenth(examples_per_step, budget):
    draw = random.Random(0)
    packs = floor = 0
    for _ in range(30):
        step = lengths(draw, examples_per_step)
        packs += len(build_packs(step, token_budget=budget, shared=True))
        floor += -(-sum(group.tokens for group in step) // budget)
    assert packs <= 1.1 * floor


def like_ultrafeedback(draw, pairs):
    """Pairs with log-normal lengths: prompts of about 180 tokens, completions of about 300."""

    def some(mean, sigma, longest=1000):
        return (1,) * min(longest, max(1, int(draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))))

    return [Group(some(180, 0.9), (some(300, 0.7), (2, *some(300, 0.7))), ((0, 1),)) for _ in range(pairs)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("pairs", "budget"), [(16, 4096), (32, 4096), (64, 8192), (128, 16384)])
def test_no_step_takes_more_packs_than_its_tokens_need_and_little_is_padding(pairs, budget, seed):
    draw = random.Random(seed)
    computed = given = 0
    for _ in range(10):
        step = like_ultrafeedback(draw, pairs)
        sizes = [sum(part.group.tokens for part in plan) for plan in plan_packs(step, token_budget=budget, shared=True)]
        assert max(sizes) <= budget
        assert len(sizes) <= 1.1 * -(-sum(sizes) // budget)
        computed += sum(map(rounded, sizes))
        given += sum(sizes)
    assert computed <= 1.03 * given


@pytest.mark.parametrize(("pairs", "budget"), [(16, 2048), (32, 3000), (128, 2048)])
def test_packs_of_few_groups_are_few_over_many_steps(pairs, budget):
    draw = random.Random(1)
    packs = fewest = computed = given = 0
    for _ in range(30):
        step = like_ultrafeedback(draw, pairs)
        sizes = [sum(part.group.tokens for part in plan) for plan in plan_packs(step, token_budget=budget, shared=True)]
        packs, fewest = packs + len(sizes), fewest + -(-sum(sizes) // budget)
        computed, given = computed + sum(map(rounded, sizes)), given + sum(sizes)
    assert packs <= 1.1 * fewest
    assert computed <= 1.03 * given


def test_an_example_longer_than_the_budget_is_refused_where_that_is_asked_for():
    long = Group((1,) * 4, ((2,) * 50, (3,) * 50), ((0, 1),))
    short = Group((7,), ((8,), (9,)), ((0, 1),))
    said = r"104 tokens in one pack, more than train\.token_budget = 20.*write train\.over_budget: own_pack"
    with pytest.raises(DataError, match=said):
        build_packs([short, long], token_budget=20, shared=True, over_budget="refuse")
    assert build_packs([short, long], token_budget=104, shared=True, over_budget="refuse")
    with pytest.raises(DataError, match="108 tokens"):
        build_packs([short, long], token_budget=107, shared=False, over_budget="refuse")

    pairs = [Example(g.prompt, g.completions, source=f"f:{i}") for i, g in enumerate([short, long, long])]
    data = PreferenceData("paired", pairs)
    with pytest.raises(DataError, match=r"2 of 3 examples \(the first is f:1\): the longest needs 104 tokens"):
        check_longest(data, token_budget=103, shared=True)
    with pytest.raises(DataError, match="108 tokens"):
        check_longest(data, token_budget=107, shared=False)
    check_longest(data, token_budget=104, shared=True)
    # Many short examples of one prompt are cut, not refused.
    many = Group((1,) * 4, tuple((c,) * 8 for c in range(8)), ((0, 1), (2, 3), (4, 5), (6, 7)))
    assert len(build_packs([many], token_budget=25, shared=True, over_budget="refuse")) == 4


def test_rows_of_like_lengths_share_a_pack_so_that_little_is_padding():
    step = lengths(random.Random(0), 128)
    packs = build_packs(step, token_budget=8192, shared=False)
    useful = sum(int(pack.mask.sum()) for pack in packs)
    assert sum(pack.tokens.numel() for pack in packs) <= 1.35 * useful
    assert all(pack.tokens.numel() <= 8192 for pack in packs)


def test_packs_by_prompt_hold_every_completion_once_and_prompts_of_like_length():
    step = like_ultrafeedback(random.Random(0), 300)
    apart = {}
    for by_prompt in (False, True):
        plans = plan_packs(step, token_budget=2048, shared=True, by_prompt=by_prompt, ends=False)
        held = Counter((part.index, c) for plan in plans for part in plan for c in part.completions)
        assert held == Counter((i, c) for i, group in enumerate(step) for c in range(len(group.completions)))
        prompts = [[len(part.group.prompt) for part in plan] for plan in plans]
        apart[by_prompt] = sorted(max(own) - min(own) for own in prompts)[len(plans) // 2]
    assert apart[True] < 0.6 * apart[False]
    # Without the completions' last tokens, a pack of one more group is still within the budget.
    assert max(sum(part.group.tokens for part in plan) for plan in plans) > 2048
    assert all(sum(p.group.tokens - len(p.completions) for p in plan) <= 2048 for plan in plans if len(plan) > 1)


def test_packs_by_prompt_that_count_last_tokens_are_within_the_budget():
    plans = plan_packs(lengths(random.Random(0), 128), token_budget=2048, shared=True, by_prompt=True)
    assert all(sum(part.group.tokens for part in plan) <= 2048 for plan in plans if len(plan) > 1)


def test_packs_are_the_same_every_time():
    step = lengths(random.Random(3), 50)
    plans = [plan_packs(step, token_budget=2000, shared=True) for _ in range(2)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (Group((), ((1,),)), "empty prompt"),
        (Group((1,), ()), "no completion"),
        (Group((1,), ((2,), ())), "an empty one"),
        (Group((1,), ((2,),), pairs=((0, 1),)), "names a completion"),
        (Group((1,), ((2,),), lists=(((0, 1.0), (1, 0.0)),)), "names a completion"),
        (Group((1,), ((2,), (3,)), pairs=((0, 1),), pair_scores=((1.0, 0.0),) * 2), "scores for 2 of its 1 pairs"),
    ],
)
def test_a_group_without_tokens_or_with_a_wrong_index_is_refused(group, words):
    with pytest.raises(DataError, match=words):
        build_packs([Group((1,), ((1,),)), group], token_budget=100, shared=True)


def test_a_budget_below_one_token_is_refused():
    with pytest.raises(DataError, match="token budget is 0"):
        build_packs([Group((1,), ((1,),))], token_budget=0, shared=True)


@settings(max_examples=60, deadline=None)
@given(group_list=st.lists(groups(), min_size=1, max_size=4), shared=st.booleans(), data=st.data())
def test_some_completions_of_a_pack_are_the_pack_of_these_completions(group_list, shared, data):
    pack = assemble(group_list, shared=shared)
    every = range(pack.num_sequences)
    kept = sorted(data.draw(st.sets(st.sampled_from(every), min_size=1)))
    part = only(pack, torch.tensor(kept))

    smaller, first = [], 0
    for group in group_list:
        own = tuple(c for i, c in enumerate(group.completions) if first + i in kept)
        first += len(group.completions)
        smaller += [Group(group.prompt, own)] if own else []
    wanted = assemble(smaller, shared=shared)
    assert part.layout is None or part.layout.groups == wanted.layout.groups
    for field in fields(wanted):
        theirs, ours = getattr(wanted, field.name), getattr(part, field.name)
        if isinstance(theirs, torch.Tensor):
            assert theirs.dtype == ours.dtype
            assert torch.equal(theirs, ours), field.name
