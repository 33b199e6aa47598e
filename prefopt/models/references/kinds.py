"""The references that compute: the policy without its adapter, a copy of what trains, another model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.errors import ModelError
from prefopt.models.adapters import adapter_disabled
from prefopt.models.modes import evaluating
from prefopt.models.packed import PackedModel
from prefopt.models.references.base import Reference
from prefopt.models.references.identity import Identity, identity_of, weights_of
from prefopt.models.states import Reduction, States
from prefopt.records import Pack


class AdapterOff(Reference):
    """The policy without its adapter: costs no memory."""

    name = "adapter_off"
    gives_states = True

    def __init__(self, policy: PackedModel, reason: str, *, starts_equal: bool) -> None:
        self._policy = policy
        self.head_rows = policy.head_weight.shape[0]
        self.reason = reason
        self.start_tolerance = 0.0 if starts_equal else None

    @torch.no_grad()
    def logprobs(self, pack: Pack, reduction: Reduction = "sum") -> Tensor:
        with evaluating(self._policy.model), adapter_disabled(self._policy.model):
            return self._policy.logprobs(pack, reduction=reduction)

    @torch.no_grad()
    def states(self, pack: Pack) -> States:
        with evaluating(self._policy.model), adapter_disabled(self._policy.model):
            return self._policy.states(pack)

    def attached(self) -> AbstractContextManager[Any]:
        return self._policy.attached()

    def identity(self) -> Identity | None:
        return identity_of(self._policy, self.name, adapter=False)


class FrozenCopy(Reference):
    """The policy with the weights that train as they were when this was made: costs one copy of those weights.

    The copies take the weights' places for the length of a pass, so the rest of the model is shared, and before the
    first update the log-probs are the policy's own, bit for bit.
    """

    name = "frozen_copy"
    gives_states = True
    holds_memory = True
    start_tolerance = 0.0

    def __init__(self, policy: PackedModel, reason: str) -> None:
        self._policy = policy
        self.head_rows = policy.head_weight.shape[0]
        self.reason = reason
        self._released = False
        copies: dict[int, nn.Parameter] = {}
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        for module in policy.model.modules():
            # A tied weight stands in several modules; each place gets the same copy.
            for name, live in module.named_parameters(recurse=False):
                if live.requires_grad:
                    copy = copies.get(id(live))
                    if copy is None:
                        copy = copies[id(live)] = nn.Parameter(live.detach().clone(), requires_grad=False)
                    self._places.append((module, name, copy))

    @torch.no_grad()
    def logprobs(self, pack: Pack, reduction: Reduction = "sum") -> Tensor:
        with evaluating(self._policy.model), self._in_place():
            return self._policy.logprobs(pack, reduction=reduction)

    @torch.no_grad()
    def states(self, pack: Pack) -> States:
        with evaluating(self._policy.model), self._in_place():
            return self._policy.states(pack)

    def attached(self) -> AbstractContextManager[Any]:
        return self._policy.attached()

    def identity(self) -> Identity | None:
        with self._in_place():
            found = identity_of(self._policy, self.name, adapter=True)
        return None if found is None else replace(found, tensors=self._tensors)

    def release(self) -> None:
        self._places.clear()
        self._released = True

    def _tensors(self) -> list[tuple[str, Tensor]]:
        """Return the weights of the reference: of those that train the copies."""
        with self._in_place():
            return list(weights_of(self._policy.model, adapter=True))

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        if self._released:
            raise ModelError("the frozen copy was given back, so it computes nothing more.")
        live = [(module, name, getattr(module, name)) for module, name, _ in self._places]
        try:
            for (module, name, copy), (_, _, now) in zip(self._places, live, strict=True):
                if copy.device != now.device or copy.dtype != now.dtype:  # the policy was moved since
                    copy.data = copy.data.to(now.device, now.dtype)
                setattr(module, name, copy)
            yield
        finally:
            for module, name, now in live:
                setattr(module, name, now)


class FrozenModel(Reference):
    """Another model beside the policy: costs a whole model, which may be on another device or smaller in precision."""

    name = "model"
    gives_states = True
    holds_memory = True
    start_tolerance = None

    def __init__(self, policy: PackedModel, model: PackedModel, reason: str) -> None:
        self._policy = policy
        self._model: PackedModel | None = model
        self.head_rows = model.head_weight.shape[0]
        self.reason = reason

    @torch.no_grad()
    def logprobs(self, pack: Pack, reduction: Reduction = "sum") -> Tensor:
        model, device = self._loaded()
        return model.logprobs(pack.to(device), reduction=reduction).to(pack.tokens.device)

    @torch.no_grad()
    def states(self, pack: Pack) -> States:
        model, device = self._loaded()
        return model.states(pack.to(device))

    def attached(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._model is None else self._model.attached()

    def identity(self) -> Identity | None:
        return identity_of(self._loaded()[0], self.name, adapter=True)

    @property
    def separate(self) -> Any:
        return None if self._model is None else self._model.model

    def release(self) -> None:
        self._model = None

    def _loaded(self) -> tuple[PackedModel, torch.device]:
        if self._model is None:
            raise ModelError("the reference model was given back, so it computes nothing more.")
        return self._model, self._model.head_weight.device
