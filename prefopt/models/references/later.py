"""Another model as the reference, loaded when something is first asked of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.errors import ModelError, RunError
from prefopt.models.references.base import Reference
from prefopt.models.references.identity import COMPUTED_AS, Identity, software
from prefopt.models.references.kinds import FrozenModel
from prefopt.models.states import Reduction, States
from prefopt.records import Pack

_CHUNK = 1 << 24
"""Bytes of a file that are read at once."""


class LaterModel(Reference):
    """What `FrozenModel` is, without the memory until then.

    Args:
        load: loads and checks the model.
        source: names what it is loaded from, by content, and everything that decides how it computes.
        reason: a sentence.
    """

    name = "model"
    gives_states = True
    holds_memory = True
    start_tolerance = None

    def __init__(self, load: Callable[[], FrozenModel], source: Callable[[], str], reason: str) -> None:
        self._load = load
        self._model: FrozenModel | None = None
        self._released = False
        self._stacks: list[ExitStack] = []
        self._expected: Identity | None = None
        self._forget: Callable[[], None] | None = None
        self.source = source
        self.reason = reason

    @property
    def head_rows(self) -> int | None:  # type: ignore[override]  # of the model, once it is there
        return self.model.head_rows

    @property
    def is_loaded(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> FrozenModel:
        """The model; loads it. Raises what loading and checking it raises."""
        if self._released:
            raise ModelError("the reference model was given back, so it computes nothing more.")
        if self._model is None:
            with _without_autocast():  # the first question may come out of a training step
                model = self._load()
            self._check(model)
            self._model = model
            if self._stacks:  # the outermost: it stays attached as long as the policy
                self._stacks[0].enter_context(self._model.attached())
        return self._model

    def expect(self, identity: Identity, forget: Callable[[], None]) -> None:
        """Have the model compared, once it is loaded, with what it is known as; where it differs, that is forgotten."""
        self._expected, self._forget = identity, forget

    def _check(self, model: FrozenModel) -> None:
        if self._expected is None or self._forget is None or (found := model.identity()) is None:
            return
        settings = [{**known.setting, "precision": None} for known in (found, self._expected)]  # of the process
        if settings[0] == settings[1] and found.weights_key == self._expected.weights_key:
            return
        self._forget()
        what = "weights" if settings[0] == settings[1] else "settings"
        raise RunError(
            f"the reference model's {what} are not those that its kept log-probs were computed with ({found.about}): "
            "its files changed since the run began, or code that they name did. Start the run again: it computes "
            "them anew."
        )

    def logprobs(self, pack: Pack, reduction: Reduction = "sum") -> Tensor:
        return self.model.logprobs(pack, reduction)

    def states(self, pack: Pack) -> States:
        return self.model.states(pack)

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as stack:
            self._stacks.append(stack)
            try:
                if self._model is not None:
                    stack.enter_context(self._model.attached())
                yield
            finally:
                self._stacks.remove(stack)

    def identity(self) -> Identity | None:
        return self.model.identity()

    def release(self) -> None:
        self._model = None
        self._released = True


@contextmanager
def _without_autocast() -> Iterator[None]:
    with ExitStack() as stack:
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def source_key(folder: Path, options: Mapping[str, Any]) -> str:
    """Return 32 hexadecimal digits of a model's configuration and weight files, by content, and of `options`."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".py"))
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(_digest, files))
    described = {
        "computed as": COMPUTED_AS,
        "files": [[path.name, content] for path, content in zip(files, contents, strict=True)],
        "precision": torch.get_float32_matmul_precision(),
        "versions": software(("triton", "bitsandbytes")),
        **options,
    }
    return hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest(path: Path) -> str:
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
