"""Room: sample completions from the model in training, or from the model without its adapter.

The names below are resolved on first use, so that reading a recipe does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefopt.sampling.config import SampleConfig

if TYPE_CHECKING:
    from prefopt.sampling.draw import Sampler
    from prefopt.sampling.engine import Engine
    from prefopt.sampling.file import FileEngine
    from prefopt.sampling.generation import generate, generate_ids, stream
    from prefopt.sampling.hf import HfEngine
    from prefopt.sampling.prompts import encode_prompt, end_of_turn_ids
    from prefopt.sampling.rollouts import (
        Prompt,
        Prompts,
        Rollout,
        prompt_key,
        read_prompts,
        read_rollouts,
        write_rollouts,
    )
    from prefopt.sampling.vllm import VllmEngine

_LAZY = {
    "Engine": "engine",
    "FileEngine": "file",
    "HfEngine": "hf",
    "Prompt": "rollouts",
    "Prompts": "rollouts",
    "Rollout": "rollouts",
    "Sampler": "draw",
    "VllmEngine": "vllm",
    "encode_prompt": "prompts",
    "end_of_turn_ids": "prompts",
    "generate": "generation",
    "generate_ids": "generation",
    "prompt_key": "rollouts",
    "read_prompts": "rollouts",
    "read_rollouts": "rollouts",
    "stream": "generation",
    "write_rollouts": "rollouts",
}

__all__ = [
    "Engine",
    "FileEngine",
    "HfEngine",
    "Prompt",
    "Prompts",
    "Rollout",
    "SampleConfig",
    "Sampler",
    "VllmEngine",
    "encode_prompt",
    "end_of_turn_ids",
    "generate",
    "generate_ids",
    "prompt_key",
    "read_prompts",
    "read_rollouts",
    "stream",
    "write_rollouts",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
