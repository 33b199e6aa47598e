"""The records that cross a boundary between rooms.

Letters: N scored tokens, S completions, P pairs, U labelled examples, Q lists, E entries of lists, M mismatched
completions, T tokens of a row, R rows, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

Scores = Literal["unused", "given", "ordered"]
"""What a loss asks of scores: nothing; one for every completion; in a pair, chosen's above rejected's besides."""
LARGEST_SCORE = torch.finfo(torch.float32).max
"""Scores travel in float32."""


@dataclass(frozen=True)
class Group:
    """One prompt, its distinct completions, and what is known of them. Everything is token ids.

    An example is a pair, a labelled completion or a scored list; a group may hold several of one step, and they may
    name the same completion more than once: it is computed once and counted as often as it is named.
    """

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int], ...] = ()
    """(chosen, rejected), indices into `completions`."""
    labels: tuple[tuple[int, bool], ...] = ()
    """(index into `completions`, desirable?)."""
    mismatched: tuple[int, ...] = ()
    """Indices into `completions` that belong to another prompt and only measure a shift (KTO)."""
    pair_scores: tuple[tuple[float, float], ...] = ()
    """Scores of each pair's two completions, NaN where they are not known; () where no pair has any."""
    lists: tuple[tuple[tuple[int, float], ...], ...] = ()
    """(index into `completions`, its score) of each completion of each list."""

    @property
    def tokens(self) -> int:
        """Tokens of the group when its prompt stands once."""
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True)
class GroupLayout:
    """Where one group lies in a row: the prompt at `start`, its completions behind it without gaps."""

    start: int
    prompt: int
    """Length of the prompt, in tokens."""
    completions: tuple[int, ...]
    """Length of each completion, in tokens."""

    @property
    def stop(self) -> int:
        return self.start + self.prompt + sum(self.completions)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each prompt and completion of a shared-prompt row lies; drives the attention.

    `plans` holds what the attention derives from the layout (indices, masks), made once for a pack.
    """

    groups: tuple[GroupLayout, ...]
    plans: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, shape: Iterable[tuple[int, Sequence[int]]]) -> Layout:
        """Return the layout of groups side by side, from the lengths of each one's prompt and completions."""
        groups: list[GroupLayout] = []
        start = 0
        for prompt, completions in shape:
            groups.append(GroupLayout(start, prompt, tuple(completions)))
            start = groups[-1].stop
        return cls(tuple(groups))

    @property
    def tokens(self) -> int:
        """T, the length of the row."""
        return self.groups[-1].stop if self.groups else 0

    def without_ends(self) -> Layout:
        """Return the layout without the completions' last tokens, whose states predict nothing."""
        return Layout.of((group.prompt, tuple(n - 1 for n in group.completions if n > 1)) for group in self.groups)

    def attended(self, window: int | None = None) -> int:
        """Return how many keys all queries of the row look at together; with a window, each at no more than that."""

        def causal(length: int) -> int:
            seen = length if window is None else min(length, window)
            return seen * (seen + 1) // 2 + (length - seen) * seen

        total = 0
        for group in self.groups:
            prompt = causal(group.prompt)
            total += prompt + sum(causal(group.prompt + length) - prompt for length in group.completions)
        return total


@dataclass(frozen=True, eq=False)
class Pack:
    """Whole groups of one step as model input, and where their completion tokens are scored.

    With shared prompts there is one row without padding and `layout` says what lies where. Without, each
    completion is a row of its own behind a copy of its prompt, right-padded, and `mask` marks the real tokens.
    `score_at` indexes the flattened (R * T) hidden states.
    """

    tokens: Tensor
    """(R, T) int64; R = 1 with shared prompts."""
    position: Tensor
    """(R, T) int64; every completion restarts at its own prompt's length."""
    score_at: Tensor
    """(N,) int64, the hidden states that predict completion tokens."""
    target: Tensor
    """(N,) int64, the token each must predict."""
    segment: Tensor
    """(N,) int64, ascending; which of the S completions each belongs to."""
    length: Tensor
    """(S,) int64, completion tokens."""
    pair: Tensor
    """(P, 2) int64, (chosen, rejected) completion of each pair."""
    labelled: Tensor
    """(U,) int64, the completion of each labelled example."""
    label: Tensor
    """(U,) bool, desirable?"""
    mismatched: Tensor
    """(M,) int64, mismatched completions."""
    pair_score: Tensor
    """(P, 2) float32, the scores of each pair's completions; NaN where they are not known."""
    listed: Tensor
    """(E,) int64, the completion of each entry of a list."""
    list_index: Tensor
    """(E,) int64, ascending from 0 without gaps; which of the Q lists each entry belongs to."""
    list_score: Tensor
    """(E,) float32, the score of each entry."""
    layout: Layout | None = None
    """Set with shared prompts."""
    mask: Tensor | None = None
    """(R, T) int64, 1 on real tokens; set without shared prompts."""

    @property
    def num_sequences(self) -> int:
        """S."""
        return int(self.length.numel())

    @property
    def num_examples(self) -> int:
        """Pairs, labelled completions and lists."""
        return int(self.pair.shape[0] + self.labelled.numel()) + self.num_lists

    @property
    def num_lists(self) -> int:
        """Q."""
        return int(self.list_index[-1]) + 1 if self.list_index.numel() else 0

    def to(self, device: torch.device | str) -> Pack:
        """Return the pack with every tensor on `device`; the layout travels along."""
        if self.tokens.device == torch.device(device):
            return self
        moved: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


