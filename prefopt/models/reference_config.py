"""The recipe's `reference` section."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from prefopt.config import Section
from prefopt.errors import nearest
from prefopt.models.config import DtypeName

ReferenceKind = Literal["auto", "adapter_off", "frozen_copy", "model", "moving", "none"]
CacheChoice = Literal["auto"] | bool

_BELONG: dict[str, tuple[ReferenceKind, ...]] = {
    "model": ("model",),
    "revision": ("model",),
    "dtype": ("model",),
    "device": ("model",),
    "trust_remote_code": ("model",),
    "every": ("moving",),
    "mix": ("moving",),
}
"""Keys that mean something for some kinds alone."""


class ReferenceConfig(Section):
    """What the policy is compared with: `reference: auto`, or `reference: {model: NAME}`."""

    kind: ReferenceKind = Field(
        default="auto",
        description="auto: the policy as it is at the start, the cheapest exact way. adapter_off: the model without "
        "its adapter. frozen_copy: a copy of the weights that train. model: another model. moving: a copy that follows "
        "the policy. none: for losses without reference.",
    )
    model: str | None = Field(
        default=None, description="Name of a model with the same vocabulary, loaded beside the policy."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of that model on the Hub.")
    dtype: DtypeName = Field(default="auto", description="Precision of that model; auto is the policy's.")
    device: str = Field(
        default="auto", description="Where that model computes: auto (beside the policy), cpu, cuda, cuda:1, mps, ..."
    )
    trust_remote_code: bool = Field(default=False, description="Run Python code that comes with that model.")
    every: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Optimizer steps from one move of a moving reference to the next."
    )
    mix: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="The policy's share in a moving reference after a move; 1 replaces it."
    )
    cache: CacheChoice = Field(
        default="auto",
        description="Keep the reference's log-probs on disk, so that none is computed twice. auto: where the run looks "
        "at its examples more than once, or they are there already.",
    )
    cache_dir: Path | None = Field(
        default=None, description="Folder of the cache; null is beside Hugging Face's own cache."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        if value is None:  # `reference: null`, and YAML's `~`
            return {"kind": "none"}
        if isinstance(value, str):
            return {"kind": _kind(value)}
        if not isinstance(value, Mapping):
            return value
        if value.get("kind") is not None:
            return {**value, "kind": _kind(value["kind"])}
        return {**value, "kind": "model" if value.get("model") else "auto"}

    @model_validator(mode="after")
    def _check_kind(self) -> ReferenceConfig:
        if self.kind == "model" and not self.model:
            raise _fail("a reference of kind 'model' needs the model's name: write {model: NAME}.")
        if self.kind == "moving" and self.every is None:
            raise _fail("a reference of kind 'moving' needs to know when it moves: write {kind: moving, every: STEPS}.")
        extra = [key for key, kinds in sorted(_BELONG.items()) if self.kind not in kinds and self._is_set(key)]
        if extra:
            raise _fail(
                f"{', '.join(extra)} belong to a reference of kind '{_BELONG[extra[0]][0]}', not of kind '{self.kind}'."
            )
        if self.cache is True and self.kind in ("moving", "none"):
            why = (
                "a moving reference gives other log-probs after every move"
                if self.kind == "moving"
                else ("'none' has no log-probs to keep")
            )
            raise _fail(f"{why}, so there can be no cache of it: leave reference.cache out.")
        return self

    def _is_set(self, key: str) -> bool:
        return key in self.model_fields_set and getattr(self, key) != type(self).model_fields[key].default


def _fail(sentence: str) -> PydanticCustomError:
    return PydanticCustomError("reference", "{sentence}", {"sentence": sentence})


def _kind(word: Any) -> Any:
    kinds = get_args(ReferenceKind)
    if isinstance(word, str) and word not in kinds:
        raise _fail(
            f"'{word}' is no reference: write one of auto, adapter_off, frozen_copy, none, {{model: NAME}}, or "
            f"{{kind: moving, every: STEPS}}{nearest(word, kinds)}"
        )
    return word
