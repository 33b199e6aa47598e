"""The `train` and `alarms` sections of a recipe."""

from __future__ import annotations

import dataclasses
import typing
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from prefopt.config import Section
from prefopt.data.pack import OverBudget
from prefopt.errors import RecipeError, nearest
from prefopt.train.arguments import OWNED, NonFinite, PreferenceArguments

DEFAULT_BUDGET = 4096
"""Tokens; and what stands for 'auto' until it is known."""


@cache
def argument_types() -> dict[str, Any]:
    """Return the annotated type of every field a recipe may pass through to `transformers.TrainingArguments`."""
    hints = typing.get_type_hints(PreferenceArguments)
    fields = (f.name for f in dataclasses.fields(PreferenceArguments) if f.init)
    return {name: hints[name] for name in fields if name not in OWNED}


class TrainConfig(Section):
    """How a run trains. Every other field of `transformers.TrainingArguments` passes through by its own name."""

    model_config = ConfigDict(extra="allow", frozen=True, validate_default=True)

    output_dir: Path = Field(description="The run directory: new, empty, or a run to resume.")
    examples_per_step: Annotated[int, Field(ge=1)] = Field(32, description="Examples an optimizer step counts.")
    token_budget: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        DEFAULT_BUDGET,
        description="Tokens of a pack at most: bounds memory and never changes the result. auto: as many as fit.",
    )

    over_budget: OverBudget = Field(
        "own_pack", description="An example alone that is longer than token_budget: a pack of its own, or an error."
    )

    non_finite: NonFinite = Field(
        "stop",
        description="A step whose loss or gradient is NaN or infinite: stop with its rows named and saved, or skip it.",
    )

    activation_offload: bool = Field(
        False, description="Keep what the backward pass needs in the computer's memory instead of the GPU's."
    )

    shard_weights: bool = Field(
        False,
        description="Of several processes, each keeps its part of weights, gradients and optimizer alone (FSDP2).",
    )

    @model_validator(mode="after")
    def _check_arguments(self) -> TrainConfig:
        types = argument_types()
        for key, value in (self.__pydantic_extra__ or {}).items():
            if key in OWNED:
                raise ValueError(f"train.{key} can't be set here: {OWNED[key]}")
            if key not in types:
                raise ValueError(
                    f"train.{key} is neither a prefopt setting nor a field of transformers.TrainingArguments"
                    + nearest(key, types)
                )
            try:
                checked = TypeAdapter(types[key]).validate_python(value)
            except ValidationError as error:
                raise ValueError(f"train.{key} is {value!r}: {error.errors()[0]['msg']}") from None
            (self.__pydantic_extra__ or {})[key] = checked
        return self

    def arguments(self) -> PreferenceArguments:
        """Return the trainer's arguments. Raises `RecipeError` for values that contradict each other."""
        try:
            own = {name: getattr(self, name) for name in type(self).model_fields if name != "output_dir"}
            if self.token_budget == "auto":
                own |= {"token_budget": DEFAULT_BUDGET, "over_budget": "own_pack"}  # it will hold every example
            return PreferenceArguments(output_dir=str(self.output_dir), **own, **(self.__pydantic_extra__ or {}))
        except ValueError as error:
            raise RecipeError(f"the train section contradicts itself: {error}") from error


class AlarmConfig(Section):
    """When a run says that something goes wrong. An alarm is a sentence: it changes nothing and stops nothing."""

    window: int = Field(default=20, ge=1, description="Logged steps that an alarm looks at together.")
    chosen_falling: float | None = Field(
        default=0.3,
        gt=0,
        description="Nats a token by which chosen completions may become less likely than at the start (mean of the "
        "window); null for no alarm.",
    )
    accuracy_pinned: bool = Field(
        default=True, description="Whether to say that every pair of a whole window was ranked right."
    )
    kl: float | None = Field(
        default=0.5,
        gt=0,
        description="Nats a token of divergence from the reference, measured on samples at an evaluation; null for no "
        "alarm.",
    )
