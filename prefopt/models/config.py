"""The recipe's `model` and `reference` sections."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from prefopt.config import Section
from prefopt.errors import nearest
from prefopt.models.peft_section import DESCRIBES, LORA_REFUSED, OVER_QUANTIZED, PeftSection, fail

DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
QuantizationType = Literal["nf4", "fp4", "int8"]

_RENAMED = {"lora_alpha": "alpha", "lora_dropout": "dropout"}


class QuantizationSection(Section):
    """Frozen weights kept in 4 or 8 bits by bitsandbytes: `quantization: nf4`, or these keys."""

    type: QuantizationType = Field(
        description="nf4 or fp4 (4 bits, blocks of 64 with a scale) or int8 (8 bits, a scale for each output)."
    )
    double_quant: bool = Field(
        default=False, description="Keep the scales of nf4 and fp4 in 8 bits too: 4.13 bits a weight instead of 4.5."
    )
    compute_dtype: DtypeName = Field(
        default="auto", description="What nf4 and fp4 layers multiply in; auto is the model's dtype."
    )
    skip_modules: tuple[str, ...] = Field(
        default=(), description="Names of modules that stay as they are, besides the head and the embeddings."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_type(self) -> QuantizationSection:
        if self.type == "int8" and (self.double_quant or self.compute_dtype != "auto"):
            raise fail("double_quant and compute_dtype belong to nf4 and fp4: leave them out with int8.")
        return self


class LoraSection(Section):
    """A new LoRA adapter on the frozen model. Any other field of PEFT's `LoraConfig` may stand beside these."""

    # Open to other keys: `_check_passthrough` refuses those that PEFT does not have.
    model_config = ConfigDict(extra="allow")

    r: int = Field(default=16, ge=1, description="Rank of the update of each weight matrix.")
    alpha: float = Field(default=32, gt=0, description="The update is scaled by alpha / r.")
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Dropout on the adapter's input. Above 0 the result depends on how completions are packed.",
    )
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear",
        description="'all-linear', a regular expression, or names of the modules that get an adapter.",
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="What the adapter's weights are stored and updated in; they always compute in the model's dtype. "
        "auto is float32: bfloat16 keeps 8 bits, so an update under 1/256 of a weight is lost.",
    )

    @model_validator(mode="before")
    @classmethod
    def _check_passthrough(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not (extra := [k for k in value if k not in cls.model_fields]):
            return value
        from peft import LoraConfig  # only here: importing PEFT takes seconds

        known = {field.name for field in dataclasses.fields(LoraConfig)} - DESCRIBES - set(_RENAMED)
        for name in extra:
            if name in _RENAMED:
                raise fail(f"'{name}' is called '{_RENAMED[name]}' here.")
            if name in LORA_REFUSED and value[name] is not None:
                raise fail(f"'{name}' can't be used: {LORA_REFUSED[name]}. Leave it out.")
            if name not in known:
                allowed = {*known, *cls.model_fields}
                raise fail(
                    f"'{name}' is neither one of {', '.join(cls.model_fields)} nor a setting of PEFT's LoraConfig"
                    f"{nearest(str(name), allowed)}"
                )
        return value

    def passthrough(self) -> dict[str, Any]:
        """Return the fields that go to PEFT's `LoraConfig` as they are."""
        return dict(self.model_extra or {})


class TokenizerSection(Section):
    """Where the tokenizer differs from the one that lies beside the model."""

    name: str | None = Field(
        default=None, description="Hub name or directory of another tokenizer with the same token ids."
    )
    chat_template: str | None = Field(
        default=None, description="A Jinja chat template: a file, or the template itself."
    )


class ModelConfig(Section):
    """Which model is trained, in which precision, and with which adapter."""

    name: str = Field(
        min_length=1,
        description="A name on the Hugging Face Hub, a directory with a model in safetensors format, or a .gguf file.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub.")
    dtype: DtypeName = Field(
        default="auto",
        description="Precision of the weights. auto: bfloat16 where the machine computes it fast and the weights "
        "stay frozen, else float32 (weights that train need its small steps).",
    )
    quantization: QuantizationSection | None = Field(
        default=None, description="Keep the frozen weights in 4 or 8 bits (QLoRA): nf4, fp4, int8, or a section."
    )
    device: str = Field(
        default="auto",
        description="auto (the accelerator where there is one), cpu, cuda, cuda:1, mps, ...: where it loads.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the model. Only for an author you trust."
    )
    dropout: bool = Field(
        default=False,
        description="Keep the dropout of the model's own configuration; off, log-probs don't depend on chance.",
    )
    compile: bool = Field(
        default=False,
        description="Let torch compile the decoder layers: the first steps are slow.",
    )
    tokenizer: TokenizerSection = Field(
        default=TokenizerSection(), description="Where the tokenizer differs from the model's."
    )
    lora: LoraSection | None = Field(
        default=LoraSection(), description="The LoRA adapter to train; null trains all weights of the model."
    )
    freeze: tuple[str, ...] = Field(
        default=(),
        description="With 'lora: null': weights that don't train. Regular expressions that are found in their names, "
        "or the words embeddings and head.",
    )
    peft: PeftSection | None = Field(
        default=None, description="An adapter of another kind instead of LoRA: {peft_type: IA3, ...} and its settings."
    )
    adapter: str | None = Field(
        default=None, description="A PEFT adapter (directory or Hub name) to go on training, instead of a new one."
    )

    @model_validator(mode="after")
    def _check_adapter(self) -> ModelConfig:
        if self.quantization is not None and self.lora is None:
            raise fail(
                "'lora: null' trains all weights, and quantized ones can't be trained: leave out 'quantization', or "
                "train an adapter."
            )
        if self.freeze and self.lora is not None:
            raise fail("'freeze' is for 'lora: null', which trains all weights; with an adapter the model is frozen.")
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                raise fail(f"freeze: '{pattern}' is no regular expression ({error}).") from error
        if self.peft is not None:
            self._check_peft(self.peft)
        if self.adapter is None:
            return self
        if self.lora is None:
            raise fail("'adapter' goes on training an adapter and 'lora: null' trains the whole model: leave one out.")
        if self.lora.model_copy(update={"dtype": "auto"}) != LoraSection():
            raise fail(
                f"the adapter {self.adapter} brings its own settings, so 'lora' may only say its dtype: "
                "remove the other keys, or remove 'adapter' to train a new one."
            )
        return self

    def _check_peft(self, peft: PeftSection) -> None:
        if self.adapter is not None or self.lora != LoraSection():
            raise fail("'peft' takes the place of 'lora' and 'adapter': leave those out, or leave out 'peft'.")
        if self.quantization is not None and peft.peft_type not in OVER_QUANTIZED:
            raise fail(
                f"{peft.peft_type} computes with the weights themselves, which quantization packs: choose LoRA, or one "
                f"of {', '.join(sorted(OVER_QUANTIZED))}, or leave out 'quantization'."
            )
