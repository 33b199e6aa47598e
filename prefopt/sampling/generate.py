"""Generate with the training model itself: batched and left-padded, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, TextStreamer

from prefopt.data.thinking import Thinking
from prefopt.errors import DataError, RecipeError
from prefopt.models.adapters import adapter_disabled
from prefopt.models.modes import evaluating
from prefopt.models.sharded import inside
from prefopt.sampling.prompts import Message, encode_prompt, end_of_turn_ids

Prompt = str | Sequence[Message] | Sequence[int]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 8,
    adapter: bool = True,
    thinking: Thinking = "keep",
) -> list[str]:
    """Return one completion a prompt, sampled from the model's own distribution up to its end of turn.

    The same arguments give the same texts; the global random state, the model's mode and its settings are left as
    they were.

    Args:
        model: a causal language model, with or without an adapter.
        tokenizer: its tokenizer.
        prompts: texts, or conversations (lists of {"role", "content"}) that go through the chat template.
        max_new_tokens: where a completion is cut if it does not end.
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the likeliest tokens that make up this share.
        seed: of the sampling.
        batch_size: prompts at once; it changes which samples are drawn, not their distribution.
        adapter: False samples from the model without its adapter.
        thinking: the recipe's `data.thinking`; "drop" asks the chat template for answers without a thought, as training
            did.

    Raises:
        RecipeError: when a setting is out of range.
        DataError: when a prompt can't be encoded, or leaves no room for `max_new_tokens`.
        ModelError: when the adapter is to be switched off and there is none.
    """
    if isinstance(prompts, str):
        raise DataError("prompts is one text; write [text] to continue it.")
    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed, "batch_size": batch_size}
    options |= {"adapter": adapter, "thinking": thinking}
    rows = generate_ids(model, tokenizer, prompts, max_new_tokens=max_new_tokens, **options)
    ends = end_of_turn_ids(model, tokenizer)
    return [_text(tokenizer, row, ends) for row in rows]


def generate_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 8,
    adapter: bool = True,
    thinking: Thinking = "keep",
) -> list[tuple[int, ...]]:
    """Return the token ids of one completion a prompt; it ends with its end-of-turn token unless it was cut.

    The arguments and errors are those of `generate`, whose texts these are.
    """
    encoded = [_encode(model, tokenizer, prompt, max_new_tokens, at, thinking) for at, prompt in enumerate(prompts)]
    config = _settings(model, tokenizer, max_new_tokens, temperature, top_p, batch_size)
    rows: list[tuple[int, ...]] = []
    with _sampling(model, config, seed=seed, adapter=adapter) as base:
        for start in range(0, len(encoded), batch_size):
            ids, mask = _left_padded(encoded[start : start + batch_size], config.pad_token_id, base.device)
            output = inside(model, partial(base.generate, input_ids=ids, attention_mask=mask))
            rows += [_ended(row, config.eos_token_id) for row in output[:, ids.shape[1] :].tolist()]
    return rows


def stream(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    on_text: Callable[[str], object],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    adapter: bool = True,
    thinking: Thinking = "keep",
) -> str:
    """Generate one completion, give its text to `on_text` piece by piece as words are complete, and return it whole.

    The arguments and errors are those of `generate`; so is the text, for a batch of this one prompt.
    """
    encoded = _encode(model, tokenizer, prompt, max_new_tokens, 0, thinking)
    config = _settings(model, tokenizer, max_new_tokens, temperature, top_p, 1)
    pieces = _Pieces(tokenizer, on_text)
    with _sampling(model, config, seed=seed, adapter=adapter) as base:
        ids, mask = _left_padded([encoded], config.pad_token_id, base.device)
        inside(model, partial(base.generate, input_ids=ids, attention_mask=mask, streamer=pieces))
    return "".join(pieces.given)


class _Pieces(TextStreamer):
    def __init__(self, tokenizer: Any, on_text: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.given: list[str] = []
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.given.append(text)
            self._on_text(text)


@contextmanager
def _sampling(model: Any, config: GenerationConfig, *, seed: int, adapter: bool) -> Iterator[Any]:
    """Give the module to call `generate` on, in evaluation mode and seeded; put everything back afterwards."""
    # LoRA lives inside the base model's modules, so the base model's `generate` samples with it.
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    devices = [base.device.index] if base.device.type == "cuda" else []
    # `generate` fills what its argument leaves open from the model's own settings (a repetition penalty, top-k);
    # putting ours in their place samples from the model's distribution as it is.
    before = base.generation_config
    with (
        evaluating(model),
        nullcontext() if adapter else adapter_disabled(model),
        torch.random.fork_rng(devices=devices),
        torch.no_grad(),
    ):
        torch.manual_seed(seed)
        base.generation_config = config
        try:
            yield base
        finally:
            base.generation_config = before


def _settings(
    model: Any, tokenizer: Any, max_new_tokens: int, temperature: float, top_p: float, batch_size: int
) -> GenerationConfig:
    if max_new_tokens < 1:
        raise RecipeError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
    if temperature < 0:
        raise RecipeError(f"temperature is {temperature}; it must be 0 (the likeliest token) or more.")
    if not 0 < top_p <= 1:
        raise RecipeError(f"top_p is {top_p}; it must be above 0 and at most 1.")
    if batch_size < 1:
        raise RecipeError(f"batch_size is {batch_size}; it must be at least 1.")
    ends = end_of_turn_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0  # masked wherever it stands
    sampled = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=ends or None,
        pad_token_id=pad,
        use_cache=True,
        **sampled,
    )


def _encode(model: Any, tokenizer: Any, prompt: Prompt, max_new_tokens: int, at: int, thinking: Thinking) -> list[int]:
    try:
        ids = encode_prompt(tokenizer, prompt, thinking=thinking)
    except DataError as error:
        raise DataError(f"prompt {at}: {error}") from error
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and len(ids) + max_new_tokens > room:
        raise DataError(
            f"prompt {at} has {len(ids)} tokens, so {max_new_tokens} new ones don't fit into the model's {room}: "
            "shorten it, or lower max_new_tokens."
        )
    return ids


def _left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both (B, T) int64; the prompts end together at the right."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _ended(row: Sequence[int], ends: Sequence[int] | None) -> tuple[int, ...]:
    """Return the tokens up to the first end of turn; what stands behind it is padding."""
    stop = next((at + 1 for at, token in enumerate(row) if token in (ends or ())), len(row))
    return tuple(row[:stop])


def _text(tokenizer: Any, row: Sequence[int], ends: Sequence[int] | None) -> str:
    stop = next((at for at, token in enumerate(row) if token in (ends or ())), len(row))
    return str(tokenizer.decode(row[:stop], skip_special_tokens=True))
