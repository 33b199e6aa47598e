"""Generate with the training model itself: batched and left-padded, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from peft import PeftModel
from transformers import TextStreamer

from prefopt.data.thinking import Thinking
from prefopt.errors import DataError, RecipeError
from prefopt.models.adapters import adapter_disabled
from prefopt.models.modes import evaluating
from prefopt.models.sharded import inside
from prefopt.sampling.decode import OnToken, batches, decode
from prefopt.sampling.draw import Sampler, sample_seed, uniforms
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
        batch_size: prompts at once; it changes memory and time, and samples only where a product rounds otherwise.
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
    return [completion_text(tokenizer, row, ends) for row in rows]


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
    sampler = Sampler(max_new_tokens, temperature, top_p)
    encoded = [
        encode(model, tokenizer, prompt, max_new_tokens, f"prompt {at}", thinking) for at, prompt in enumerate(prompts)
    ]
    seeds = [[sample_seed(seed, str(at), 0)] for at in range(len(encoded))]
    ends = end_of_turn_ids(model, tokenizer)
    found = sample_ids(model, encoded, seeds, sampler, ends=ends, batch_size=batch_size, adapter=adapter)
    return [rows[0] for rows in found]


def sample_ids(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    sampler: Sampler,
    *,
    ends: Sequence[int],
    batch_size: int,
    adapter: bool = True,
    on_token: OnToken | None = None,
) -> list[list[tuple[int, ...]]]:
    """Return, for each prompt, one row of tokens a seed; each ends with one of `ends` unless it was cut.

    A row depends on model, prompt, seed and sampler; on what else is sampled only through the rounding of products.

    Args:
        model: as of `generate`.
        prompts: token ids.
        seeds: equally many for each prompt, which is computed once for them.
        sampler: what tokens are drawn from.
        ends: tokens that end a row.
        batch_size: rows computed at once.
        adapter: as of `generate`.
        on_token: is given the tokens of each batch's first row as they are drawn.

    Raises:
        RecipeError: `batch_size` is below 1.
        ModelError: when the adapter is to be switched off and there is none.
    """
    if batch_size < 1:
        raise RecipeError(f"batch_size is {batch_size}; it must be at least 1.")
    found: list[list[tuple[int, ...]]] = [[] for _ in prompts]
    with _sampling(model, adapter=adapter) as base:
        for batch in batches([len(prompt) for prompt in prompts], len(seeds[0]) if seeds else 0, batch_size):
            own = [seed for at, first, count in batch for seed in seeds[at][first : first + count]]
            decoding = partial(
                decode,
                base,
                [prompts[at] for at, _, _ in batch],
                [count for _, _, count in batch],
                uniforms(own, sampler.max_new_tokens),
                sampler,
                ends=ends,
                on_token=on_token,
            )
            rows = iter(inside(model, decoding))
            for at, _, count in batch:
                found[at] += islice(rows, count)
    return found


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
    sampler = Sampler(max_new_tokens, temperature, top_p)
    encoded = encode(model, tokenizer, prompt, max_new_tokens, "prompt 0", thinking)
    pieces = _Pieces(tokenizer, on_text)
    ends, seeds = end_of_turn_ids(model, tokenizer), [[sample_seed(seed, "0", 0)]]
    sample_ids(model, [encoded], seeds, sampler, ends=ends, batch_size=1, adapter=adapter, on_token=pieces.take)
    pieces.end()
    return "".join(pieces.given)


class _Pieces(TextStreamer):
    def __init__(self, tokenizer: Any, on_text: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.given: list[str] = []
        self._on_text = on_text

    def take(self, token: int) -> None:
        self.put(torch.tensor([token]))

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.given.append(text)
            self._on_text(text)


@contextmanager
def _sampling(model: Any, *, adapter: bool) -> Iterator[Any]:
    """Give the module that computes logits, in evaluation mode and without gradients; put everything back after."""
    # LoRA lives inside the base model's modules, so the base model computes with it.
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with evaluating(model), nullcontext() if adapter else adapter_disabled(model), torch.no_grad():
        yield base


def encode(
    model: Any, tokenizer: Any, prompt: Prompt, max_new_tokens: int, name: str, thinking: Thinking = "keep"
) -> list[int]:
    """Return the token ids that a completion of up to `max_new_tokens` follows.

    Raises:
        DataError: the prompt, called by `name`, can't be encoded, or leaves no room for the completion.
    """
    try:
        ids = encode_prompt(tokenizer, prompt, thinking=thinking)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and len(ids) + max_new_tokens > room:
        raise DataError(
            f"{name} has {len(ids)} tokens, so {max_new_tokens} new ones don't fit into the model's {room}: "
            "shorten it, or lower max_new_tokens."
        )
    return ids


def completion_text(tokenizer: Any, row: Sequence[int], ends: Sequence[int]) -> str:
    """Return a row as text, up to where it ended and without special tokens."""
    stop = next((at for at, token in enumerate(row) if token in ends), len(row))
    return str(tokenizer.decode(row[:stop], skip_special_tokens=True))
