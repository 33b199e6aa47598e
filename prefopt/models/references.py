"""References: what the policy's log-probs are compared with, and how to compute it without disturbing the policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor, nn

from prefopt.errors import ModelError, RecipeError
from prefopt.models.adapters import adapter_changes_nothing, adapter_disabled, base_is_original
from prefopt.models.config import ReferenceConfig
from prefopt.models.modes import evaluating
from prefopt.models.packed import PackedModel
from prefopt.models.policy import load_policy
from prefopt.models.states import Reduction, States
from prefopt.records import Pack


class Reference(ABC):
    """Gives the log-probs that the policy is compared with.

    Whatever happens inside, the policy keeps its weights, its adapter, its mode and the trainability of each weight.
    """

    name: str
    """One of adapter_off, frozen_copy, model, none."""
    reason: str
    """A sentence: why it is this one."""
    gives_states: bool = False
    """Whether it has distributions over next tokens, not only the log-probs of those that are there."""
    head_rows: int | None = None
    """Rows of its head, padding of the vocabulary included, if `gives_states`."""
    start_tolerance: float | None
    """How far a completion's log-prob may be from the policy's before the first update, nats; None: anywhere."""

    @abstractmethod
    def logprobs(self, pack: Pack, reduction: Reduction = "sum") -> Tensor | None:
        """Return the (S,) float32 log-probs of the pack's completions in nats, without gradient, or None.

        `reduction` is that of `PackedModel.logprobs`.
        """

    def states(self, pack: Pack) -> States:
        """Return what the distributions at the pack's tokens are made from, without gradient, if `gives_states`."""
        raise ModelError(f"the reference {self.name} has log-probs of single tokens alone, no distributions.")

    @abstractmethod
    def attached(self) -> AbstractContextManager[Any]:
        """Return the context within which `logprobs` works."""


class NoReference(Reference):
    """For losses that compare with nothing."""

    name = "none"
    start_tolerance = None

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def logprobs(self, pack: Pack, reduction: Reduction = "sum") -> None:
        return None

    def attached(self) -> AbstractContextManager[Any]:
        return nullcontext()


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


class FrozenCopy(Reference):
    """The policy with the weights that train as they were when this was made: costs one copy of those weights.

    The copies take the weights' places for the length of a pass, so the rest of the model is shared, and before the
    first update the log-probs are the policy's own, bit for bit.
    """

    name = "frozen_copy"
    gives_states = True
    start_tolerance = 0.0

    def __init__(self, policy: PackedModel, reason: str) -> None:
        self._policy = policy
        self.head_rows = policy.head_weight.shape[0]
        self.reason = reason
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

    @contextmanager
    def _in_place(self) -> Iterator[None]:
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
    start_tolerance = None

    def __init__(self, policy: PackedModel, model: PackedModel, reason: str) -> None:
        self._policy = policy
        self._model = model
        self.head_rows = model.head_weight.shape[0]
        self.reason = reason

    @torch.no_grad()
    def logprobs(self, pack: Pack, reduction: Reduction = "sum") -> Tensor:
        device = next(self._model.model.parameters()).device
        return self._model.logprobs(pack.to(device), reduction=reduction).to(pack.tokens.device)

    @torch.no_grad()
    def states(self, pack: Pack) -> States:
        device = next(self._model.model.parameters()).device
        return self._model.states(pack.to(device))

    def attached(self) -> AbstractContextManager[Any]:
        return self._model.attached()


def build_reference(
    kind: str | Mapping[str, Any] | ReferenceConfig | None,
    policy: PackedModel,
    *,
    needed: bool,
    tokenizer: Any = None,
) -> Reference:
    """Return the reference that `kind` names for this policy, as the policy is now.

    Call it before any update, and before a checkpoint is loaded: 'auto' is the policy as it starts, the cheapest way
    that is exact. That is the model with its adapter off while the adapter changes nothing, else a frozen copy of
    the weights that train (an adapter that goes on training, an adapter that took over part of the base weights, or
    the whole model).

    Args:
        kind: the recipe's `reference` section, or a word of it.
        policy: the model that will train.
        needed: whether the loss compares with a reference.
        tokenizer: of the policy; with it, the vocabulary of another model is compared token by token.

    Raises:
        RecipeError: when the loss needs a reference and gets none, or the policy or the named model can't be it.
    """
    config = _config(kind)
    if not needed:
        return NoReference("the loss compares with no reference, so none is computed.")
    if config.kind == "none":
        raise RecipeError(
            "the loss compares the policy with a reference, and the recipe says 'reference: none': write 'reference: "
            "auto', or choose a loss without reference."
        )
    if config.kind == "adapter_off":
        return _adapter_off(policy)
    if config.kind == "frozen_copy":
        return FrozenCopy(policy, "the recipe asks for a frozen copy of the weights that train.")
    if config.kind == "model":
        return _frozen_model(config, policy, tokenizer)
    return _auto(policy)


