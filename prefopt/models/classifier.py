"""Load a sequence classifier, such as a reward model: a backbone with a head that gives one number a text, or some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from prefopt.errors import ModelError
from prefopt.models.config import ModelConfig, QuantizationSection
from prefopt.models.dtypes import resolve_dtype
from prefopt.models.policy import drop_dropout, usable_device, why_not
from prefopt.models.quantization import check_plain, load_options, settle
from prefopt.models.source import Source, find_model
from prefopt.models.tokenizer import load_tokenizer


def load_classifier(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    quantization: QuantizationSection | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Return a sequence classifier in evaluation mode, without gradients, and its tokenizer.

    What stands behind the backbone computes in float32, whatever `dtype` and `quantization` say: in 16 bits its
    numbers would have 8 to 11 bits, and scores of good and better answers would be equal. Its configuration is that of
    its files: where they name no padding token, it has none.

    Raises:
        ModelError: there is no such model, it can't be loaded, or its files have no weights for the head.
        RecipeError: there is no such device.
    """
    place = usable_device(device)
    precision = resolve_dtype(dtype, place, weights_train=False)
    cache = Path(constants.HF_HOME) / "prefopt"
    stored = str(precision).removeprefix("torch.")
    source = find_model(name, revision=revision, remote_code=trust_remote_code, dtype=stored, cache=cache)
    model = _load(source, precision, place, quantization, trust_remote_code)
    config = ModelConfig(name=name, revision=revision, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(config, source, model.get_input_embeddings().weight.shape[0])
    if quantization is None:
        model.to(place)
    for part in head_modules(model):
        part.float()
        part.register_forward_pre_hook(_in_float32)
    return model.requires_grad_(False).eval(), tokenizer


def head_modules(model: Any) -> list[nn.Module]:
    """Return the parts of a classifier that are not its backbone."""
    return [part for name, part in model.named_children() if name != model.base_model_prefix]


def _load(
    source: Source, dtype: torch.dtype, device: torch.device, quantization: QuantizationSection | None, remote: bool
) -> Any:
    options: dict[str, Any] = {"trust_remote_code": remote}
    check_plain(source.folder, source.name)
    try:
        settings = AutoConfig.from_pretrained(source.folder, **options)
        drop_dropout(settings)
        if quantization is not None:
            with torch.device("meta"):
                empty = AutoModelForSequenceClassification.from_config(settings)
            heads = [name for name, _ in empty.named_children() if name != empty.base_model_prefix]
            section = quantization.model_copy(update={"skip_modules": (*quantization.skip_modules, *heads)})
            options |= load_options(section, settings, dtype, device, AutoModelForSequenceClassification)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source.folder, config=settings, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(why_not(error, source.name)) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{source.name} lacks {len(missing)} of the weights that {type(model).__name__} needs ({missing[0]}, ...), "
            "so its scores would be random: name a model that was trained as a reward model or classifier."
        )
    if quantization is not None:
        settle(model, source.name)
    return model


def _in_float32(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)
