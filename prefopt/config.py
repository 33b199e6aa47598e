"""What every section of a recipe has in common: typed, immutable, and closed to unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of a recipe. Each room defines its own; `prefopt.recipe` puts them together."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
