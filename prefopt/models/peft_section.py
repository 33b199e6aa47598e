"""The recipe's `model.peft` section: an adapter of another kind than LoRA, by PEFT's own settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from prefopt.config import Section
from prefopt.errors import nearest

KINDS = frozenset(
    {"BOFT", "C3A", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "MISS",
     "OFT", "RANDLORA", "ROAD", "SHIRA", "VBLORA", "VERA"}
)  # fmt: skip
"""PEFT's kinds that change weights or activations token by token: packed they compute what they do apart."""
OVER_QUANTIZED = KINDS - {"DELORA", "HIRA", "HRA", "LOHA", "LOKR", "SHIRA"}
"""Those of them that never look at the weight itself, so that it may be quantized."""
_ADDS_TOKENS = frozenset(
    ["ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING"]
)
DESCRIBES = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type"}
)
"""Fields of PEFT's configurations that describe the saved adapter rather than the method."""


LORA_REFUSED = {
    "alora_invocation_tokens": "it switches the adapter on behind an invocation in each sequence, and packs, in which "
    "completions share their prompt's tokens, would be computed wrongly",
    "velora_config": "it computes gradients from compressed activations, which depend on how completions are packed",
    "monteclora_config": "it draws weights at random in every pass, so that policy and reference would never be equal",
    "arrow_config": "it routes tokens between adapters that were trained before, and prefopt trains one adapter",
}
"""Fields of PEFT's `LoraConfig` that can't be set, and why."""


def fail(sentence: str) -> PydanticCustomError:
    """Return an error that pydantic shows as this sentence."""
    return PydanticCustomError("model", "{sentence}", {"sentence": sentence})


def why_not(kind: str) -> str | None:
    """Return why an adapter of this PEFT type can't be trained or used, or None when it can."""
    if kind in _ADDS_TOKENS:
        return (
            f"{kind} adds tokens to each sequence, and packs, in which completions share their prompt's tokens, would "
            f"compute them wrongly: choose LoRA, or one of {', '.join(sorted(KINDS))}"
        )
    if kind not in KINDS | {"LORA"}:
        return (
            f"{kind} is not a kind of adapter that prefopt trains; there are LoRA (model.lora) and "
            f"{', '.join(sorted(KINDS))}{nearest(kind, KINDS)}"
        )
    return None


class PeftSection(Section):
    """A new adapter of another kind on the frozen model; the other keys are those of PEFT's class for it."""

    # Open to other keys: `_check` refuses those that PEFT's class does not have.
    model_config = ConfigDict(extra="allow")

    peft_type: str = Field(description="PEFT's name of the kind: IA3, LOHA, LOKR, OFT, BOFT, VERA, LN_TUNING, ...")

    @model_validator(mode="after")
    def _check(self) -> PeftSection:
        kind = self.peft_type
        if kind == "LORA":
            raise fail("LoRA is model.lora: write its settings there.")
        if wrong := why_not(kind):
            raise fail(wrong)
        known = {field.name for field in dataclasses.fields(_class(kind))} - DESCRIBES
        for name in self.model_extra or {}:
            if name not in known:
                raise fail(f"'{name}' is no setting of PEFT's {_class(kind).__name__}{nearest(name, known)}")
        try:
            self.build()
        except (ValueError, TypeError) as error:
            raise fail(f"PEFT refuses these settings of {kind}: {error}") from error
        return self

    def build(self) -> Any:
        """Return PEFT's configuration."""
        return _class(self.peft_type)(task_type="CAUSAL_LM", **(self.model_extra or {}))

    @property
    def drops(self) -> bool:
        """Whether some dropout is above 0."""
        given: Mapping[str, Any] = self.model_extra or {}
        return any("dropout" in name and isinstance(p, int | float) and p > 0 for name, p in given.items())


def _class(kind: str) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING  # only here: importing PEFT takes seconds

    return PEFT_TYPE_TO_CONFIG_MAPPING[kind]
