"""Near-duplicates: the sketches' estimate beside the exact Jaccard index, and what is found beside what there is."""

import random
from itertools import combinations

import numpy as np
import pytest

from prefopt.data import near
from prefopt.data.near import THRESHOLD, Texts, fold, resemblance, sketch

WORDS = [
    "the",
    "a",
    "tea",
    "film",
    "fox",
    "dog",
    "answer",
    "is",
    "was",
    "great",
    "terrible",
    "green",
    "lazy",
    "quick",
    "brown",
    "jumps",
    "over",
    "name",
    "what",
    "like",
]


def shingles(text):
    folded = fold(text)
    return {folded[i : i + 5] for i in range(max(1, len(folded) - 4))}


def jaccard(one, other):
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def mutated(seed, count, longest):
    """Texts, some of them copies of earlier ones with a few words changed."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        words = [draw.choice(WORDS) + str(draw.randint(0, 30)) for _ in range(draw.randint(3, longest))]
        if texts and draw.random() < 0.4:
            words = draw.choice(texts).split()
            for _ in range(draw.randint(1, max(1, len(words) // 6))):
                words[draw.randrange(len(words))] = draw.choice(WORDS)
        texts.append(" ".join(words))
    return texts


def test_of_short_texts_the_estimate_is_the_jaccard_index():
    for one, other in combinations(mutated(0, 40, 8), 2):
        if len(shingles(one)) <= 64 and len(shingles(other)) <= 64:
            estimate = resemblance(sketch(fold(one))[None], sketch(fold(other))[None])[0]
            assert estimate == pytest.approx(jaccard(one, other), abs=1e-12)


def test_of_long_texts_the_estimate_is_close_to_the_jaccard_index():
    texts = mutated(1, 60, 300)
    pairs = list(combinations(range(60), 2))
    sketches = np.stack([sketch(fold(text)) for text in texts])
    found = resemblance(sketches[[a for a, _ in pairs]], sketches[[b for _, b in pairs]])
    errors = found - [jaccard(texts[a], texts[b]) for a, b in pairs]
    assert np.abs(errors).max() < 0.2  # 128 hashes: a standard deviation of 0.044 at most
    assert abs(errors.mean()) < 0.01


def test_the_near_duplicates_that_are_counted_are_those_that_there_are():
    for seed in range(4):
        texts = mutated(seed + 10, 300, 25)
        distinct = list({fold(text): text for text in texts}.values())
        held = Texts()
        for text in texts:
            held.add(text)
        alike = [
            {i, j} for i, j in combinations(range(len(distinct)), 2) if jaccard(distinct[i], distinct[j]) >= THRESHOLD
        ]
        wanted = len(set().union(*alike))
        found = held.near_duplicates()
        assert (found.distinct, found.compared) == (len(distinct), len(distinct))
        assert wanted > 30
        assert abs(found.near - wanted) <= max(3, wanted // 20)


def test_overlap_counts_texts_that_are_the_same_or_alike():
    train, held_out = Texts(), Texts()
    base = mutated(3, 200, 40)
    for text in base:
        train.add(text)
    for text in (base[0].upper(), "  " + base[1], base[2] + " more", "nothing of this kind is anywhere", base[3]):
        held_out.add(text)
    found = held_out.near_in(train)
    assert (found.distinct, found.near) == (5, 4)
    assert Texts().near_in(train).near == 0
    assert held_out.near_in(Texts()).near == 0


def test_case_width_and_white_space_make_no_other_text():
    assert fold(" Ｗhat\tIS\n\nTea ") == "what is tea"
    held = Texts()
    for text in ("What is tea", " what  is TEA", "", "\n", "a", "b"):
        held.add(text)
    assert held.near_duplicates().distinct == 4


def test_memory_is_bounded_and_what_is_not_compared_is_counted(monkeypatch):
    monkeypatch.setattr(near, "CAP", 10)
    held = Texts()
    for i in range(25):
        held.add(f"text number {i} of the tea")
    found = held.near_duplicates()
    assert (found.distinct, found.compared) == (25, 10)


def test_a_long_text_is_cut_into_chunks_without_changing_its_sketch(monkeypatch):
    text = fold(" ".join(mutated(5, 30, 60)))
    whole = sketch(text)
    monkeypatch.setattr(near, "_CHUNK", 100)
    assert np.array_equal(sketch(text), whole)


def hash_by_hand(run):
    """splitmix64's last steps of a polynomial in the five characters, its upper half."""
    mixed, all_ = 0, 2**64 - 1
    for character in run.ljust(5, "\0"):
        mixed = (mixed * 0x9E3779B97F4A7C15 + ord(character)) & all_
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & all_
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & all_
    return mixed >> 32


def test_texts_that_are_looked_at_together_have_the_sketches_that_each_has_by_hand(monkeypatch):
    monkeypatch.setattr(near, "_CHUNK", 2000)  # so that there are several lots, and texts longer than one
    texts = [
        fold(text) for text in ("", "a", "tea", "four", "fives", *mutated(6, 60, 60), " ".join(mutated(7, 20, 40)))
    ]
    held = Texts()
    for text in texts:
        held.add(text)
    for text, found in zip(dict.fromkeys(texts), held._matrix(), strict=True):
        smallest = sorted({hash_by_hand(run) for run in shingles(text)})[:128]
        assert found[: len(smallest)].tolist() == smallest
        assert (found[len(smallest) :] == near._NONE).all()


def test_a_glance_at_two_sketches_misses_none_that_resemble_each_other():
    texts = [fold(text) for text in (*mutated(8, 150, 12), *mutated(9, 150, 120))]
    held = near.sketches(texts)
    left, right = (np.array(side) for side in zip(*combinations(range(len(texts)), 2), strict=True))
    wanted = np.flatnonzero(resemblance(held[left], held[right]) >= THRESHOLD)
    assert len(wanted) > 30
    assert near._resembling(held[left], held[right]).tolist() == wanted.tolist()


def test_half_a_surrogate_pair_and_nothing_at_all_have_sketches():
    assert (sketch("\ud800 tea") != sketch("tea")).any()
    assert sketch("").shape == (128,)