def _no_index() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class TokenLogprobs:
    """Log-probs token by token, of every completion one after the other."""

    policy: Tensor
    """(N,) float32, nats."""
    reference: Tensor | None
    """(N,) float32, nats; None for a loss that needs no reference."""
    segment: Tensor
    """(N,) int64, ascending; which of the S completions each token belongs to."""


@dataclass(frozen=True, eq=False)
class SequenceLogprobs:
    """What a loss sees: sums of log-probs over completion tokens, and which completions form examples.

    The last three are there for a loss whose `extras` ask for them.
    """

    policy: Tensor
    """(S,) float32, nats."""
    reference: Tensor | None
    """(S,) float32, nats; None for a loss that needs no reference."""
    length: Tensor
    """(S,) int64, completion tokens."""
    pair: Tensor
    """(P, 2) int64, (chosen, rejected)."""
    labelled: Tensor
    """(U,) int64."""
    label: Tensor
    """(U,) bool, desirable?"""
    mismatched: Tensor
    """(M,) int64."""
    pair_score: Tensor | None = None
    """(P, 2) float32, scores of (chosen, rejected); NaN where they are not known."""
    listed: Tensor = field(default_factory=_no_index)
    """(E,) int64, the completion of each entry of a list."""
    list_index: Tensor = field(default_factory=_no_index)
    """(E,) int64, ascending from 0 without gaps; which of the Q lists each entry belongs to."""
    list_score: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(E,) float32, the score of each entry."""
    token: TokenLogprobs | None = None
    """The log-probs that `policy` and `reference` are sums of, differentiable."""
    log_sum_p2: Tensor | None = None
    """(S,) float32, nats: the sum over a completion's tokens of log sum_v pi(v|...)^2, without gradient."""
    divergence: Tensor | None = None
    """(S,) float32, nats: the sum over a completion's tokens of KL(pi_ref || pi), differentiable in the policy."""


@dataclass(frozen=True, eq=False)
class LossPart:
    """One loss of a mixture, unreduced: it adds factor * sum(loss) / sum(weight) over a step to the step's loss."""

    name: str
    factor: float
    loss: Tensor
    """(P,), (U,), (Q,) or of what else it counts, float32, already multiplied by its weight."""
    weight: Tensor
    """Same shape."""


@dataclass(frozen=True, eq=False)
class LossOutput:
    """A loss per example, unreduced: step loss = sum(loss) / sum(weight) over all packs and ranks of a step.

    With `parts` this holds of each part by itself, and `loss` and `weight` are so only of all that was given at once.
    """

    loss: Tensor
    """(P,), (U,) or (Q,) float32, already multiplied by its weight."""
    weight: Tensor
    """Same shape: what each example adds to the divisor; 1 for most losses. A function of lengths, labels and scores
    alone: the divisor of a step is known before its log-probs are."""
    reward: Tensor
    """(S,) float32, the implicit reward of every completion, detached."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """To log, detached: what is one number a step as a scalar, of anything else all values, to be averaged."""
    parts: tuple[LossPart, ...] = ()
    """Of a mixture."""

    @classmethod
    def of_parts(cls, parts: tuple[LossPart, ...], *, reward: Tensor, metrics: dict[str, Tensor]) -> LossOutput:
        """Return the output of a mixture; a part without any weight adds nothing."""
        scaled = [part.factor * part.loss / part.weight.sum().clamp(min=1e-30) for part in parts]
        loss = torch.cat(scaled)
        return cls(loss, torch.full_like(loss.detach(), 1 / max(1, loss.numel())), reward, metrics, parts)

    @property
    def terms(self) -> tuple[LossPart, ...]:
        """What is normalised by itself: the parts, or all of a loss that has none."""
        return self.parts or (LossPart("", 1.0, self.loss, self.weight),)
