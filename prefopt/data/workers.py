"""Work in other processes, its results in the order of the tasks."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from prefopt.errors import PrefoptError, RunError

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 2
"""Tasks that wait for each worker."""


def in_order(work: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Yield `work(task)` for each task, in order, computed in `workers` processes, or here where it is 0.

    Args:
        work: can be pickled, and so can what it takes and returns. What it returns must hold no tensors: each would
            keep a file open on its way.
        tasks: drawn in this process, a few ahead of the results.
        workers: processes.

    Raises:
        RunError: a worker died.
    """
    if not workers:
        yield from map(work, tasks)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # how many is the user's choice
        results = iter(_loader(work, tasks, workers))
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(
                f"A process that prepares data died ({error}). Memory may have run out: use fewer data.workers, and go "
                "on from the last checkpoint by --resume."
            ) from error
        if isinstance(result, PrefoptError):
            raise result
        yield result


def _loader(work: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> DataLoader[Any]:
    return DataLoader(
        _Work(work),
        sampler=tasks,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=partial(_die_with, os.getpid()),
        generator=torch.Generator(),  # else every epoch would take a number from the run's own
    )


class _Work(Dataset[Any], Generic[Task, Result]):
    """What a worker runs: an error that is a sentence travels as it is."""

    def __init__(self, work: Callable[[Task], Result]) -> None:
        self._work = work

    def __getitem__(self, task: Any) -> Result | PrefoptError:
        try:
            return self._work(task)
        except PrefoptError as error:
            return error


def _die_with(parent: int, _: int) -> None:
    """Let this worker end with its parent, also where it waits for somebody to take its results."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_it_is(value: Any) -> Any:
    return value
