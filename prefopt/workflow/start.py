"""Where a run begins that does not begin as its recipe's model does: with weights that another run made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from prefopt.models.adapters import copy_weights
from prefopt.models.references import CachedReference, Reference

Built = TypeVar("Built")


@dataclass(frozen=True)
class Start:
    """Saved adapters, or models, of the recipe's kind; None is what the recipe's model begins with."""

    policy: Path | None = None
    """What the policy begins with."""
    reference: Path | None = None
    """What it is compared with, where the recipe's reference is made of the policy as it begins."""
    seed: int | None = None
    """What a new adapter is drawn with; None is the seed that training has."""

    def build(self, model: Any, make: Callable[[], Built]) -> Built:
        """Return what `make` builds of the model while that is the reference; the model then begins as the policy."""
        if self.policy is None and self.reference is None:
            return make()
        own = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
        if self.reference is not None:
            copy_weights(model, self.reference)
        built = make()
        if self.policy == self.reference:
            return built
        if self.policy is not None:
            copy_weights(model, self.policy)
        else:
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if name in own:
                        weight.copy_(own[name])
        return built

    def note(self, reference: Reference) -> None:
        """Let a reference know that the policy need not equal it before the first update."""
        if self.policy != self.reference:
            inner = reference.inner if isinstance(reference, CachedReference) else reference
            inner.start_tolerance = None
