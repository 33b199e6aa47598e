"""What a source's rows are: the record that reading a row goes by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FormName = Literal["paired", "unpaired", "listwise", "demonstration", "scored"]

FIELDS: dict[str, tuple[str, ...]] = {
    "pairs": ("prompt", "chosen", "rejected"),
    "implicit_pairs": ("chosen", "rejected"),
    "labels": ("prompt", "completion", "label"),
    "completion": ("prompt", "completion"),
    "lists": ("prompt", "completions", "scores"),
    "completions": ("prompt", "completions"),
    "demonstrations": ("prompt", "completion"),
}
"""The library's own formats and what their rows hold."""
FORMS: dict[str, FormName] = {
    "pairs": "paired",
    "implicit_pairs": "paired",
    "labels": "unpaired",
    "lists": "listwise",
    "demonstrations": "demonstration",
    "completion": "scored",
    "completions": "scored",
}
PAIR_SCORES = ("score_chosen", "score_rejected")
"""Fields that a pair may have beside the others."""


@dataclass(frozen=True)
class Format:
    """What the rows of a source are."""

    name: str
    """One of the library's own formats, or a published schema."""
    form: FormName
    """What one row makes: a pair, a labelled completion, a scored list, a demonstration, or completions to score."""
    columns: Mapping[str, str]
    """Field -> the column that holds it, of a row as `rewrite` gives it."""
    score_columns: tuple[str, ...] = ()
    """Of pairs: the columns that hold the scores of chosen and rejected; () where there are none."""
    scores_named: bool = False
    """The recipe names the score columns: what they hold must be scores."""
    repeats_prompt: bool = False
    """Plain strings: the completions begin with the prompt."""
    transcript: bool = False
    """Plain strings without a prompt column: transcripts with `Human:` and `Assistant:` turns."""
    is_chat: bool = False
    """Plain strings are a user's turn and an assistant's."""
    system: str | None = None
    """The column whose text is the first message."""
    tools: str | None = None
    """The column that holds the tools of the conversation."""
    rewrite: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = field(default=None, compare=False)
    """A row of a published schema -> the same in the library's own columns; raises RowError."""
    read: tuple[str, ...] = ()
    """The columns that `rewrite` reads."""
    joins_neighbours: bool = False
    """Neighbouring rows with the same prompt are one list."""
    why: str = field(default="", compare=False)
