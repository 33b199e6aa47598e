"""The next token of every row: from logits and one uniform number each, so that a row has its own randomness."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.errors import ModelError, RecipeError

_CHUNK = 256
"""Tokens whose probabilities are summed first: a running sum over the whole vocabulary takes several times as long."""


@dataclass(frozen=True)
class Sampler:
    """What tokens are drawn from: the model's distribution, or that changed by temperature, top-k and top-p in turn.

    Raises:
        RecipeError: a setting is out of range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """The likeliest tokens that make up this share; at least one."""
    top_k: int = 0
    """The k likeliest tokens, and those as likely as the last of them; 0 for all."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RecipeError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise RecipeError(f"temperature is {self.temperature}; it must be 0 (the likeliest token) or more.")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.top_k < 0:
            raise RecipeError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more.")

    @property
    def q(self) -> dict[str, Any]:
        """What says how samples are distributed, beside the policy itself."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_new_tokens": self.max_new_tokens,
        }

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Return the next tokens, (R,) int64.

        Args:
            logits: (R, V) of the model.
            uniform: (R,) float64 in [0, 1); the token is where the running sum of the probabilities passes it.

        Raises:
            ModelError: a row has no finite highest logit.
        """
        scores = logits.float()
        if self.temperature not in (0, 1):
            scores = scores / self.temperature
        highest = scores.amax(-1, keepdim=True)
        if not bool(highest.isfinite().all()):
            raise ModelError(
                f"the model gives logits that are no finite numbers (at temperature {self.temperature:g}), so nothing "
                "can be drawn from them: its weights have diverged, or the temperature is too small."
            )
        if self.temperature == 0:
            return scores.argmax(-1)
        if 0 < self.top_k < scores.shape[-1]:
            least = scores.topk(self.top_k, dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        weight = (scores - highest).exp()
        if self.top_p < 1:
            weight = _nucleus(weight, self.top_p)
        return _where_passed(weight, uniform.to(weight.device))


def _nucleus(weight: Tensor, share: float) -> Tensor:
    """Return the weights (R, V) with 0 for all but the likeliest that make up `share`."""
    ordered, place = weight.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered
    ordered = ordered.masked_fill(before >= share * ordered.sum(-1, keepdim=True, dtype=torch.float64), 0)
    return torch.zeros_like(weight).scatter_(-1, place, ordered)


def _where_passed(weight: Tensor, uniform: Tensor) -> Tensor:
    """Return the tokens (R,) at which the running sum of the weights (R, V) passes `uniform` of the whole."""
    rows, size = weight.shape
    chunks = torch.nn.functional.pad(weight, (0, -size % _CHUNK)).view(rows, -1, _CHUNK)
    sums = chunks.sum(-1, dtype=torch.float64).cumsum(-1)
    chunk, passed = _first_above(sums, uniform * sums[:, -1])
    inner = chunks[torch.arange(rows, device=weight.device), chunk].cumsum(-1, dtype=torch.float64)
    token, _ = _first_above(inner, passed)
    return chunk * _CHUNK + token


def _first_above(sums: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return where running sums (R, C) are first above a value (R,), and what it is above the sum before that place.

    That place has a weight above 0. A value that rounding made as large as the whole is taken for one just below.
    """
    last = sums[:, -1]
    value = torch.minimum(value, torch.nextafter(last, torch.zeros_like(last)))
    at = torch.searchsorted(sums, value[:, None], right=True)[:, 0]
    before = torch.where(at > 0, sums.gather(1, (at - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    return at, value - before


def sample_seed(seed: int, key: str, sample: int) -> int:
    """Return the seed of one sample, below 2**63: a function of the run's seed, the prompt's key and its number."""
    digest = hashlib.sha256(f"{seed}/{key}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """Return (R, steps) float64: for each row, the numbers that its tokens are drawn with, those of its seed alone."""
    drawn = [np.random.Generator(np.random.PCG64(seed)).random(steps) for seed in seeds]
    return torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros(0, steps, dtype=torch.float64)
