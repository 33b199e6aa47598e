"""The steps of a plan, or of a stream, as packs: one item a step, resumable to the token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from prefopt.data.pack import OverBudget, build_packs
from prefopt.data.shard import shard
from prefopt.data.steps import StepPlan
from prefopt.data.windows import PreferenceStream, State
from prefopt.data.workers import in_order
from prefopt.errors import DataError
from prefopt.records import Group, Pack

Item = dict[str, list[Pack]]


@dataclass(frozen=True)
class Packing:
    """How the groups of a step become packs, and which of those are this rank's."""

    token_budget: int
    shared: bool
    one_row: bool = False
    over_budget: OverBudget = "own_pack"
    rank: int = 0
    world: int = 1

    def packs(self, groups: list[Group]) -> list[Pack]:
        packs = build_packs(
            groups,
            token_budget=self.token_budget,
            shared=self.shared,
            one_row=self.one_row,
            over_budget=self.over_budget,
        )
        return shard(packs, self.rank, self.world)


class StepLoader:
    """Iterates over the steps of an epoch as `{"micro": [Pack, ...]}`.

    Its place is (epoch, step): the next step to hand out. Iterating goes on from there to the end of the epoch, and
    then the place is the start of the next one. A step is computed from its place alone, so a resume costs nothing.
    """

    def __init__(
        self,
        plan: StepPlan,
        *,
        token_budget: int,
        shared: bool,
        one_row: bool = False,
        over_budget: OverBudget = "own_pack",
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        """Load the steps of `plan`.

        Args:
            plan: which examples a step holds.
            token_budget: as `build_packs` takes it, and `shared`, `one_row` and `over_budget`.
            rank: hand out this rank's packs of each step,
            world: of so many.
            workers: processes that build packs ahead; the steps are the same for any number.
        """
        self.plan = plan
        self.packing = Packing(token_budget, shared, one_row, over_budget, rank, world)
        self.workers = workers
        self._epoch = 0
        self._step = 0
        self._loaded = False  # a place was loaded and nothing has been read from it yet

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __iter__(self) -> Iterator[Item]:
        epoch, first = self._epoch, self._step
        self._loaded = False
        steps = range(first, len(self))
        work = partial(_plain_packs, self.plan, self.packing, epoch) if self.workers else partial(self.packs, epoch)
        for step, packs in zip(steps, in_order(work, steps, self.workers), strict=True):
            self._epoch, self._step = (epoch, step + 1) if step + 1 < len(self) else (epoch + 1, 0)
            yield {"micro": [_with_tensors(pack) for pack in packs] if self.workers else packs}

    def packs(self, epoch: int, step: int) -> list[Pack]:
        """Build the packs of one step without moving the place."""
        return self.packing.packs(self.plan.groups(epoch, step))

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; after `load_state_dict`, the same epoch keeps the loaded place."""
        if self._loaded and epoch == self._epoch:
            return
        self._epoch, self._step, self._loaded = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Return the place and what it is a place in; JSON-able."""
        return {"epoch": self._epoch, "step": self._step, **self.plan.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved place; `epoch` and `step` are enough, the rest is compared where it is there.

        Raises:
            DataError: the state belongs to other data, another seed, step size or order, or to no step at all.
        """
        _check_identity(self.plan.identity(), state)
        epoch, step = int(state["epoch"]), int(state["step"])
        if epoch < 0 or not 0 <= step <= len(self):
            raise DataError(f"The saved place is step {step} of epoch {epoch}; an epoch has {len(self)} steps.")
        self._epoch, self._step = (epoch + 1, 0) if step == len(self) else (epoch, step)
        self._loaded = True


class StreamLoader:
    """Iterates over the steps of a stream as `{"micro": [Pack, ...]}`, without end.

    Its place is the start of a window and a step in it: a resume reads that one window again. The order inside a window
    is a `StepPlan`'s, with the window's number for the epoch; mismatched completions come from the same window.
    """

    def __init__(
        self,
        stream: PreferenceStream,
        packing: Packing,
        *,
        examples_per_step: int,
        seed: int,
        mismatched: bool = False,
        group_prompts: bool = True,
    ) -> None:
        """Load the steps of `stream`.

        Args:
            stream: in the form that the loss asks for.
            packing: how a step becomes packs.
            examples_per_step: examples of every step.
            seed: any integer.
            mismatched: as `StepPlan` takes it, and `group_prompts`.
        """
        self.stream = stream
        self.packing = packing
        self._plan = partial(
            StepPlan, examples_per_step=examples_per_step, seed=seed, mismatched=mismatched, group_prompts=group_prompts
        )
        self._window, self._step = 0, 0
        self._at: Callable[[], State | None] = lambda: None
        self._examples_per_step = examples_per_step
        self._identity: dict[str, Any] = {
            "data": stream.fingerprint,
            "seed": seed,
            "examples_per_step": examples_per_step,
            "mismatched": mismatched,
            "group_prompts": group_prompts,
        }

    def __iter__(self) -> Iterator[Item]:
        number, first = self._window, self._step
        with closing(self.stream.windows(self._examples_per_step, self._at())) as windows:
            for window in windows:
                plan = self._plan(window.data)
                for step in range(first, plan.steps_per_epoch):
                    packs = self.packing.packs(plan.groups(number, step))
                    self._window, self._step, self._at = number, step + 1, window.state
                    yield {"micro": packs}
                number, first = number + 1, 0

    def identity(self) -> dict[str, Any]:
        """Return what the steps are a function of; JSON-able."""
        return dict(self._identity)

    def state_dict(self) -> dict[str, Any]:
        """Return the place and what it is a place in; JSON-able."""
        return {"window": self._window, "step": self._step, "at": self._at(), **self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved place.

        Raises:
            DataError: the state belongs to other sources or options, another seed, step size or order.
        """
        _check_identity(self._identity, state)
        self._window, self._step = state["window"], state["step"]
        self._at = lambda: state["at"]


def _check_identity(mine: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    for name, value in mine.items():
        if state.get(name, value) != value:
            raise DataError(
                f"The saved place in the data can't be resumed: its {name} was {state[name]} and now is {value}. "
                "Restore the data and settings of that run, or start a new one."
            )


def _plain_packs(plan: StepPlan, packing: Packing, epoch: int, step: int) -> list[Any]:
    """Return the packs of a step with arrays in place of tensors: between processes each tensor is an open file."""
    return [
        _changed(pack, torch.Tensor, lambda tensor: tensor.numpy()) for pack in packing.packs(plan.groups(epoch, step))
    ]


def _with_tensors(pack: Any) -> Pack:
    return _changed(pack, np.ndarray, torch.from_numpy)


def _changed(pack: Any, kind: type, change: Any) -> Any:
    found = {field.name: getattr(pack, field.name) for field in fields(pack)}
    return replace(pack, **{name: change(value) for name, value in found.items() if isinstance(value, kind)})
