"""Examples as flat columns: what they are while they are read, in memory and on disk."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from prefopt.data.packed import WIDTH
from prefopt.errors import DataError
from prefopt.records import LARGEST_SCORE

Form = Literal["paired", "unpaired", "listwise"]


@dataclass(frozen=True)
class Example:
    """What a loss counts: a pair, a labelled completion, a scored list, or completions to score. Token ids."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    """(chosen, rejected), (completion,), all of a list with the best first, or all of a row that is to be scored."""
    label: bool | None = None
    """Desirable? None for anything but a labelled completion."""
    source: str = ""
    """Where the row came from, as `file.jsonl:12`."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The row's other scalar columns, for slices of an evaluation."""
    scores: tuple[float, ...] = ()
    """One for each completion: of every list, descending, and of pairs that have them."""
    prompt_cut: bool = False
    """The start of the prompt is missing: it didn't fit."""
    cut: tuple[bool, ...] = ()
    """Of each completion, whether it was cut to fit and has no end-of-turn; () where none was."""


@dataclass(frozen=True)
class Columns:
    """Examples end to end. A sequence is a prompt or a completion; an example's prompt comes before its completions."""

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int64]
    """Of each sequence."""
    cut: NDArray[np.bool_]
    """Of each sequence: is a part of it missing?"""
    counts: NDArray[np.int64]
    """Completions of each example."""
    scores: NDArray[np.float64]
    """Of each completion; NaN where there is none."""
    labels: NDArray[np.bool_]
    """Of each example; False where there is none."""
    sources: Sequence[str]
    meta: Sequence[Mapping[str, Any] | None]
    stops: NDArray[np.int64] | None = None
    """Where each sequence ends in `tokens`; None where they stand end to end."""

    @property
    def ends(self) -> NDArray[np.int64]:
        """Where each sequence ends in `tokens`."""
        return np.cumsum(self.lengths) if self.stops is None else self.stops


class Texts:
    """Where texts go while they are read: end to end, with the place where each one stops."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.stops = array("q", [0])

    def append(self, text: str) -> None:
        self.stops.append(self.stops[-1] + self.file.write(text.encode("utf-8", "surrogatepass")))


class ColumnWriter:
    """Takes examples one by one; tokens and texts go to files in `folder`, or stay in memory without one."""

    file_names = ("tokens.bin", "sources.bin", "meta.bin")

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.tokens: IO[bytes] = BytesIO() if folder is None else (folder / "tokens.bin").open("w+b")
        self.lengths, self.cut = array("i"), array("b")
        self.counts, self.scores, self.labels = array("i"), array("d"), array("b")
        self.sources: list[str] | Texts = [] if folder is None else Texts((folder / "sources.bin").open("w+b"))
        self.meta: list[Mapping[str, Any] | None] | Texts = (
            [] if folder is None else Texts((folder / "meta.bin").open("w+b"))
        )

    def add(
        self,
        prompt: bytes,
        completions: Sequence[bytes],
        *,
        label: bool | None = None,
        scores: Sequence[float] = (),
        source: str = "",
        meta: Mapping[str, Any] | None = None,
        prompt_cut: bool = False,
        cut: Sequence[bool] = (),
    ) -> None:
        """Take one example; token ids are packed."""
        self.tokens.write(prompt)
        self.lengths.append(len(prompt) // WIDTH)
        for completion in completions:
            self.tokens.write(completion)
            self.lengths.append(len(completion) // WIDTH)
        count = len(completions)
        self.cut.append(prompt_cut)
        self.cut.extend(cut or (False,) * count)
        self.counts.append(count)
        self.scores.extend(scores or (_NAN,) * count)
        self.labels.append(bool(label))
        self.sources.append(source)
        if isinstance(self.meta, Texts):
            self.meta.append(json.dumps(meta) if meta else "")
        else:
            self.meta.append(meta or None)

    def close(self) -> None:
        """Let go of the files, if there are any."""
        for held in (self.tokens, self.sources, self.meta):
            if isinstance(held, Texts):
                held.file.close()
            elif not isinstance(held, list):
                held.close()

    def columns(self) -> Columns:
        """Return what was taken, from memory."""
        assert isinstance(self.tokens, BytesIO)
        assert not isinstance(self.sources, Texts)
        assert not isinstance(self.meta, Texts)
        return Columns(
            tokens=np.frombuffer(self.tokens.getbuffer(), dtype=np.int32),
            lengths=np.array(self.lengths, dtype=np.int64),
            cut=np.array(self.cut, dtype=np.bool_),
            counts=np.array(self.counts, dtype=np.int64),
            scores=np.array(self.scores, dtype=np.float64),
            labels=np.array(self.labels, dtype=np.bool_),
            sources=self.sources,
            meta=self.meta,
        )


_NAN = float("nan")


def check_example(form: Form, example: Example) -> None:
    """Raise DataError for an example that is not of its form."""
    where = example.source or "an example"
    found, scores = len(example.completions), example.scores
    expected = {"paired": "2", "unpaired": "1"}.get(form)
    if (found < 2) if expected is None else (str(found) != expected):
        raise DataError(f"{where} has {found} completions; {form} data needs {expected or 'at least 2'} an example.")
    if (form == "listwise" or scores) and (len(scores) != found or not (np.abs(scores) <= LARGEST_SCORE).all()):
        raise DataError(
            f"{where} has the scores {list(scores)}; each of its {found} completions needs a finite number."
        )
    if form == "listwise" and any(a < b for a, b in pairwise(scores)):
        raise DataError(f"{where} has the scores {list(scores)}; put its completions in their order, the best first.")
    if form == "unpaired" and example.label is None:
        raise DataError(f"{where} has no label; unpaired data needs True (desirable) or False for every example.")
    if not example.prompt or not all(example.completions):
        raise DataError(f"{where} has an empty prompt or completion; each needs at least one token.")
