"""Weights in parts, one a process: layers gather theirs while they compute, and a copy of them is in parts too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from prefopt.errors import ModelError
from prefopt.models.packed import PackedModel
from prefopt.models.references import FrozenCopy

Result = TypeVar("Result")

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_TRAINED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


def shard_weights(policy: PackedModel) -> None:
    """Leave to each process its part of every weight; a layer's are whole while it computes, and only then.

    Every pass through the model then needs all processes. Gradients are summed over them, not averaged.

    Raises:
        ModelError: the weights are quantized.
    """
    model = policy.model
    if any(not parameter.is_floating_point() for parameter in model.parameters()):
        raise ModelError(
            "quantized weights can't be cut into parts; leave out train.shard_weights (every process then holds the "
            "quantized model), or model.quantization."
        )
    some = next(model.parameters())
    mesh = init_device_mesh(some.device.type, (torch.distributed.get_world_size(),))
    for layer in policy.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for part in _parts(model):
        # A step's loss is divided once, by the weights of the whole step: ranks add, and divide by nothing.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    # The head is no layer that is called: its weight is whole inside of a pass through the root alone.
    model.run_inside = MethodType(_run, model)
    register_fsdp_forward_method(model, "run_inside")
    policy.inside = model.run_inside
    policy.put_back = lambda: _put_back(model)


def inside(model: nn.Module, do: Callable[[], Result]) -> Result:
    """Return what `do`, a pass without gradient, gives where the model's weights are whole, if they are in parts."""
    run: Callable[[Callable[[], Result]], Result] | None = getattr(model, "run_inside", None)
    if run is None:
        return do()
    try:
        return run(do)
    finally:
        _put_back(model)


def _put_back(model: nn.Module) -> None:
    """Let every weight be in parts again.

    `fully_shard` leaves that to a backward pass, which after a pass without gradient never comes: an optimizer that is
    made then would hold weights that nobody trains.
    """
    for part in _parts(model):
        part.reshard()


class ShardedCopy(FrozenCopy):
    """A frozen copy whose weights are in parts like the policy's; for a pass the two change places."""

    def __init__(self, policy: PackedModel, reason: str) -> None:
        super().__init__(policy, reason)
        copies = {id(live): copy for live, copy in self._pairs()}
        live = {id(parameter): parameter for parameter in policy.model.parameters()}
        self._own = [(live[key], copy) for key, copy in copies.items()]

    def _pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        for module, name, copy in self._places:
            yield getattr(module, name), copy

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for part in _parts(self._policy.model):
            part.reshard()  # what is whole now was gathered from the weights that go
        for live, copy in self._own:
            here, there = _local(live), _local(copy)
            kept = here.clone()
            here.copy_(there)
            there.copy_(kept)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the adapter, or all weights, gathered on the CPU of process 0; the others get none. All call this."""
    found: dict[str, Any] = get_model_state_dict(model, options=_TRAINED if isinstance(model, PeftModel) else _WHOLE)
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        n for n, _ in model.named_parameters()
    }
    return {name: weight for name, weight in found.items() if name not in tied}


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy whole weights into a model in parts; those that are not named stay."""
    set_model_state_dict(model, dict(weights), options=StateDictOptions(full_state_dict=True, strict=False))


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale gradients in parts so that their norm over all processes is at most `limit`; returns what it was."""
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm: Any = get_total_norm([p.grad for p in trained if p.grad is not None])
    whole: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if limit < float("inf"):
        clip_grads_with_norm_(trained, limit, whole)
    return whole


def optimizer_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Return what the optimizer remembers of each weight, by its name, gathered on process 0. All call this."""
    return dict(get_optimizer_state_dict(model, optimizer, options=_WHOLE))


def load_optimizer_state(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Let the optimizer remember what `optimizer_state` returned, in any number of processes."""
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _run(model: nn.Module, do: Callable[[], Result]) -> Result:
    return do()


def _local(parameter: Any) -> Tensor:
    local: Tensor = parameter.to_local()
    return local
