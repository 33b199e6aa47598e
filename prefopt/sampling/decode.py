"""Token by token: prompts go through the model once, their samples branch off a copy of its cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from prefopt.sampling.draw import Sampler

OnToken = Callable[[int], object]
_DROP = 8
"""Rows that ended are dropped from the batch when they are one in so many of it: dropping copies the cache, which
costs what a step's growing of the cache costs."""
_ORIGINAL = "original_max_position_embeddings"
_BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies follow the longest position: what was cached is of others."""


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    repeats: Sequence[int],
    uniform: Tensor,
    sampler: Sampler,
    *,
    ends: Sequence[int],
    on_token: OnToken | None = None,
) -> list[tuple[int, ...]]:
    """Return the sampled tokens of every row; a row ends with one of `ends` unless it was cut.

    Args:
        model: a causal language model, without PEFT's wrapper, in evaluation mode.
        prompts: token ids; those of one call go through the model together, padded on the left.
        repeats: how many rows each prompt has.
        uniform: (rows, max_new_tokens) float64, what each row's tokens are drawn with.
        sampler: what tokens are drawn from.
        ends: tokens that end a row.
        on_token: is given every token of the first row as it is drawn.
    """
    longest = max(map(len, prompts)) + sampler.max_new_tokens
    if not _keeps_a_cache(model, longest):
        return _decode_anew(model, prompts, repeats, uniform, sampler, ends, on_token)
    rows = _Rows(model, prompts, repeats)
    found: list[list[int]] = [[] for _ in range(rows.size)]
    for step in range(sampler.max_new_tokens):
        at = torch.tensor(rows.numbers)
        tokens = sampler.draw(rows.logits, uniform[at, step])
        alive = _take(tokens, rows.numbers, found, ends, on_token)
        if step + 1 == sampler.max_new_tokens or not any(alive):
            break
        rows.forward(tokens, alive)
    return [tuple(row) for row in found]


class _Rows:
    """The rows that are computed: those that go on, and some that ended and are not dropped yet."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> None:
        self._model = model
        self._accepts = _accepts(model)
        self._cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        ids, mask = left_padded(prompts, model.device)
        self._mask = mask if int(mask.min()) == 0 else None
        self._next = mask.sum(1, keepdim=True)  # (R, 1), the position of the next token
        places = (mask.cumsum(1) - 1).clamp(min=0)
        self.logits = self._pass(ids, places, first=True)
        copies = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(repeats)).to(model.device)
        self.numbers = list(range(len(copies)))
        """The row's number in the call, of each row that is computed."""
        if len(copies) != len(prompts):
            self._keep(copies)
            self.logits = self.logits[copies]

    @property
    def size(self) -> int:
        return len(self.numbers)

    def forward(self, tokens: Tensor, alive: list[bool]) -> None:
        """Compute the logits behind `tokens` (R,), of at least those rows that are alive."""
        ended = len(alive) - sum(alive)
        if ended * _DROP >= len(alive):
            kept = torch.tensor([at for at, lives in enumerate(alive) if lives], device=tokens.device)
            self._keep(kept)
            tokens = tokens[kept]
            self.numbers = [self.numbers[at] for at in kept.tolist()]
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], 1)
        self.logits = self._pass(tokens[:, None], self._next, first=False)
        self._next = self._next + 1

    def _keep(self, rows: Tensor) -> None:
        """Make the cache's rows these of them, one or several times each."""
        self._cache.reorder_cache(rows)
        self._next = self._next[rows]
        if self._mask is not None:
            self._mask = self._mask[rows]

    def _pass(self, tokens: Tensor, places: Tensor, *, first: bool) -> Tensor:
        given: dict[str, Any] = {_cache_name(self._model): self._cache, "attention_mask": self._mask, "use_cache": True}
        if "position_ids" in self._accepts:
            given["position_ids"] = places
        if "logits_to_keep" in self._accepts:
            given["logits_to_keep"] = 1
        inputs = self._model.prepare_inputs_for_generation(tokens, is_first_iteration=first, **given)
        logits: Tensor = self._model(**inputs, return_dict=True).logits
        return logits[:, -1]


def _decode_anew(
    model: Any,
    prompts: Sequence[Sequence[int]],
    repeats: Sequence[int],
    uniform: Tensor,
    sampler: Sampler,
    ends: Sequence[int],
    on_token: OnToken | None,
) -> list[tuple[int, ...]]:
    """Decode prompt by prompt without a cache, where what was cached would be wrong or can't be."""
    found: list[list[int]] = [[] for _ in range(len(uniform))]
    start = 0
    for prompt, count in zip(prompts, repeats, strict=True):
        numbers = list(range(start, start + count))
        start += count
        _forget_longer_rows(model)
        for step in range(sampler.max_new_tokens):
            ids = torch.tensor([[*prompt, *found[number]] for number in numbers], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            tokens = sampler.draw(logits, uniform[torch.tensor(numbers), step])
            alive = _take(tokens, numbers, found, ends, on_token)
            numbers = [number for number, lives in zip(numbers, alive, strict=True) if lives]
            if not numbers:
                break
    return [tuple(row) for row in found]


def _take(
    tokens: Tensor, numbers: Sequence[int], found: list[list[int]], ends: Sequence[int], on_token: OnToken | None
) -> list[bool]:
    """Append the tokens to the rows that had not ended; return which go on."""
    alive = []
    for number, token in zip(numbers, tokens.tolist(), strict=True):
        row = found[number]
        if not (row and row[-1] in ends):
            row.append(token)
            if number == 0 and on_token is not None:
                on_token(token)
        alive.append(row[-1] not in ends)
    return alive


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both (B, T) int64; the rows end together at the right. Padding is masked: any token does."""
    width = max(map(len, rows))
    ids = [[0] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def batches(lengths: Sequence[int], n: int, rows: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yield what goes through the model together, prompts of similar length: (prompt, first sample, samples).

    Args:
        lengths: of the prompts, in tokens.
        n: samples of each prompt.
        rows: most samples at once. More of one prompt are cut into runs, each of which computes the prompt again.
    """
    order = sorted(range(len(lengths)), key=lambda at: (lengths[at], at))
    held: list[tuple[int, int, int]] = []
    for at in order:
        for first in range(0, n, rows):
            count = min(rows, n - first)
            if held and sum(part[2] for part in held) + count > rows:
                yield held
                held = []
            held.append((at, first, count))
    if held:
        yield held


def _accepts(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _cache_name(model: Any) -> str:
    return "cache_params" if "cache_params" in _accepts(model) else "past_key_values"


def _keeps_a_cache(model: Any, longest: int) -> bool:
    """Whether the model has a cache, and one that stays right up to this length."""
    config = model.config.get_text_config(decoder=True)
    parameters = getattr(config, "rope_parameters", None) or {}
    entries = [entry for entry in (parameters, *parameters.values()) if isinstance(entry, Mapping)]
    for entry in entries:
        if str(entry.get("rope_type", "")) in _BY_LENGTH:
            known = [
                getattr(config, "max_position_embeddings", None),
                getattr(config, _ORIGINAL, None),
                entry.get(_ORIGINAL),
            ]
            if longest > min(length for length in known if length is not None):
                return False
    return bool(model._supports_default_dynamic_cache())


def _forget_longer_rows(model: Any) -> None:
    """Take the rotary frequencies of short rows, which dynamic ones leave when a row is long."""
    for rope in model.modules():
        if "dynamic" in str(getattr(rope, "rope_type", "")):
            rope.inv_freq = rope.original_inv_freq.to(rope.inv_freq.device)
            rope.max_seq_len_cached = rope.original_max_seq_len
