"""The memory of one way to run a recipe, as a function of its packs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

import torch

from prefopt.losses import Loss
from prefopt.models.config import LoraSection
from prefopt.models.dtypes import DTYPES, resolve_device
from prefopt.models.plan.passes import Passes, PassOptions
from prefopt.models.plan.policy import PlannedPolicy
from prefopt.models.plan.weights import Weights
from prefopt.recipe import Recipe
from prefopt.train.arguments import PreferenceArguments
from prefopt.train.config import DEFAULT_BUDGET
from prefopt.workflow.lengths import Lengths, filled

STEP = 64
"""Budgets are proposed in multiples of this."""
_WIDEST = 1 << 17
"""Budgets beyond are not looked for."""


@dataclass(frozen=True)
class Parts:
    """Bytes at the moment when the most is needed."""

    weights: float
    """Frozen ones."""
    trained: float
    """The adapter, or all weights."""
    gradients: float
    optimizer: float
    reference: float
    """What the reference takes beside the policy."""
    activations: float
    """What passes keep and work on, logits aside."""
    logits: float
    """The tile of logits, and what its sweep takes."""
    context: float
    """What the device's libraries take."""

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Footprint:
    """The memory of one way to run a recipe, as a function of its packs."""

    policy: PlannedPolicy
    recipe: Recipe
    loss: Loss
    lengths: Lengths
    args: PreferenceArguments
    """Those of the recipe. Making them again would reset what accelerate knows of a trainer that is there."""
    optimizer: str
    cached_reference: bool = False
    """Whether every log-prob of the reference is stored before."""

    @cached_property
    def weights(self) -> Weights:
        return self.policy.weights(self.optimizer)

    @property
    def has_reference(self) -> bool:
        """Whether a frozen model runs beside the policy."""
        return self.loss.needs_reference and not self.cached_reference

    @cached_property
    def reference_bytes(self) -> int:
        """What the reference takes beside the policy's own weights."""
        config = self.recipe.reference
        if not self.has_reference:
            return 0
        if config.kind == "model" and config.model is not None:
            if not self._beside(config.device):
                return 0
            stored = {"quantization": config.quantization, "lora": LoraSection(), "adapter": None, "peft": None}
            source = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
            named = self.policy.config.model_copy(update={"name": config.model, "freeze": (), **source, **stored})
            dtype = self.policy.dtype if config.dtype == "auto" else DTYPES[config.dtype]
            found = PlannedPolicy.of(named, dtype, gpu=self.policy.gpu).weights("sgd")
            return found.frozen_bytes + found.dense_bytes
        copied = config.kind in ("frozen_copy", "moving") or (config.kind == "auto" and not self.policy.starts_as_base)
        return self.weights.trainable_bytes if copied else 0

    def _beside(self, device: str) -> bool:
        """Whether a reference on this device shares the policy's memory."""
        own = resolve_device(self.policy.config.device)
        if self.policy.gpu and own.type != "cuda":  # planned for a GPU that is not here
            own = torch.device("cuda")
        there = own if device == "auto" else torch.device(device)
        return (there.type, there.index or 0) == (own.type, own.index or 0)

    @property
    def lasting(self) -> float:
        """Bytes that are there through the whole run, gradients aside."""
        w = self.weights
        return w.frozen_bytes + w.trainable_bytes + w.optimizer_bytes + self.reference_bytes + w.dense_bytes

    def pack_tokens(self, budget: int) -> int:
        """Return the tokens of the largest pack under `budget`: one example at least, one step at most."""
        return min(max(budget, self.lengths.longest), max(self.lengths.longest_step, self.lengths.longest))

    def passes(self, budget: int) -> Passes:
        tokens = self.pack_tokens(budget)
        several = tokens < self.lengths.longest_step
        args = self.args
        options = PassOptions(
            extras=self.loss.extras - {"divergence"},
            labelled_alone=several and self.loss.statistics == "mismatched" and not self.loss.extras,
            autocast=torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None,
        )
        return self.policy.passes(filled(self.lengths.groups, tokens), options, reference=self.has_reference)

    def parts(self, budget: int, passes: Passes, context: float) -> Parts:
        """Return what is needed at the worst moment of a step."""
        w = self.weights
        forward = max(passes.reference, passes.forward)
        logits = min(passes.head, forward) if forward >= passes.backward else 0.0
        gradients, needed = float(w.trainable_bytes), passes.peak
        if self.pack_tokens(budget) >= self.lengths.longest_step:
            # A step of one pack makes its gradients while activations go.
            needed = max(passes.peak - gradients, 0.0, passes.backward - passes.kept)
        return Parts(
            weights=w.frozen_bytes + w.dense_bytes,
            trained=w.trainable_bytes,
            gradients=gradients,
            optimizer=w.optimizer_bytes,
            reference=self.reference_bytes,
            activations=max(0.0, needed - logits),
            logits=logits,
            context=context,
        )

    def total(self, budget: int, passes: Passes | None = None) -> float:
        """Return the bytes of everything but the device's own."""
        return self.parts(budget, passes or self.passes(budget), 0.0).total

    def largest_budget(self, room: float) -> int | None:
        """Return the largest budget, of which everything fits into `room` bytes, or None."""
        most = min(_WIDEST, -(-self.lengths.longest_step // STEP) * STEP)
        least = min(most, max(STEP, -(-self.lengths.longest // STEP) * STEP))
        low, at_low = least, self.total(least)
        if at_low > room:
            return None
        high = most
        at_high = self.total(high)
        if at_high <= room:
            return most
        for _ in range(6):
            # Nearly a line; the tile of logits alone stops growing.
            share = (room - at_low) / (at_high - at_low)
            middle = min(high - STEP, max(low + STEP, int(low + share * (high - low)) // STEP * STEP))
            if high - low <= STEP:
                break
            at_middle = self.total(middle)
            if at_middle > room:
                high, at_high = middle, at_middle
            else:
                low, at_low = middle, at_middle
                if room - at_low < 0.01 * room:
                    break
        return low


def budget_of(footprint: Footprint, largest: int | None) -> int:
    """Return the recipe's budget; for auto, the largest that fits."""
    budget = footprint.recipe.train.token_budget
    return (largest or DEFAULT_BUDGET) if budget == "auto" else budget
