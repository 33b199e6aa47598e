"""Load the model that is trained, or one that is only used, and its tokenizer."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from peft import PeftModel
from pydantic import ValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prefopt.errors import ModelError, RecipeError, nearest
from prefopt.models.adapters import load_adapter, new_adapter
from prefopt.models.compiled import want_compiled
from prefopt.models.config import ModelConfig
from prefopt.models.dtypes import resolve_device, resolve_dtype
from prefopt.models.quantization import check_plain, load_options, settle
from prefopt.models.source import Source, find_adapter, find_model
from prefopt.models.tokenizer import load_tokenizer

_log = logging.getLogger(__name__)


def load_policy(
    model: str | Path | Mapping[str, Any] | ModelConfig,
    *,
    trainable: bool = True,
    seed: int = 0,
    cache_dir: Path | None = None,
    **options: Any,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a causal language model with its LoRA adapter and its tokenizer.

    Args:
        model: a Hub name, a directory, a .gguf file, or the recipe's `model` section.
        trainable: False for a model that is only used (evaluation, chat, a reference): no new adapter is made, a
            named one is frozen, and everything is in evaluation mode.
        seed: of a new adapter's random half; the global random state is left as it was.
        cache_dir: where converted GGUF files are kept; by default beside Hugging Face's own cache.
        options: fields of `ModelConfig`, over those of `model`.

    Returns:
        The model on its device, with only the weights that train requiring gradients, and the tokenizer, which has
        a padding token.

    Raises:
        RecipeError: when an option is unknown or has a wrong value.
        ModelError: when there is no such model, it can't be fetched, or it can't be loaded exactly and safely.
    """
    config = _settings(model, options)
    device = usable_device(config.device)
    weights_train = trainable and config.lora is None
    dtype = resolve_dtype(config.dtype, device, weights_train=weights_train)
    source = find_model(
        config.name,
        revision=config.revision,
        remote_code=config.trust_remote_code,
        dtype=str(dtype).removeprefix("torch."),
        cache=cache_dir or Path(constants.HF_HOME) / "prefopt",
    )
    base = _load_base(config, source, dtype, device)
    tokenizer = load_tokenizer(config, source, base.get_input_embeddings().weight.shape[0])
    _settle_padding(base, tokenizer)
    if config.quantization is None:  # which can't be moved, and was loaded where it belongs
        base.to(device)
    base.requires_grad_(weights_train)
    if weights_train:
        freeze(base, config.freeze)
    policy = _with_adapter(base, config, trainable=trainable, seed=seed)
    if config.compile:
        want_compiled(policy, device)
    return policy.train(trainable), tokenizer


def _with_adapter(base: Any, config: ModelConfig, *, trainable: bool, seed: int) -> Any:
    if config.adapter is not None:
        storage = "auto" if config.lora is None else config.lora.dtype
        policy = load_adapter(base, find_adapter(config.adapter), storage, trainable=trainable)
    elif config.lora is not None and trainable:
        policy = new_adapter(base, config.peft or config.lora, seed=seed)
    else:
        policy = base
    drops = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in policy.modules())
    if trainable and (drops or (config.peft is not None and config.peft.drops)):
        warnings.warn(
            "the policy has dropout, so its log-probs depend on chance and on how completions are packed; set "
            "model.dropout to false and the adapter's dropout to 0 for exact ones.",
            stacklevel=3,
        )
    return policy


def freeze(model: Any, patterns: Sequence[str]) -> None:
    """Leave out of training what the patterns name; a tied weight is embeddings and head at once."""
    parts = {"embeddings": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for pattern in patterns:
        if pattern in parts:
            found = list(parts[pattern].parameters())
        else:
            found = [p for name, p in model.named_parameters(remove_duplicate=False) if re.search(pattern, name)]
        if not found:
            raise RecipeError(
                f"model.freeze: '{pattern}' is found in no name of a weight; they are called like "
                f"{next(name for name, _ in model.named_parameters())}."
            )
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError("model.freeze leaves no weight that trains; take away one of its patterns.")


def _settings(model: str | Path | Mapping[str, Any] | ModelConfig, options: Mapping[str, Any]) -> ModelConfig:
    if isinstance(model, ModelConfig):
        given = {name: getattr(model, name) for name in model.model_fields_set}
    elif isinstance(model, Mapping):
        given = dict(model)
    else:
        given = {"name": str(model)}
    given.update(options)
    for name in given:
        if name not in ModelConfig.model_fields:
            raise RecipeError(
                f"'{name}' is no setting of a model; there are {', '.join(ModelConfig.model_fields)}"
                f"{nearest(name, ModelConfig.model_fields)}"
            )
    try:
        return ModelConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("model", *first["loc"])))
        raise RecipeError(f"{key}: {first['msg']} (it is {first['input']!r}).") from error


def usable_device(name: str) -> torch.device:
    """Return the device of this name; raise `RecipeError` where this machine has none."""
    try:
        device = resolve_device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises each of them for some device
        raise RecipeError(
            f"model.device: there is no device '{name}' on this machine; write auto or cpu, or see what "
            "`prefopt doctor` finds."
        ) from error
    return device


def _load_base(config: ModelConfig, source: Source, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the bare model; every weight must come from its files."""
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    check_plain(source.folder, source.name)
    try:
        settings = AutoConfig.from_pretrained(source.folder, **options)
        check_architecture(settings, source.name)
        if not config.dropout:
            drop_dropout(settings)
        if config.quantization is not None:
            options |= load_options(config.quantization, settings, dtype, device)
        model, report = AutoModelForCausalLM.from_pretrained(
            source.folder, config=settings, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(why_not(error, source.name)) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{source.name} lacks {len(missing)} of the weights that {type(model).__name__} needs ({missing[0]}, ...); "
            "they would be random: the files are incomplete, or belong to another architecture."
        )
    if config.quantization is not None:
        settle(model, source.name)
    # Saved adapters name their base by this, and a path on this machine would mean nothing elsewhere.
    model.name_or_path = settings._name_or_path = model.config._name_or_path = source.name
    return model


def check_architecture(settings: Any, name: str) -> None:
    """Raise `ModelError` for a configuration of what is no causal language model."""
    if settings.is_encoder_decoder:
        raise ModelError(f"{name} is an encoder-decoder model; prefopt trains causal language models.")
    if getattr(settings, "is_decoder", True) is False:  # only encoders that can double as decoders have the switch
        raise ModelError(f"{name} is an encoder ({settings.model_type}); prefopt trains causal language models.")


def drop_dropout(settings: Any) -> None:
    """Set every dropout of a configuration to 0."""
    for name, value in settings.to_dict().items():
        if ("drop" in name) and isinstance(value, float):
            setattr(settings, name, 0.0)


def why_not(error: BaseException, name: str) -> str:
    """Return a sentence for what loading the model of this name raised."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if "trust_remote_code" in str(error):
        return (
            f"{name} brings Python code of its own, which runs only when model.trust_remote_code is true: set it "
            "for an author you trust."
        )
    return f"{name} can't be loaded: {reason}."


def _settle_padding(model: Any, tokenizer: Any) -> None:
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
