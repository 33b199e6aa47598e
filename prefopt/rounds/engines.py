"""The engine that a recipe names, with the policy of a round loaded into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefopt.rounds.recipe import RoundsRecipe
from prefopt.sampling import Engine, FileEngine, HfEngine, SampleConfig, Sampler, VllmEngine
from prefopt.workflow.weights import divergence_from, load_beside


def open_engine(recipe: RoundsRecipe, sample: SampleConfig, policy: Path | None) -> Engine:
    """Load a policy, and what it is compared with: the model as the first round found it.

    Args:
        recipe: names the model, which is the reference, or another reference model.
        sample: how prompts are answered.
        policy: what a round trained; None is the recipe's model.
    """
    seed = recipe.train.arguments().seed
    loaded = load_beside(recipe.model, divergence_from(recipe.reference), folder=policy, seed=seed)
    packed, tokenizer = loaded.packed, loaded.tokenizer
    common: dict[str, Any] = {"reference": loaded.reference, "token_budget": sample.token_budget}
    sampler = Sampler(sample.max_new_tokens, sample.temperature, sample.top_p, sample.top_k)
    if sample.engine == "file":
        assert sample.path is not None  # SampleConfig sees to it
        return FileEngine(sample.path, packed, tokenizer, q={"temperature": sample.temperature}, **common)
    if sample.engine == "vllm":
        return VllmEngine(packed, tokenizer, sampler, **_for_vllm(recipe, policy), **common)
    return HfEngine(packed, tokenizer, sampler, batch_size=sample.batch_size, **common)


def _for_vllm(recipe: RoundsRecipe, policy: Path | None) -> dict[str, Any]:
    """Return what vLLM loads: the base with the adapter beside it, or all weights."""
    model = recipe.model
    if model.lora is None:
        return {"base": str(policy or model.name)}
    return {
        "base": model.name,
        "adapter": Path(model.adapter) if policy is None and model.adapter else policy,
        "rank": model.lora.r,
        "quantization": None if model.quantization is None else "bitsandbytes",
    }
