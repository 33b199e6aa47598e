"""The recipe's `eval` section."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field, field_validator

from prefopt.config import Section


class EvalConfig(Section):
    """How a run is evaluated before and after training: held-out pairs, and samples to read."""

    token_budget: int | None = Field(default=None, ge=1)
    """Tokens computed at once: memory and time, never the numbers. None: 8,192, or 2,048 on a CPU."""
    slice_by: str | None = None
    """A column of the evaluation data; accuracy is also given by bins of its numbers, or by its words."""
    slice_edges: tuple[float, ...] | None = None
    """Ascending edges of the bins, both ends included; None cuts the column into quarters."""
    human: str | None = None
    """A column that holds each pair's share of single raters who agree with the rest: the human ceiling."""
    agreement: str | None = None
    """A column that holds each pair's share of raters who prefer the chosen completion: calibration is against it."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples of each interval."""
    samples: int = Field(default=4, ge=0)
    """Evaluation prompts to complete before and after training; 0 for none."""
    samples_per_prompt: int = Field(default=2, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens a sample may have."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the samples; 0 takes the likeliest token."""

    @field_validator("slice_edges")
    @classmethod
    def _ascending(cls, edges: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if edges is not None and (len(edges) < 2 or any(b <= a for a, b in pairwise(edges))):
            raise ValueError(f"the edges {list(edges)} must be at least two ascending numbers")
        return edges
