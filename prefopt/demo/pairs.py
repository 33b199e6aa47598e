"""Preference pairs made of film-review sentences that people rated: which of two sentences is the better liked.

The sentences and every single rating ship with the package (PROVENANCE.md), so that a model's accuracy can be put
beside how often people agree with each other.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("movie_sentences.jsonl.gz")

MIN_WORDS, MAX_WORDS = 4, 40
LIKED, DISLIKED = 1.5, -1.5
"""Mean rating, on a scale from -4 to 4, from which a sentence counts as liked, or up to which as disliked."""

GAP_BINS: tuple[tuple[float, float], ...] = ((0.5, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 8.0))
"""Differences of mean ratings, from (included) to (excluded); 8 is the widest there can be."""

PROMPTS = (
    "Write one sentence from a film review.",
    "What did the critic write about the film?",
    "Give me a single line from a movie review.",
    "How would you sum up the movie in one sentence?",
    "Quote a sentence that a reviewer wrote about a film.",
    "You have just seen a film. Write one sentence about it.",
    "Tell me in one sentence what you think of the movie.",
    "Write the opening line of a film review.",
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Sentence:
    """A sentence and what its raters thought of it."""

    id: int
    text: str
    ratings: tuple[int, ...]
    """One a rater, from -4 (very negative) to 4 (very positive)."""

    @cached_property
    def mean(self) -> float:
        return sum(self.ratings) / len(self.ratings)


@dataclass(frozen=True)
class DemoPairs:
    """Pairs to train on and pairs of other sentences to test with.

    A row is {"prompt": [message], "chosen": [message], "rejected": [message], "gap": difference of the mean ratings,
    "agreement": how probably a rater of chosen gave more than one of rejected (a tie counts half),
    "chosen_ratings": [...], "rejected_ratings": [...]}.
    """

    train: list[Row]
    """A liked sentence against a disliked one."""
    heldout: list[Row]
    """The same, of sentences that no training pair uses; each stands in one pair."""
    by_gap: list[Row]
    """Held-out sentences of any rating, equally many pairs in each of GAP_BINS."""


def load_sentences(path: Path = DATA) -> tuple[Sentence, ...]:
    """Return the sentences that ship with the package."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return tuple(Sentence(row["id"], row["text"], tuple(row["ratings"])) for row in rows)


def make_pairs(
    sentences: Sequence[Sentence],
    *,
    seed: int = 0,
    train: int = 3200,
    heldout: int = 500,
    per_gap: int = 100,
    uses: int = 3,
) -> DemoPairs:
    """Pair sentences up, the same way for the same arguments on every machine.

    Args:
        sentences: of `load_sentences`.
        seed: decides which sentences are held out, and who meets whom.
        train: pairs to train on.
        heldout: pairs to test with.
        per_gap: pairs of each of GAP_BINS.
        uses: in how many training pairs, and in how many pairs of `by_gap`, a sentence may stand.

    Raises:
        ValueError: when there are not enough sentences for that many pairs.
    """
    ordered = _shuffled(sentences, seed, "split")
    # Four in five train. A sentence that differs from another in case or punctuation only goes where that one goes.
    side = {same_sentence(s.text): at * 5 // len(ordered) for at, s in enumerate(ordered)}
    training = [s for s in ordered if side[same_sentence(s.text)] < 4]
    testing = [s for s in ordered if side[same_sentence(s.text)] == 4]
    return DemoPairs(
        train=_opposed(training, train, seed, "train", uses),
        heldout=_opposed(testing, heldout, seed, "heldout", 1),
        by_gap=[row for bounds in GAP_BINS for row in _within(testing, bounds, per_gap, seed, uses)],
    )


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as JSON Lines, in the form that `data.train` and `data.eval` of a recipe read."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def same_sentence(text: str) -> str:
    """Return what two spellings of one sentence have in common: its words, without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def agreement(chosen: Sequence[int], rejected: Sequence[int]) -> float:
    """Return how probably a rater of `chosen` gave more than one of `rejected`, a tie counting half."""
    wins = sum((a > b) + 0.5 * (a == b) for a, b in product(chosen, rejected))
    return wins / (len(chosen) * len(rejected))


def _opposed(sentences: Sequence[Sentence], count: int, seed: int, name: str, uses: int) -> list[Row]:
    """Pair liked sentences with disliked ones; every sentence is used once before any is used again."""
    liked = [s for s in sentences if s.mean >= LIKED]
    disliked = [s for s in sentences if s.mean <= DISLIKED]
    pairs: dict[tuple[int, int], tuple[Sentence, Sentence]] = {}
    for turn in range(uses):
        left = _shuffled(liked, seed, f"{name} liked {turn}")
        right = _shuffled(disliked, seed, f"{name} disliked {turn}")
        for chosen, rejected in zip(left, right, strict=False):
            pairs.setdefault((chosen.id, rejected.id), (chosen, rejected))
    return _rows(list(pairs.values()), count, seed, name)


def _within(sentences: Sequence[Sentence], bounds: tuple[float, float], count: int, seed: int, uses: int) -> list[Row]:
    """Pair sentences whose mean ratings differ by at least bounds[0] and less than bounds[1]."""
    name = f"gap {bounds}"
    left, right = _shuffled(sentences, seed, f"{name} a"), _shuffled(sentences, seed, f"{name} b")
    # A sentence stands in at most `uses` pairs over all bins: once in each of the few that its hash picks.
    own = GAP_BINS.index(bounds)
    open_here = [s for s in right if (_number(seed, f"bins {s.id}") + own) % len(GAP_BINS) < uses]
    allowed, used = {s.id for s in open_here}, set[int]()
    pairs: list[tuple[Sentence, Sentence]] = []
    for a in left:
        if a.id not in allowed or a.id in used:
            continue
        for b in open_here:
            if b.id not in used and b.id != a.id and bounds[0] <= abs(_gap(a, b)) < bounds[1]:
                used |= {a.id, b.id}
                pairs.append((a, b) if a.mean > b.mean else (b, a))
                break
        if len(pairs) == count:
            break
    return _rows(pairs, count, seed, name)


def _rows(pairs: Sequence[tuple[Sentence, Sentence]], count: int, seed: int, name: str) -> list[Row]:
    if len(pairs) < count:
        raise ValueError(f"the sentences give {len(pairs)} pairs for {name}, and {count} are asked for.")
    return [
        _row(chosen, rejected, PROMPTS[_number(seed, f"prompt {name} {chosen.id} {rejected.id}") % len(PROMPTS)])
        for chosen, rejected in pairs[:count]
    ]


def _row(chosen: Sentence, rejected: Sentence, prompt: str) -> Row:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen.text}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
        "gap": _gap(chosen, rejected),
        "agreement": round(agreement(chosen.ratings, rejected.ratings), 4),
        "chosen_ratings": list(chosen.ratings),
        "rejected_ratings": list(rejected.ratings),
    }


def _gap(a: Sentence, b: Sentence) -> float:
    return round(a.mean - b.mean, 4)  # rounded, or a difference of exactly 1 could fall into either bin


def _shuffled(sentences: Sequence[Sentence], seed: int, name: str) -> list[Sentence]:
    """Return the sentences in an order that depends on nothing but their ids, the seed and the name."""
    return sorted(sentences, key=lambda s: _number(seed, f"{name} {s.id}"))


def _number(seed: int, name: str) -> int:
    # Not `random`: its shuffle is no promise between versions of Python.
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big")
