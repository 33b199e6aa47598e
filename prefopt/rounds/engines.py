"""The engine that a recipe names, with the policy of a round loaded into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from prefopt.data import Example
from prefopt.eval.score import example_logprobs
from prefopt.models import load_policy
from prefopt.models.adapters import copy_weights
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference, build_reference
from prefopt.rounds.config import SampleConfig
from prefopt.rounds.recipe import RoundsRecipe
from prefopt.sampling import Prompt, Rollout, encode_prompt, end_of_turn_ids, generate_ids


class Engine(Protocol):
    """Answers prompts."""

    name: str
    q: dict[str, Any]

    def sample(self, shard: Sequence[Prompt], *, n: int, seed: int) -> list[Rollout]:
        """Return n rollouts of each prompt, in order: a function of the shard, n and the seed alone."""


@contextmanager
def open_engine(recipe: RoundsRecipe, sample: SampleConfig, policy: Path | None) -> Iterator[Engine]:
    """Load the policy, and what it is compared with: the model as the first round found it.

    Args:
        recipe: names the model, which is the reference, or another reference model.
        sample: how it answers.
        policy: what a round trained; None is the recipe's model.
    """
    model, tokenizer = load_policy(recipe.model, seed=recipe.train.arguments().seed)
    packed = PackedModel(model)
    # Whatever training compares with, KL is measured to where the run began, or to the model that the recipe names.
    wanted = recipe.reference if recipe.reference.kind == "model" else "auto"
    reference = build_reference(wanted, packed, needed=True, tokenizer=tokenizer)
    if policy is not None:
        copy_weights(model, policy)
    yield Plain(packed, reference, tokenizer, sample)


class Plain:
    """Samples by `generate_ids`."""

    name = "hf"

    def __init__(self, packed: PackedModel, reference: Reference, tokenizer: Any, sample: SampleConfig) -> None:
        self.packed, self.reference, self.tokenizer, self.config = packed, reference, tokenizer, sample
        self.q: dict[str, Any] = {"temperature": sample.temperature, "top_p": sample.top_p, "top_k": sample.top_k}

    def sample(self, shard: Sequence[Prompt], *, n: int, seed: int) -> list[Rollout]:
        prompts = [encode_prompt(self.tokenizer, prompt.prompt) for prompt in shard for _ in range(n)]
        ids = generate_ids(
            self.packed.model,
            self.tokenizer,
            prompts,
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            seed=seed,
            batch_size=64,
        )
        ends = end_of_turn_ids(self.packed.model, self.tokenizer)
        drawn = [Example(tuple(p), (tuple(c),)) for p, c in zip(prompts, ids, strict=True)]
        own, ref = example_logprobs(drawn, self.packed, self.reference, 8192)
        return [
            Rollout(
                shard[i // n].prompt_id,
                i % n,
                seed,
                d.prompt,
                d.completions[0],
                self.tokenizer.decode(list(d.completions[0]), skip_special_tokens=True),
                "end" if d.completions[0][-1] in ends else "length",
                float(own[i]),
                None if ref is None else float(ref[i]),
            )
            for i, d in enumerate(drawn)
        ]
