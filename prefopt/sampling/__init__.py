"""Room: sample completions from the model in training, or from the model without its adapter."""

from __future__ import annotations

from prefopt.sampling.generate import generate, generate_ids, stream
from prefopt.sampling.prompts import encode_prompt, end_of_turn_ids

__all__ = ["encode_prompt", "end_of_turn_ids", "generate", "generate_ids", "stream"]
