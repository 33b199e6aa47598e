"""What samples: one interface for the model in training, another program, or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prefopt.data import Example
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.models.scoring import example_logprobs
from prefopt.sampling.generation import completion_text
from prefopt.sampling.rollouts import Prompt, Rollout


class Engine(Protocol):
    """Samples completions of a shard of prompts."""

    @property
    def name(self) -> str:
        """As a recipe says it."""

    @property
    def q(self) -> dict[str, Any]:
        """What samples are drawn from besides the policy: temperature, top_p, top_k, and what else the engine knows."""

    @property
    def judge(self) -> Judge:
        """What gives completions their log-probs."""

    def sample(self, shard: Sequence[Prompt], *, n: int, seed: int) -> list[Rollout]:
        """Return n rollouts of each prompt, in the order of the prompts and then of the samples.

        They are a function of the policy, the shard, n and the seed.
        """


@dataclass(frozen=True)
class Drawn:
    """A completion before anything is computed of it."""

    prompt_id: str
    sample: int
    seed: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Judge:
    """Gives every completion its log-probs under policy and reference, by prefopt's kernel, and its text.

    A sampler's own log-probs are after its temperature and its cuts; these are the policy's.
    """

    policy: PackedModel
    tokenizer: Any
    ends: tuple[int, ...]
    """Tokens that end a completion."""
    reference: Reference | None = None
    token_budget: int | None = None
    """Tokens computed at once; None takes what suits the device."""

    def rollouts(self, drawn: Sequence[Drawn]) -> list[Rollout]:
        """Return the rollouts in order; the completions of one prompt that stand together share its computation.

        Raises:
            ModelError: a log-prob is not finite.
        """
        if not drawn:
            return []
        grouped: list[list[Drawn]] = []
        for one in drawn:
            if grouped and grouped[-1][0].prompt_ids == one.prompt_ids:
                grouped[-1].append(one)
            else:
                grouped.append([one])
        examples = [Example(group[0].prompt_ids, tuple(one.token_ids for one in group)) for group in grouped]
        policy, reference = example_logprobs(examples, self.policy, self.reference, self.token_budget)
        return [
            Rollout(
                prompt_id=one.prompt_id,
                sample=one.sample,
                seed=one.seed,
                prompt_ids=one.prompt_ids,
                token_ids=one.token_ids,
                text=completion_text(self.tokenizer, one.token_ids, self.ends),
                finish="end" if one.token_ids[-1] in self.ends else "length",
                policy=float(policy[at]),
                reference=None if reference is None else float(reference[at]),
            )
            for at, one in enumerate(drawn)
        ]

    def moved(self, rollouts: Sequence[Rollout], behind: Mapping[str, tuple[int, ...]], samples: int) -> list[Rollout]:
        """Return the same completions behind other prompts, with the log-probs that they have there.

        Args:
            rollouts: completions of one prompt stand together.
            behind: prompt id -> the token ids that they follow now.
            samples: that each prompt has already: theirs are counted from it.

        Raises:
            ModelError: a log-prob is not finite.
        """
        return self.rollouts(
            [
                Drawn(one.prompt_id, samples + one.sample, one.seed, behind[one.prompt_id], one.token_ids)
                for one in rollouts
            ]
        )
