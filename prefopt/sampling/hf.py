"""The `hf` engine: the model in training samples itself, with the weights, quantization and adapter that it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefopt.errors import RecipeError
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.sampling.draw import Sampler, sample_seed
from prefopt.sampling.engine import Drawn, Judge
from prefopt.sampling.generation import encode, sample_ids
from prefopt.sampling.prompts import end_of_turn_ids
from prefopt.sampling.rollouts import Prompt, Rollout


class HfEngine:
    """Samples with the policy as it stands.

    Args:
        policy: the model, with or without an adapter.
        tokenizer: its tokenizer.
        sampler: what tokens are drawn from.
        reference: what log-probs are compared with, if anything.
        batch_size: completions computed at once.
        token_budget: tokens scored at once; None takes what suits the device.
    """

    name = "hf"

    def __init__(
        self,
        policy: PackedModel,
        tokenizer: Any,
        sampler: Sampler,
        *,
        reference: Reference | None = None,
        batch_size: int = 64,
        token_budget: int | None = None,
    ) -> None:
        self.policy = policy
        self.sampler = sampler
        self.batch_size = batch_size
        self._tokenizer = tokenizer
        ends = tuple(end_of_turn_ids(policy.model, tokenizer))
        self.judge = Judge(policy, tokenizer, ends, reference, token_budget)

    @property
    def q(self) -> dict[str, Any]:
        """The sampler's settings."""
        return {"engine": self.name, **self.sampler.q}

    def sample(self, shard: Sequence[Prompt], *, n: int, seed: int) -> list[Rollout]:
        """Return n rollouts of each prompt, in order.

        A prompt is computed once for its n samples; those that ended leave the batch. The same shard, n, seed and
        weights give the same bits with the same number of threads. A sample's random numbers are those of the seed, the
        prompt's id and its own number: in another shard it differs only where rounding decides between two tokens.

        Raises:
            RecipeError: `n` is below 1.
            DataError: a prompt can't be encoded, or leaves no room for a completion.
            ModelError: a log-prob is not finite.
        """
        if n < 1:
            raise RecipeError(f"sample.n is {n}; it must be at least 1.")
        model, limit = self.policy.model, self.sampler.max_new_tokens
        prompts = [encode(model, self._tokenizer, one.prompt, limit, f"prompt {one.prompt_id}") for one in shard]
        seeds = [[sample_seed(seed, one.prompt_id, sample) for sample in range(n)] for one in shard]
        with self.policy.detached():
            rows = sample_ids(model, prompts, seeds, self.sampler, ends=self.judge.ends, batch_size=self.batch_size)
        return self.judge.rollouts(
            [
                Drawn(one.prompt_id, sample, seeds[at][sample], tuple(prompts[at]), rows[at][sample])
                for at, one in enumerate(shard)
                for sample in range(n)
            ]
        )
