"""The steps of a plan as packs, one item a step, resumable to the token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prefopt.data.pack import build_packs
from prefopt.data.steps import StepPlan
from prefopt.errors import DataError
from prefopt.records import Pack


class StepLoader:
    """Iterates over the steps of an epoch as `{"micro": [Pack, ...]}`.

    Its place is (epoch, step): the next step to hand out. Iterating goes on from there to the end of the epoch, and
    then the place is the start of the next one. A step is computed from its place alone, so a resume costs nothing.
    """

    def __init__(self, plan: StepPlan, *, token_budget: int, shared: bool, one_row: bool = False) -> None:
        self.plan = plan
        self.token_budget = token_budget
        self.shared = shared
        self.one_row = one_row
        self._epoch = 0
        self._step = 0
        self._loaded = False  # a place was loaded and nothing has been read from it yet

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __iter__(self) -> Iterator[dict[str, list[Pack]]]:
        epoch, first = self._epoch, self._step
        self._loaded = False
        for step in range(first, len(self)):
            packs = self.packs(epoch, step)
            self._epoch, self._step = (epoch, step + 1) if step + 1 < len(self) else (epoch + 1, 0)
            yield {"micro": packs}

    def packs(self, epoch: int, step: int) -> list[Pack]:
        """Build the packs of one step without moving the place."""
        groups = self.plan.groups(epoch, step)
        return build_packs(groups, token_budget=self.token_budget, shared=self.shared, one_row=self.one_row)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; after `load_state_dict`, the same epoch keeps the loaded place."""
        if self._loaded and epoch == self._epoch:
            return
        self._epoch, self._step, self._loaded = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Return the place and what it is a place in; JSON-able."""
        return {"epoch": self._epoch, "step": self._step, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved place; `epoch` and `step` are enough, the rest is compared where it is there.

        Raises:
            DataError: the state belongs to other data, another seed or another step size, or to no step at all.
        """
        for name, value in self._identity().items():
            if state.get(name, value) != value:
                raise DataError(
                    f"The saved place in the data can't be resumed: its {name} was {state[name]} and now is {value}. "
                    "Restore the data and settings of that run, or start a new one."
                )
        epoch, step = int(state["epoch"]), int(state["step"])
        if epoch < 0 or not 0 <= step <= len(self):
            raise DataError(f"The saved place is step {step} of epoch {epoch}; an epoch has {len(self)} steps.")
        self._epoch, self._step = (epoch + 1, 0) if step == len(self) else (epoch, step)
        self._loaded = True

    def _identity(self) -> dict[str, Any]:
        return {
            "data": self.plan.data.fingerprint,
            "seed": self.plan.seed,
            "examples_per_step": self.plan.examples_per_step,
            "mismatched": self.plan.mismatched,
        }
