"""Bins: never more than needed, where that can be told, and the same every time."""

import random
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.bins import NEAR, few_bins, near_bins


def fewest_by_trial(sizes, room):
    """The fewest bins, over every way to fill them (subsets as bit masks)."""
    whole = [sum(size for i, size in enumerate(sizes) if mask >> i & 1) for mask in range(1 << len(sizes))]

    @lru_cache(None)
    def bins(left):
        if not left:
            return 0
        first, best = left & -left, len(sizes)
        own = left
        while own:
            if own & first and whole[own] <= room:
                best = min(best, 1 + bins(left & ~own))
            own = (own - 1) & left
        return best

    return bins((1 << len(sizes)) - 1)


def check(sizes, room, found):
    assert sorted(item for own in found.items for item in own) == list(range(len(sizes)))
    assert all(sum(sizes[item] for item in own) <= room or len(own) == 1 for own in found.items)
    assert found.items == sorted(map(sorted, found.items))


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8), room=st.integers(20, 40))
def test_few_items_take_as_many_bins_as_every_trial_says(sizes, room):
    found = few_bins(sizes, room)
    check(sizes, room, found)
    assert len(found.items) == found.fewest == fewest_by_trial(tuple(sizes), room)


def test_bins_that_both_rules_miss_are_found():
    sizes = [46, 20, 46, 66, 40, 48, 33, 43, 38, 50, 25, 31]  # 66 + 33, 50 + 48, 46 + 46, 43 + 31 + 25, 40 + 38 + 20
    for nodes, bins in ((1, 6), (20_000, 5)):
        found = few_bins(sizes, 100, nodes=nodes)
        check(sizes, 100, found)
        assert (len(found.items), found.fewest) == (bins, 5)


def test_more_bins_than_the_sum_asks_for_are_proven_to_be_needed():
    found = few_bins([6, 6, 6, 2], 10)  # twenty in all, and no two of the larger ones share a bin
    assert (len(found.items), found.fewest) == (3, 3)


def test_items_without_room_have_bins_of_their_own():
    found = few_bins([30, 5, 10, 5], 10)
    assert found.items == [[0], [1, 3], [2]]
    assert found.fewest == 3


@pytest.mark.parametrize("nodes", [1, 50])
def test_a_search_that_is_given_up_leaves_what_the_rules_found_and_claims_no_proof(nodes):
    draw = random.Random(3)
    sizes = [draw.randint(300, 700) for _ in range(40)]
    found, again = few_bins(sizes, 1000, nodes=nodes), few_bins(sizes, 1000, nodes=nodes)
    assert found == again
    check(sizes, 1000, found)
    assert found.fewest <= len(found.items)
    assert found.fewest <= few_bins(sizes, 1000).fewest


def test_a_whole_held_out_set_is_packed_without_a_search_that_has_no_end():
    draw = random.Random(1)
    sizes = [draw.randint(300, 700) for _ in range(20_000)]
    found = few_bins(sizes, 1000)
    check(sizes, 1000, found)
    assert found.fewest <= len(found.items) < 1.1 * found.fewest


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 60), max_size=200), room=st.integers(1, 80))
def test_near_bins_hold_every_item_once_and_no_more_than_there_is_room_for(sizes, room):
    found = near_bins(sizes, room)
    assert sorted(item for own in found for item in own) == list(range(len(sizes)))
    assert all(sum(sizes[item] for item in own) <= room or len(own) == 1 for own in found)
    assert found == near_bins(sizes, room)


def test_near_bins_are_full_and_of_neighbours():
    draw = random.Random(2)
    sizes = [draw.randint(200, 700) for _ in range(2000)]
    found = near_bins(sizes, 2048)
    assert len(found) == -(-sum(sizes) // 2048)
    assert sorted(max(own) - min(own) for own in found)[len(found) // 2] < NEAR
    assert near_bins([5, 5, 9, 5, 1], 10) == [[2, 4], [0, 1], [3]]  # around the largest first
