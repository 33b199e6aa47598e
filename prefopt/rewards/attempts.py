"""What a scorer sees of a completion: its prompt and row, the text, and its thinking split off from the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from prefopt.rewards.config import ThinkingSection

Message = Mapping[str, Any]


class RolloutColumns(Protocol):
    """What scorers read of a sampled completion beside its text."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The completion as sampled, with its end of turn unless it was cut."""

    @property
    def policy(self) -> float:
        """Log pi(y|x), nats."""

    @property
    def reference(self) -> float | None:
        """The same under the reference; None where there is none."""


@dataclass(frozen=True)
class Split:
    """A completion taken apart."""

    answer: str
    thinking: str | None
    """None where there is none."""
    broken: bool
    """The tags are not one opening before the answer and one closing, or are not there though they are required."""


@dataclass(frozen=True)
class Attempt:
    """One completion to score."""

    prompt: str | tuple[Message, ...]
    row: Mapping[str, Any]
    """Every other column of the prompt's row, such as the right answer."""
    text: str
    """The completion whole, without special tokens."""
    answer: str
    """What of it is behind the thinking: what verifiers read."""
    thinking: str | None = None
    broken: bool = False
    """Thinking is missing where it is required, or its tags make no sense."""
    rollout: RolloutColumns | None = None
    """The completion as it was sampled, where it was."""


def make_attempt(
    prompt: str | tuple[Message, ...],
    text: str,
    *,
    row: Mapping[str, Any] | None = None,
    thinking: ThinkingSection | None = None,
    opened: bool = False,
    rollout: RolloutColumns | None = None,
) -> Attempt:
    """Return an attempt, its thinking split off as the recipe's `thinking` section says; without one, all is answer.

    `opened` says that the prompt as the model read it ends with the opening tag: see `opens_thinking`.
    """
    if thinking is None:
        parts = Split(text, None, broken=False)
    else:
        parts = split_thinking(
            text, open=thinking.open, close=thinking.close, opened=opened, required=thinking.required
        )
    return Attempt(prompt, row or {}, text, parts.answer, parts.thinking, parts.broken, rollout)


def opens_thinking(prompt: str, tag: str) -> bool:
    """Return whether a prompt, as the template writes it, ends with the opening tag: then answers don't have it."""
    return prompt.rstrip().endswith(tag)


def split_thinking(text: str, *, open: str, close: str, opened: bool = False, required: bool = False) -> Split:
    """Return the answer and the thinking of a completion.

    Thinking stands first, between one opening and one closing tag; where the prompt opened it (`opened`), it begins
    with the text. A second tag of either kind, words before the opening one, a closing tag that nothing opened, or an
    opening one that nothing closes are broken thinking. The answer then is what stands behind the last closing tag:
    nothing, where something was opened and never closed.

    Args:
        text: the completion.
        open: the opening tag.
        close: the closing tag.
        opened: the prompt ends with the opening tag.
        required: whether a completion without thinking is broken.
    """
    opens, closes = text.count(open) + opened, text.count(close)
    if not opens and not closes:
        return Split(text, None, broken=required)
    before, _, answer = text.rpartition(close) if closes else (text, "", "")
    outside, tag, inner = before.partition(open)
    thinking = before if opened or not tag else inner
    if open in answer:  # thinking that never ends
        answer = ""
    tidy = opens == closes == 1 and (opened or (bool(tag) and not outside.strip()))
    return Split(answer.lstrip(), thinking.strip(), broken=not tidy)
