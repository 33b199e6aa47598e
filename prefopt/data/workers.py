"""Work in other processes, its results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from prefopt.errors import PrefoptError, RunError

Task = TypeVar("Task")
Result = TypeVar("Result")

AHEAD = 2
"""Tasks that wait for each worker."""
HERE = 2
"""Tasks that are done in this process before others are started, where nobody says how many: few need none."""
MOST = 8
"""Processes that are started where nobody says how many."""


def in_order(
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int | None,
    *,
    after_death: str = "go on from the last checkpoint by --resume",
) -> Generator[Result, None, None]:
    """Yield `work(task)` for each task, in order, computed in `workers` processes, or here where it is 0.

    Args:
        work: can be pickled, and so can what it returns, which must hold no tensors: each would keep a file open on
            its way. What it takes and can't be pickled is worked on here.
        tasks: drawn in this process, a few ahead of the results.
        workers: processes; None for one a core behind the first `HERE` tasks, or none where that isn't cheap and safe.
        after_death: what the user can do when a worker has died, as "load again".

    Raises:
        RunError: a worker died.
    """
    rest, here = iter(tasks), deque[Task]()
    if workers is None:
        yield from map(work, islice(rest, HERE))
        behind = list(islice(rest, 1))
        rest, workers = chain(behind, rest), processes() if behind else 0
    if not workers:
        yield from map(work, rest)
        return
    for result in _received(_started(work, _packed(rest, here), workers), after_death):
        yield work(here.popleft()) if isinstance(result, str) and result == _NOT_SENT else result


def processes() -> int:
    """Return how many processes are worth starting: one a core; 0 where they would start slowly or not at all."""
    if sys.platform != "linux" or _start_method() != "fork":
        return 0  # each would import everything anew
    if multiprocessing.current_process().daemon:
        return 0  # which may have no children
    try:
        multiprocessing.Semaphore()
    except (OSError, ImportError):
        return 0  # no shared memory to talk through
    cores = len(os.sched_getaffinity(0))
    return min(cores, MOST) if cores > 1 else 0


def _start_method() -> str:
    """Return how processes are started here, without settling it for the rest of this one."""
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def _started(work: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # how many is the user's choice
        return iter(_loader(work, tasks, workers))


def _packed(tasks: Iterable[Task], here: deque[Task]) -> Iterator[bytes]:
    """Yield tasks as what travels between processes; one that can't goes to `here`, and nothing in its place."""
    for task in tasks:
        try:
            packed = pickle.dumps(task, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception:  # noqa: BLE001 - objects of other people's classes raise what they like
            here.append(task)
            packed = b""
        yield packed


def _received(results: Iterator[Any], after_death: str) -> Iterator[Any]:
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except RuntimeError as error:
            if (death := death_of_a_worker(error, after_death)) is None:
                raise
            raise death from error
        if isinstance(result, PrefoptError):
            raise result
        yield result


def death_of_a_worker(
    error: RuntimeError, what_to_do: str = "go on from the last checkpoint by --resume"
) -> RunError | None:
    """Return the sentence for an error that tells of a dead worker, or None for another one.

    The news comes as a signal, so the error may be raised wherever the main thread is.
    """
    if not _DEATH.search(str(error)):  # also what the work raised comes from a "DataLoader worker"
        return None
    return RunError(
        f"A process that prepares data died ({error}). Memory may have run out: use fewer data.workers, and "
        f"{what_to_do}."
    )


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


_DEATH = re.compile(r"DataLoader worker \(pid.*(exited unexpectedly|is killed by signal)")
_NOT_SENT = "not sent"


class _Work(Dataset[Any], Generic[Task, Result]):
    """What a worker runs: an error that is a sentence travels as it is."""

    def __init__(self, work: Callable[[Task], Result]) -> None:
        self._work = work

    def __getitem__(self, packed: bytes) -> Result | PrefoptError | str:
        if not packed:
            return _NOT_SENT
        try:
            return self._work(pickle.loads(packed))
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
