"""Switch a model's mode for a moment and put everything back, also when the work inside fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode it was in."""
    # Module by module: `model.train()` at the end would also wake those that were frozen on purpose. And past
    # `Module.__setattr__`, which looks for parameters first: for thousands of modules around every pack, that is seen.
    training = [vars(module) for module in model.modules() if module.training]
    try:
        for attributes in training:
            attributes["training"] = False
        yield
    finally:
        for attributes in training:
            attributes["training"] = True
