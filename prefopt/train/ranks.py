"""The processes of a run, called ranks: what they tell each other, and how all of them end when one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prefopt.errors import PrefoptError, RunError

Value = TypeVar("Value")

PATIENCE = timedelta(days=7)
"""How long ranks wait for one another: rank 0 may read data for hours. One that dies ends the wait."""
LAST_WORDS = 30.0
"""Seconds that a rank which failed waits for the others to hear why."""
LAST_WORDS_IN_PARTS = 2.0
"""The same where weights lie in parts: whoever waits for such a part hears nothing before this rank has ended."""
_WORD = "prefopt/failed"
"""Where a rank that failed leaves its sentence, for those that only notice that it has gone."""
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport")
"""What gloo says of a process that is no longer there."""
BUCKET = 1 << 25
"""Numbers that are summed over the ranks at once."""


class OtherRankError(RunError):
    """Another rank failed; the message is its."""


@dataclass(frozen=True)
class _Failure:
    """What a rank sends in place of a value, so that nobody waits for it."""

    rank: int
    text: str


@dataclass(frozen=True)
class _Again:
    """What a rank sends in place of a value when all are to begin their step anew."""

    tokens: int


class BeginAgainError(Exception):
    """Another rank ran out of memory: the step begins anew on all of them, in packs of no more than `tokens`."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


