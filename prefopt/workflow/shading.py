"""Which words a policy was taught to prefer: completions cut into pieces of text, each with its log-ratio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefopt.data import Example
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.models.scoring import token_log_ratios

Tokens = tuple[int, ...]
Piece = tuple[str, float]
"""Text, and the sum of log pi - log pi_ref over its tokens, nats."""

MOST_TOKENS = 512
"""Tokens of a completion that are cut into pieces; the rest is not."""
_DIGITS = 4
_CUT = "\ufffd"
"""What a tokenizer writes for a character that is not whole yet."""


def pieces(
    policy: PackedModel,
    reference: Reference,
    tokenizer: PreTrainedTokenizerBase,
    completions: Sequence[tuple[Tokens, Tokens]],
    *,
    token_budget: int | None = None,
) -> list[list[Piece]] | None:
    """Return each completion as pieces of text with their log-ratios; special tokens are pieces too.

    A piece is a token, or as many as it takes to make whole characters. None for a reference without log-probs.

    Args:
        policy: the model.
        reference: what it is compared with.
        tokenizer: makes text of tokens.
        completions: (prompt, completion), each of tokens.
        token_budget: tokens computed at once; None takes what suits the device.
    """
    scored = [(prompt, completion[:MOST_TOKENS]) for prompt, completion in completions]
    examples = [Example(prompt, (completion,)) for prompt, completion in scored if completion]
    found = token_log_ratios(examples, policy, reference, token_budget)
    if found is None:
        return None
    ratios = iter(found)
    return [joined(cut(tokenizer, completion), next(ratios).tolist()) if completion else [] for _, completion in scored]


def cut(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Return the text that each token adds; nothing for one that ends inside a character, which the next completes."""
    texts: list[str] = []
    begun, done = 0, 0  # where the text that is compared begins, and up to where it was given out
    for end in range(1, len(tokens) + 1):
        before = tokenizer.decode(list(tokens[begun:done]), skip_special_tokens=False)
        now = tokenizer.decode(list(tokens[begun:end]), skip_special_tokens=False)
        if now.endswith(_CUT) and end < len(tokens):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        begun, done = done, end
    return texts


def joined(texts: Sequence[str], ratios: Sequence[float]) -> list[Piece]:
    """Return pieces: tokens without text of their own add to the next that has some, or at the end to the last."""
    found: list[Piece] = []
    waiting = 0.0
    for text, ratio in zip(texts, ratios, strict=True):
        waiting += ratio
        if text:
            found.append((text, round(waiting, _DIGITS)))
            waiting = 0.0
    if waiting and found:
        text, ratio = found[-1]
        found[-1] = (text, round(ratio + waiting, _DIGITS))
    return found