def _auto(policy: PackedModel) -> Reference:
    if adapter_changes_nothing(policy.model):
        reason = "the adapter is new and changes nothing yet, so the model without it is the policy as it starts."
        return AdapterOff(policy, reason, starts_equal=True)
    if isinstance(policy.model, PeftModel):
        return FrozenCopy(
            policy,
            "the adapter changes the model from the start, so the model without it would be the wrong reference: "
            "a frozen copy of the adapter is used.",
        )
    return FrozenCopy(policy, "all weights train, so a frozen copy of the policy as it starts is kept beside it.")


def _adapter_off(policy: PackedModel) -> Reference:
    if not isinstance(policy.model, PeftModel):
        raise RecipeError(
            "'reference: adapter_off' needs a policy with an adapter, and this one has none: write 'reference: auto' "
            "for a copy of the policy as it starts, or set model.lora."
        )
    if changed := base_is_original(policy.model):
        raise RecipeError(
            f"'reference: adapter_off' would not give the original model, because {changed}: write 'reference: auto'."
        )
    return AdapterOff(
        policy,
        "the recipe asks for the model without its adapter.",
        starts_equal=adapter_changes_nothing(policy.model),
    )


def _frozen_model(config: ReferenceConfig, policy: PackedModel, tokenizer: Any) -> Reference:
    assert config.model is not None  # ReferenceConfig sees to it
    dtype = config.dtype
    if dtype == "auto":
        frozen = str(policy.head_weight.dtype).removeprefix("torch.")
        dtype = "float32" if frozen == "float64" else frozen  # type: ignore[assignment]  # one of the names
    device = str(policy.head_weight.device)
    model, own = load_policy(
        config.model,
        trainable=False,
        revision=config.revision,
        dtype=dtype,
        device=device,
        trust_remote_code=config.trust_remote_code,
    )
    _check_vocabulary(config.model, own, model, policy, tokenizer)
    packed = PackedModel(model)
    wanted, can = policy.admission, packed.admission
    if wanted.shared and not can.shared:
        raise RecipeError(
            f"the reference {config.model} can't compute prompts shared between completions as the policy does "
            f"({can.reason}): choose a reference of the policy's architecture."
        )
    return FrozenModel(policy, packed, f"the recipe names {config.model}.")


def _check_vocabulary(name: str, own: Any, model: Any, policy: PackedModel, tokenizer: Any) -> None:
    if tokenizer is not None:
        mine, others = tokenizer.get_vocab(), own.get_vocab()
        if mine != others:
            differ = [token for token in mine if others.get(token) != mine[token]] or sorted(set(others) - set(mine))
            raise RecipeError(
                f"the reference {name} has another vocabulary than the policy: {len(differ)} tokens differ, for "
                f"example {differ[0]!r}. Log-probs of the same token ids would compare different texts."
            )
        return
    rows, policy_rows = model.get_output_embeddings().weight.shape[0], policy.head_weight.shape[0]
    if rows != policy_rows:
        raise RecipeError(
            f"the reference {name} has a vocabulary of {rows} tokens and the policy one of {policy_rows}: choose a "
            "reference with the policy's vocabulary."
        )


def _config(kind: str | Mapping[str, Any] | ReferenceConfig | None) -> ReferenceConfig:
    if isinstance(kind, ReferenceConfig):
        return kind
    try:
        return ReferenceConfig.model_validate(kind)
    except ValidationError as error:
        raise RecipeError(f"reference: {error.errors()[0]['msg']}") from error