class Ranks:
    """The processes that train one policy together; alone, everything here is trivial.

    All ranks call the same methods in the same order. Whatever they exchange, one that failed sends its failure in its
    place: the others then raise what it said, wherever in that order they are.

    Args:
        rank: which of them this process is.
        size: how many there are.
        group: torch's process group for Python objects.
        sharded: weights lie in parts on all ranks, so that every pass through the model needs all of them.
        sums: `sum_gradients` sums; otherwise whoever steps the optimizer does.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, group: Any = None, *, sharded: bool = False, sums: bool = True
    ) -> None:
        self.rank = rank
        self.size = size
        self.sharded = sharded
        self.sums = sums and not sharded
        self._group = group
        self._told: list[BaseException] = []

    def with_sharded_weights(self) -> Ranks:
        """Return the same processes, of which each has its part of the weights; one process has all of them."""
        return self._but(sharded=self.size > 1)

    def without_sums(self) -> Ranks:
        """Return the same processes, whose gradients something else sums."""
        return self._but(sums=False)

    def _but(self, **changes: bool) -> Ranks:
        ranks = Ranks(self.rank, self.size, self._group, **changes)
        ranks._told = self._told  # nothing is told twice
        return ranks

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """Return every rank's value, in the order of ranks; values can be pickled and hold no tensors of a GPU.

        Raises:
            OtherRankError: a rank failed, or died.
            BeginAgainError: a rank asks for that by `begin_again`.
        """
        if self.size == 1:
            return [value]
        found = _unless_failed(self._exchange(value))
        if again := [answer.tokens for answer in found if isinstance(answer, _Again)]:
            raise BeginAgainError(min(again))
        return found

    def begin_again(self, tokens: int) -> int:
        """Let all ranks begin their step anew, in packs of so many tokens; returns how many the smallest limit allows.

        Call it in the middle of a step, in the place of whatever this rank would have exchanged next: the others then
        raise `BeginAgainError`. Not where weights lie in parts, for which the others may be waiting.

        Raises:
            OtherRankError: a rank failed, or died.
        """
        if self.size == 1:
            return tokens
        found = _unless_failed(self._exchange(_Again(tokens)))
        return min(answer.tokens for answer in found if isinstance(answer, _Again))

    def meet(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)

    def of_main(self, make: Callable[[], Value]) -> Value:
        """Return what `make` gives on rank 0, which alone calls it; the others wait."""
        found: Any = self.gather(make() if self.main else None)[0]
        return found

    def of_model(self, make: Callable[[], Value]) -> Value:
        """`of_main` for what passes through the model: where its weights are sharded, all ranks call `make`."""
        return make() if self.sharded else self.of_main(make)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the body on rank 0 before any other: it fills the caches that the others then read."""
        if not self.main:
            self.meet()
        yield
        if self.main:
            self.meet()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell the other ranks when the body fails here, so that they end too; it may be inside of another one."""
        try:
            yield
        except OtherRankError:
            raise
        except BaseException as error:
            if self.size > 1 and _is_of_a_lost_rank(error):
                raise self._lost() from error  # met while weights or gradients were exchanged
            self._tell(error)
            raise

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the ranks, in float32 or better; one that no rank has stays None."""
        if self.size == 1 or not self.sums:
            return
        try:
            self._sum(self.used_by_any(parameters))
        except (RuntimeError, MemoryError) as error:
            if _is_of_a_lost_rank(error):
                raise
            # The others are summing too and can't be asked to begin the step anew.
            raise RunError(
                f"Gradients could not be summed over the processes: {error or 'no memory'}. If memory ran out, lower "
                "train.token_budget, which changes no result, and go on from the last checkpoint by --resume."
            ) from error

    def used_by_any(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Return the parameters that a rank has a gradient of; where this one has none, it is zero from here on."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        held = self.gather(bytes(parameter.grad is not None for parameter in trained))
        used = [parameter for parameter, *there in zip(trained, *held, strict=True) if any(there)]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return used

    def _sum(self, used: Sequence[nn.Parameter]) -> None:
        for bucket in _buckets([p.grad for p in used if p.grad is not None]):
            flat = torch.cat([g.reshape(-1).to(torch.promote_types(g.dtype, torch.float32)) for g in bucket])
            dist.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def take_from_main(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the parameters that train by those of rank 0: a start that is random is the same one everywhere."""
        if self.size > 1:
            for parameter in parameters:
                if parameter.requires_grad:
                    dist.broadcast(parameter.data, src=0)

    def _exchange(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(found, value, group=self._group)
        except RuntimeError as error:
            raise self._lost() from error
        return found

    def _lost(self) -> OtherRankError:
        return OtherRankError(
            _left_word()
            or f"process {self.rank} of {self.size} lost another one, which ended without a word: it was killed, or "
            "its machine ran out of memory. Go on from the last checkpoint by --resume."
        )

    def _tell(self, error: BaseException) -> None:
        """Send `error` in the place of the next value. Ranks that wait for something else are not waited for long."""
        if self.size == 1 or any(told is error for told in self._told):
            return
        self._told.append(error)
        what = str(error) if isinstance(error, PrefoptError) else f"{type(error).__name__}: {error}".rstrip(": ")
        failure = _Failure(self.rank, f"process {self.rank} of {self.size} failed: {what}")
        _leave_word(failure.text)

        def send() -> None:
            try:
                self._exchange(failure)
            except RunError:
                return  # nobody is left to hear it

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        sender.join(LAST_WORDS_IN_PARTS if self.sharded else LAST_WORDS)


ALONE = Ranks()
"""One process."""


def ranks_of_this_run() -> Ranks:
    """Return the ranks that the launcher started, once torch's process group is there; one process otherwise."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return _launched()


@cache
def _launched() -> Ranks:
    """Return the ranks of torch's process group; all of them make the group for objects here, once."""
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=PATIENCE))


def _unless_failed(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, _Failure):
            raise OtherRankError(answer.text)
    return answers


def _leave_word(text: str) -> None:
    """Write down why this rank failed, where the launcher keeps what ranks need to find each other."""
    with suppress(RuntimeError):  # it has ended already
        dist.distributed_c10d._get_default_store().set(_WORD, text)


def _left_word() -> str | None:
    """Return why another rank failed, if it could say so and what it said is still there."""
    with suppress(RuntimeError):
        store = dist.distributed_c10d._get_default_store()
        if store.check([_WORD]):
            return str(store.get(_WORD).decode())
    return None


def _is_of_a_lost_rank(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _GONE)
    )


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in their order, as many at once as `BUCKET` holds, each time of one device and dtype."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        alike = not bucket or (tensor.device, tensor.dtype) == (bucket[0].device, bucket[0].dtype)
        if bucket and not (alike and sum(t.numel() for t in bucket) + tensor.numel() <= BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
