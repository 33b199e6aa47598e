"""Room: sample completions from the model in training, or from the model without its adapter."""

from __future__ import annotations

from prefopt.sampling.generate import generate, generate_ids, stream
from prefopt.sampling.prompts import encode_prompt, end_of_turn_ids
from prefopt.sampling.rollouts import Prompt, Prompts, Rollout, read_prompts, read_rollouts, write_rollouts

__all__ = [
    "Prompt",
    "Prompts",
    "Rollout",
    "encode_prompt",
    "end_of_turn_ids",
    "generate",
    "generate_ids",
    "read_prompts",
    "read_rollouts",
    "stream",
    "write_rollouts",
]
