"""Room: load a policy and its reference, decide what they allow, and compute log-probs of packs with them.

The names below are resolved on first use, so that reading a recipe does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from prefopt.models.config import LoraSection, ModelConfig, QuantizationSection, TokenizerSection
from prefopt.models.peft_section import PeftSection
from prefopt.models.reference_config import ReferenceConfig

_LAZY = {
    "Admission": "admission",
    "PackedModel": "packed",
    "Reference": "references",
    "admit": "admission",
    "build_reference": "references",
    "load_policy": "policy",
}

__all__ = [
    "LoraSection",
    "ModelConfig",
    "PeftSection",
    "QuantizationSection",
    "ReferenceConfig",
    "TokenizerSection",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
