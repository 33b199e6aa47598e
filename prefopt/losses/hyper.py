"""Hyper-parameters that are validated when a loss is built, and can be written down again."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from numbers import Real

import torch

from prefopt.errors import RecipeError, nearest


class Hyperparameters(torch.nn.Module):
    """A module whose constructor takes hyper-parameters as keyword arguments and keeps each under its own name."""

    name: str
    """What a recipe calls it. A loss of this package that sets it is found by the registry."""
    paper: str = ""
    """Where its formula is written: `arXiv:2305.18290, Eq. 7`."""
    source: str = ""
    """sha256 of the file that a loss of the user's own stands in: a changed file is another loss."""

    def hyper(self) -> dict[str, float | bool | str]:
        """Return every hyper-parameter with its value, defaults included."""
        return {key: getattr(self, key) for key in self.hyper_names()}

    @classmethod
    def meaning(cls) -> str:
        """Return the first sentence of the docstring, without its full stop: what the loss is."""
        return inspect.cleandoc(cls.__doc__ or "").split("\n", 1)[0].removesuffix(".")

    @classmethod
    def hyper_names(cls) -> list[str]:
        """Return the names of the hyper-parameters, in the constructor's order."""
        found = inspect.signature(cls).parameters.values()
        return [each.name for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]

    @classmethod
    def needed_names(cls) -> list[str]:
        """Return the names of those without a default."""
        found = inspect.signature(cls).parameters
        return [name for name in cls.hyper_names() if found[name].default is inspect.Parameter.empty]

    def extra_repr(self) -> str:
        own = {"source": self.source} if self.source else {}
        return ", ".join(f"{key}={value}" for key, value in {**self.hyper(), **own}.items())

    def number(
        self,
        key: str,
        value: object,
        *,
        above: float | None = None,
        at_least: float | None = None,
        below: float | None = None,
        at_most: float | None = None,
    ) -> float:
        """Return `value` as a float, or raise RecipeError with the allowed range when it is not a number in it."""
        bounds = [(above, "greater than"), (at_least, "at least"), (below, "less than"), (at_most, "at most")]
        allowed = " and ".join(f"{words} {bound:g}" for bound, words in bounds if bound is not None)
        try:
            # YAML 1.1 reads 1e-2 as text, so text that spells a number is one.
            found = math.nan if isinstance(value, bool) or not isinstance(value, (Real, str)) else float(value)
        except (ValueError, OverflowError):
            found = math.nan
        inside = (
            math.isfinite(found)
            and (above is None or found > above)
            and (at_least is None or found >= at_least)
            and (below is None or found < below)
            and (at_most is None or found <= at_most)
        )
        if not inside:
            raise RecipeError(
                f"{key} = {value!r} is not allowed for the loss {self.name}: it must be a "
                f"{f'number {allowed}' if allowed else 'finite number'}."
            )
        return found

    def choice(self, key: str, value: object, allowed: Collection[str]) -> str:
        """Return `value`, or raise RecipeError with what is allowed when it is none of these words."""
        if not isinstance(value, str) or value not in allowed:
            raise RecipeError(
                f"{key} = {value!r} is not allowed for the loss {self.name}: it must be one of "
                f"{', '.join(allowed)}{nearest(str(value), allowed)}"
            )
        return value

    def switch(self, key: str, value: object) -> bool:
        """Return `value`, or raise RecipeError when it is not true or false."""
        if not isinstance(value, bool):
            raise RecipeError(f"{key} = {value!r} is not allowed for the loss {self.name}: it must be true or false.")
        return value
