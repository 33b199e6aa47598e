"""The recipe's `loss` section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from prefopt.config import Section
from prefopt.errors import RecipeError
from prefopt.losses.base import Loss
from prefopt.losses.registry import build


class LossConfig(Section):
    """Which loss, and its hyper-parameters: `loss: dpo`, or `loss: {name: dpo, beta: 0.1}`.

    The hyper-parameters stand beside the name; which exist, and their ranges, the loss itself says. Validation
    builds it, so a wrong value fails here, and fills in the defaults, so that the saved recipe is complete.
    """

    # Open to other keys: `_resolve` refuses those the loss does not have, naming the nearest that it has.
    model_config = ConfigDict(extra="allow")

    name: str = "dpo"

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, value: Any) -> Any:
        if isinstance(value, LossConfig):
            return value
        try:
            # A mapping without a name is an override of the default loss: `loss.beta=0.2`.
            loss = build({"name": "dpo", **value} if isinstance(value, Mapping) else value)
            hyper = loss.hyper()
        except RecipeError as error:
            raise PydanticCustomError("loss", "{sentence}", {"sentence": str(error)}) from error
        return {"name": loss.name, **hyper}

    def build(self) -> Loss:
        """Return the loss."""
        return build(self.model_dump())
