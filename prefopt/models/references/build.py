"""Which reference a recipe gets, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from pydantic import ValidationError

from prefopt.errors import RecipeError
from prefopt.models.adapters import adapter_changes_nothing, base_is_original
from prefopt.models.packed import PackedModel
from prefopt.models.policy import load_policy
from prefopt.models.reference_config import ReferenceConfig
from prefopt.models.references.base import NoReference, Reference
from prefopt.models.references.kinds import AdapterOff, FrozenCopy, FrozenModel
from prefopt.models.references.moving import MovingCopy


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
    config = reference_config(kind)
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
    if config.kind == "moving":
        return _moving(config, policy)
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


def _moving(config: ReferenceConfig, policy: PackedModel) -> Reference:
    assert config.every is not None  # ReferenceConfig sees to it
    move = "becomes the policy" if config.mix == 1 else f"takes {config.mix:g} of the policy in"
    steps = "every step" if config.every == 1 else f"every {config.every} steps"
    reason = f"the recipe asks for a copy that {move} after {steps}."
    return MovingCopy(policy, reason, every=config.every, mix=config.mix)


def _frozen_model(config: ReferenceConfig, policy: PackedModel, tokenizer: Any) -> Reference:
    assert config.model is not None  # ReferenceConfig sees to it
    dtype = config.dtype
    if dtype == "auto":
        frozen = str(policy.head_weight.dtype).removeprefix("torch.")
        dtype = "float32" if frozen == "float64" else frozen  # type: ignore[assignment]  # one of the names
    device = str(policy.head_weight.device) if config.device == "auto" else config.device
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


def reference_config(kind: str | Mapping[str, Any] | ReferenceConfig | None) -> ReferenceConfig:
    """Return the recipe's section that a word or a mapping stands for. Raises `RecipeError` for what is none."""
    if isinstance(kind, ReferenceConfig):
        return kind
    try:
        return ReferenceConfig.model_validate(kind)
    except ValidationError as error:
        raise RecipeError(f"reference: {error.errors()[0]['msg']}") from error
