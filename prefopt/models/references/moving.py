"""A reference that follows the policy: trust-region updates of the copy that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prefopt.errors import RunError
from prefopt.models.adapters import adapter_changes_nothing
from prefopt.models.packed import PackedModel
from prefopt.models.references.base import Reference
from prefopt.models.references.identity import Identity
from prefopt.models.references.kinds import AdapterOff, FrozenCopy


class MovingCopy(FrozenCopy):
    """A frozen copy that becomes `mix` x policy + (1 - `mix`) x copy after every `every` optimizer steps.

    The soft (mix < 1) and hard (mix 1) updates of TR-DPO (arXiv 2404.09656).
    """

    name = "moving"
    holds_memory = False  # it is never all on disk

    def __init__(self, policy: PackedModel, reason: str, *, every: int, mix: float) -> None:
        super().__init__(policy, reason)
        self.every = every
        self.mix = mix
        self._start: Reference = self
        if adapter_changes_nothing(policy.model):
            self._start = AdapterOff(policy, "the policy as it started.", starts_equal=True)
        names = {id(live): name for name, live in policy.model.named_parameters()}
        self._copies = {
            names[id(live)]: (live, copy)
            for module, name, copy in self._places
            if id(live := getattr(module, name)) in names
        }

    def identity(self) -> Identity | None:
        return None

    @torch.no_grad()
    def end_step(self, step: int) -> bool:
        """Move after every `every`-th step; products and sum in float32."""
        if step % self.every:
            return False
        for live, copy in self._copies.values():
            if self.mix == 1:
                copy.copy_(live)
            else:
                copy.copy_(torch.lerp(copy.float(), live.to(copy.device).float(), self.mix))
        return True

    def state_dict(self) -> dict[str, Tensor]:
        return {name: copy.detach() for name, (_, copy) in self._copies.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a saved copy. Raises `RunError` when it is one of other weights."""
        if odd := sorted(state.keys() ^ self._copies.keys()):
            raise RunError(
                f"the saved reference has other weights than the policy trains ({odd[0]}, ...): resume with the recipe "
                "the run began with."
            )
        for name, (_, copy) in self._copies.items():
            copy.data.copy_(state[name])

    @property
    def start(self) -> Reference:
        return self._start
