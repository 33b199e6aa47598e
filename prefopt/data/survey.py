"""One pass over the text of preferences: what can be known of them without a tokenizer, in bounded memory a row."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from prefopt.data.near import Texts, digest, fold
from prefopt.data.rows import Dialogue, Document

_ALL_PAIRS = 12
"""Completions of a list up to which each is compared with each, not only with the next."""


class Survey:
    """Digests, sketches, lengths and scores of rows, one `add` a row."""

    def __init__(self) -> None:
        self.rows = self.desirable = self.scored = 0
        self.prompts: Counter[bytes] = Counter()
        """Digest of each folded prompt -> its rows."""
        self.texts = Texts()
        self.prompt_texts = Texts()
        self.exact_prompts: set[bytes] = set()
        self.scores: list[tuple[float, ...]] = []
        self.labels = array("b")
        self._prompt_lengths, self._lengths, self._counts = array("q"), array("q"), array("q")
        self._exact: set[bytes] = set()
        self._judged: dict[bytes, list[int]] = {}

    def add(self, row: Document | Dialogue, form: str) -> None:
        """Take a row in."""
        prompt, completions = texts_of(row)
        identity = identify(row)
        self.rows += 1
        self.scored += bool(row.scores)
        self.desirable += bool(row.label)
        self.labels.append(bool(row.label))
        if row.scores:
            self.scores.append(row.scores)
        self._prompt_lengths.append(len(prompt))
        self._lengths.extend(map(len, completions))
        self._counts.append(len(completions))
        scores = row.scores if form == "listwise" else ()
        self._exact.add(digest(json.dumps([*identity, row.label, scores])))
        self.exact_prompts.add(digest(identity[0]))
        self.prompts[digest(fold(prompt))] += 1
        self.prompt_texts.add(prompt)
        self.texts.add("\n".join((prompt, *completions)))
        for better, worse in _judgements(row, form):
            sides = sorted((identity[1 + better] if better >= 0 else "", identity[1 + worse] if worse >= 0 else ""))
            key = digest(json.dumps([identity[0], *sides]))
            turned = better >= 0 and sides[0] != identity[1 + better]
            self._judged.setdefault(key, [0, 0])[turned] += 1

    @property
    def duplicates(self) -> int:
        """Rows that repeat an earlier one to the character."""
        return self.rows - len(self._exact)

    @property
    def contradicted(self) -> int:
        """Judgements of which another one says the opposite."""
        return sum(sum(sides) for sides in self._judged.values() if all(sides))

    def lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return characters of each prompt, (rows,), and of its completions, (rows, the most of one), 0 for none."""
        counts = np.array(self._counts, dtype=np.int64)
        there = np.arange(int(counts.max(initial=1))) < counts[:, None]
        completions = np.zeros(there.shape, dtype=np.int64)
        completions[there] = self._lengths
        return np.array(self._prompt_lengths, dtype=np.int64), completions


def texts_of(row: Document | Dialogue) -> tuple[str, tuple[str, ...]]:
    """Return a prompt and its completions as text; of a conversation, each turn behind its role."""
    if isinstance(row, Document):
        return row.prompt, row.completions
    prompt = "\n\n".join(f"{message['role']}: {message['content']}" for message in row.prompt)
    return prompt, tuple(str(message["content"]) for message in row.completions)


def identify(row: Document | Dialogue) -> tuple[str, ...]:
    """Return texts that are equal exactly where prompts, and where completions, are: prompt, *completions."""
    if isinstance(row, Document):
        return row.prompt, *row.completions
    return tuple(json.dumps(part, default=repr, sort_keys=True) for part in (row.prompt, *row.completions))


def _judgements(row: Document | Dialogue, form: str) -> list[tuple[int, int]]:
    """Return which completion is said to be better than which, by number; -1 stands for a label's other side."""
    if form == "paired":
        return [(0, 1)]
    if row.label is not None:
        return [(0, -1)] if row.label else [(-1, 0)]
    places = range(len(row.scores))
    pairs = combinations(places, 2) if len(row.scores) <= _ALL_PAIRS else pairwise(places)
    return [(i, j) for i, j in pairs if row.scores[i] > row.scores[j]]
