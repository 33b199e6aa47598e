"""What was read, recognised, rejected and measured: the record behind `data.json` and `prefopt data inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Lengths:
    """Percentiles of a length over the used examples, in the summary's unit."""

    mean: float
    p50: int
    p90: int
    p95: int
    p99: int
    longest: int


@dataclass(frozen=True)
class Recognised:
    """What one source was taken for, and why."""

    source: str
    format: str
    why: str


@dataclass(frozen=True)
class DataSummary:
    """Counts over one load; rows_read = rows_used + rows_rejected + rows_left_out, always."""

    rows_read: int = 0
    rows_used: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows that can't be used."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows that could be used and that a rule of the recipe leaves out."""
    ties: int = 0
    """Rows that prefer neither of two completions, or score them alike; used or left out as `data.ties` says."""
    contradictions: int = 0
    """Rows that prefer the completions of an earlier one the other way round, or label one otherwise."""
    form: str = ""
    """"paired", "unpaired", "listwise" or "demonstration"."""
    recognised: tuple[Recognised, ...] = ()
    unit: str = "tokens"
    """What `lengths` counts: "tokens", or "characters" where no tokenizer was given."""
    lengths: Mapping[str, Lengths] = field(default_factory=dict)
    """prompt, and chosen and rejected or completion."""
    chosen_longer: float | None = None
    """Share of pairs whose chosen completion is the longer one; 0.5 is no length bias. Equal lengths count half."""
    scored: int = 0
    """Examples whose completions have scores."""
    completions_per_list: float | None = None
    """Mean number of completions of a scored list."""
    desirable: float | None = None
    """Share of labelled completions that are desirable."""
    distinct_prompts: int = 0
    duplicates: int = 0
    """Examples that repeat an earlier one token by token, its label or the scores of its list included."""
    boundary_fallbacks: int = 0
    """Rows in which a token spanned prompt and completion, so that the completion was cut at the character."""
    altered_prompts: int = 0
    """Rows whose chat template writes an answered prompt otherwise than an open one."""
    cut_prompts: int = 0
    """Prompts whose start was cut off to fit."""
    cut_completions: int = 0
    """Completions whose end was cut off to fit, so that they have no end-of-turn."""
    notes: tuple[str, ...] = ()
    """What else is worth a sentence."""

    @property
    def rows_rejected(self) -> int:
        return sum(self.rejected.values())

    @property
    def rows_left_out(self) -> int:
        return sum(self.left_out.values())

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able copy, `rows_rejected` and `rows_left_out` included."""
        return {**asdict(self), "rows_rejected": self.rows_rejected, "rows_left_out": self.rows_left_out}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> DataSummary:
        """Return the summary that `to_dict` wrote, from JSON too."""
        own = {name: value for name, value in found.items() if name not in ("rows_rejected", "rows_left_out")}
        return cls(
            **{
                **own,
                "recognised": tuple(Recognised(**own) for own in found["recognised"]),
                "lengths": {name: Lengths(**own) for name, own in found["lengths"].items()},
                "notes": tuple(found["notes"]),
            }
        )
