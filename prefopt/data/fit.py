"""What becomes of a row that is longer than `max_length`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prefopt.data.packed import WIDTH
from prefopt.data.rows import RowError

Truncation = Literal["drop", "keep_end", "cut_completion"]


class TooLongError(RowError):
    """A row that is longer than `max_length`; `needed` is the length that would hold it."""

    def __init__(self, reason: str, needed: int) -> None:
        super().__init__(reason, f"{needed} tokens")
        self.needed = needed


@dataclass(frozen=True)
class Fitted:
    """A row that was cut to fit."""

    prompt: bytes
    completions: tuple[bytes, ...]
    prompt_cut: bool = False
    cut: tuple[bool, ...] = ()
    """Of each completion; () where none is."""


def fit(
    prompt: bytes, completions: Sequence[bytes], max_length: int, truncation: Truncation, *, bos: bytes | None
) -> Fitted | None:
    """Cut a row (packed ids) to `max_length` tokens of prompt and longest completion; None if it is no longer.

    "keep_end" keeps the end of the prompt, behind its BOS if it has one. "cut_completion" keeps the prompt whole, and
    the start of each completion that doesn't fit: at least one token, without the end-of-turn.

    Raises:
        TooLongError: the row is not to be cut, or has no room for what may not be cut.
    """
    own, longest = len(prompt) // WIDTH, max(map(len, completions)) // WIDTH
    if own + longest <= max_length:
        return None
    if truncation == "keep_end":
        return _keep_end(prompt, completions, max_length - longest, own + longest, bos)
    if own >= max_length:
        raise TooLongError("prompt longer than max_length", own + longest)
    if truncation == "drop":
        raise TooLongError("longer than max_length", own + longest)
    room = (max_length - own) * WIDTH
    cut = tuple(len(completion) > room for completion in completions)
    return Fitted(prompt, tuple(completion[:room] for completion in completions), cut=cut)


def _keep_end(prompt: bytes, completions: Sequence[bytes], room: int, needed: int, bos: bytes | None) -> Fitted:
    kept = bos if bos is not None and prompt.startswith(bos) else b""
    if room * WIDTH <= len(kept):
        raise TooLongError("completion longer than max_length", needed)
    return Fitted(kept + prompt[len(prompt) - room * WIDTH + len(kept) :], tuple(completions), prompt_cut=True)
