"""Decoder layers compiled by torch, for as long as packs are computed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from prefopt.errors import RecipeError
from prefopt.kernels.attention import SHARED_PROMPT, shared_prompt_attention

_WANTED = "prefopt_compile"
"""Attribute of a model whose layers are to be compiled: the name of torch's backend."""
_known: WeakKeyDictionary[nn.Module, Callable[..., Any]] = WeakKeyDictionary()


def want_compiled(model: nn.Module, device: torch.device, *, backend: str = "inductor") -> None:
    """Let the decoder layers of `model` be compiled where packs are computed with it.

    Raises `RecipeError` where torch could not compile: on a CPU without a C++ compiler.
    """
    if backend == "inductor" and device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise RecipeError(
            "model.compile is true, and on a CPU torch compiles by a C++ compiler, and there is none: install g++, "
            "or leave model.compile out."
        )
    setattr(model, _WANTED, backend)


def wants_compiled(model: nn.Module) -> str | None:
    """Return the backend that the model's layers are to be compiled by, or None."""
    return next((found for m in model.modules() if (found := vars(m).get(_WANTED)) is not None), None)


@contextmanager
def compiled(model: nn.Module, backend: str) -> Iterator[None]:
    """Within, each decoder layer runs compiled; afterwards the model is as it was."""
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m._compiled_call_impl is None]
    # The attention reads a layout of Python objects, which no graph can hold: it runs as it is, between two graphs.
    AttentionInterface.register(SHARED_PROMPT, torch.compiler.disable(shared_prompt_attention))
    try:
        for layer in layers:
            if layer not in _known:
                _known[layer] = torch.compile(layer._call_impl, dynamic=True, backend=backend)
            layer._compiled_call_impl = _known[layer]
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
