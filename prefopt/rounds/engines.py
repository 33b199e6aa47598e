"""The engine that a recipe names, with the policy of a round loaded into it."""

from __future__ import annotations

from pathlib import Path

from prefopt.models import load_policy
from prefopt.models.adapters import copy_weights
from prefopt.models.packed import PackedModel
from prefopt.models.references import build_reference
from prefopt.rounds.recipe import RoundsRecipe
from prefopt.sampling import Engine, HfEngine, SampleConfig, Sampler


def open_engine(recipe: RoundsRecipe, sample: SampleConfig, policy: Path | None) -> Engine:
    """Load a policy, and what it is compared with: the model as the first round found it.

    Args:
        recipe: names the model, which is the reference, or another reference model.
        sample: how prompts are answered.
        policy: what a round trained; None is the recipe's model.
    """
    model, tokenizer = load_policy(recipe.model, seed=recipe.train.arguments().seed)
    packed = PackedModel(model)
    # Whatever training compares with, KL is measured to where the run began, or to the model that the recipe names.
    wanted = recipe.reference if recipe.reference.kind == "model" else "auto"
    reference = build_reference(wanted, packed, needed=True, tokenizer=tokenizer)
    if policy is not None:
        copy_weights(model, policy)
    return HfEngine(
        packed,
        tokenizer,
        Sampler(sample.max_new_tokens, sample.temperature, sample.top_p, sample.top_k),
        reference=reference,
        batch_size=sample.batch_size,
        token_budget=sample.token_budget,
    )
