"""Items of given sizes -> as few bins as can be: by two quick rules, and by exact search where these may be wrong.

Or into bins of neighbours, where it matters what shares a bin: almost as few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import numpy as np

FILLED = 256
"""Items up to which bins are filled one by one and searched, as many as a step has; first-fit-decreasing is as good
beyond, and the search would take seconds a look and a stack as deep as there are items."""
NODES = 20_000
"""Places in the exact search that are looked at in all: at most some tenths of a second with `FILLED` items."""
NEAR = 64
"""Items among which `near_bins` chooses: with more, bins are no fuller and their items further apart."""


@dataclass(frozen=True)
class Bins:
    """Items by bin, in the order of each bin's first item, and items in theirs."""

    items: list[list[int]]
    fewest: int
    """Bins that any packing needs: as many as there are, unless the search was given up or never begun."""


def few_bins(sizes: Sequence[int], room: int, *, nodes: int = NODES) -> Bins:
    """Choose few bins of `room`; an item that has no room in any gets a bin of its own. Deterministic.

    First-fit-decreasing; of up to `FILLED` items the fullest bin first where that takes fewer, then a search for fewer.
    """
    alone = [[item] for item, size in enumerate(sizes) if size >= room]
    others = sorted((item for item, size in enumerate(sizes) if size < room), key=lambda item: (-sizes[item], item))
    fewest = -(-sum(sizes[item] for item in others) // room)
    found = _first_fit(others, sizes, room)
    if len(found) > fewest and len(others) <= FILLED:
        found = min(found, _fullest_first(others, sizes, room), key=len)
    search = _Search(sizes, room, nodes)
    while len(others) <= FILLED and len(found) > fewest and not search.given_up:
        exact = search.bins(tuple(others), fewest)
        if exact is not None:
            found = exact
        elif not search.given_up:
            fewest += 1
    return Bins(sorted(sorted(own) for own in (*alone, *found)), fewest + len(alone))


def near_bins(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Fill bins of `room` one by one with items that stand near each other, as full as those can make them.

    Each is filled around the largest of the first `NEAR` items left. An item that has no room in any gets a bin of its
    own. Deterministic.
    """
    bins: list[list[int]] = []
    coming = iter(range(len(sizes)))
    near = list(islice(coming, NEAR))
    while near:
        chosen = _fullest(sorted(near, key=lambda item: (-sizes[item], item)), sizes, room)
        bins.append(sorted(chosen))
        near = [item for item in near if item not in chosen]
        near += islice(coming, len(chosen))
    return bins


def _first_fit(items: Sequence[int], sizes: Sequence[int], room: int) -> list[list[int]]:
    """Put each item, the largest first, into the first bin that has room for it."""
    bins: list[list[int]] = []
    free = np.zeros(len(items), dtype=np.int64)
    for item in items:
        fits = np.flatnonzero(free[: len(bins)] >= sizes[item])
        if fits.size:
            at = int(fits[0])
            bins[at].append(item)
        else:
            at = len(bins)
            bins.append([item])
            free[at] = room
        free[at] -= sizes[item]
    return bins


def _fullest_first(items: Sequence[int], sizes: Sequence[int], room: int) -> list[list[int]]:
    """Fill each bin around the largest item left with whatever fills it best."""
    left = list(items)
    bins: list[list[int]] = []
    while left:
        chosen = _fullest(left, sizes, room)
        bins.append(sorted(chosen))
        left = [item for item in left if item not in chosen]
    return bins


def _fullest(items: Sequence[int], sizes: Sequence[int], room: int) -> set[int]:
    """Return the first of the items, and those of the others that fill what it leaves of `room` best."""
    largest, *others = items
    free = max(0, room - sizes[largest])
    sums = [1]  # bit t: some of the items so far have t tokens together
    for item in others:
        sums.append((sums[-1] | (sums[-1] << sizes[item])) & ((2 << free) - 1))
    target, chosen = sums[-1].bit_length() - 1, {largest}
    for number in range(len(others), 0, -1):
        if not sums[number - 1] >> target & 1:
            chosen.add(others[number - 1])
            target -= sizes[others[number - 1]]
    return chosen


class _Search:
    """Bin completion (Korf 2002, "A new algorithm for optimal bin packing"): depth first, and not without end."""

    def __init__(self, sizes: Sequence[int], room: int, nodes: int) -> None:
        self._sizes, self._room, self._nodes = sizes, room, nodes
        self._failed: set[tuple[int, tuple[int, ...]]] = set()

    @property
    def given_up(self) -> bool:
        return self._nodes <= 0

    def bins(self, items: tuple[int, ...], count: int) -> list[list[int]] | None:
        """Return items, the largest first, in `count` bins; None where they don't fit, or the search was given up."""
        if not items:
            return []
        spare = count * self._room - sum(self._sizes[item] for item in items)
        if spare < 0 or (count, items) in self._failed:
            return None
        largest, others = items[0], items[1:]
        free = self._room - self._sizes[largest]
        for chosen in self._sets(others, free, max(0, free - spare)):
            rest = self.bins(tuple(item for item in others if item not in chosen), count - 1)
            if rest is not None:
                return [[largest, *chosen], *rest]
            if self.given_up:
                return None
        self._failed.add((count, items))
        return None

    def _sets(self, items: Sequence[int], most: int, least: int) -> Iterator[tuple[int, ...]]:
        """Yield the sets of items that have `least` to `most` together; of equal items, the first."""
        behind = [*accumulate((self._sizes[item] for item in reversed(items)), initial=0)][::-1]

        def chosen(at: int, most: int, least: int) -> Iterator[tuple[int, ...]]:
            self._nodes -= 1
            if self.given_up:
                return
            while at < len(items) and self._sizes[items[at]] > most:
                at += 1
            if behind[at] < least:
                return
            if at == len(items):
                yield ()
                return
            size = self._sizes[items[at]]
            for own in chosen(at + 1, most - size, least - size):
                yield (items[at], *own)
            following = at + 1
            while following < len(items) and self._sizes[items[following]] == size:
                following += 1
            yield from chosen(following, most, least)

        return chosen(0, most, least)
