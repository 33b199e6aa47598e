"""A reference whose log-probs are kept on disk and computed where they are not there yet."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.errors import RunError
from prefopt.kernels import reduce_segments
from prefopt.models.references.base import Reference
from prefopt.models.references.identity import Identity
from prefopt.models.references.store import ReferenceRow, Store, Value, numbers_of
from prefopt.models.states import Reduction
from prefopt.records import Pack

ROUNDING = {"bfloat16": 0.5, "float16": 0.1, "float32": 1e-4, "float64": 1e-9}
"""Nats that the log-prob of a completion may differ by between two layouts, for the square root of its tokens."""

_AT_ONCE = 4096
"""Completions that are looked up together."""


@dataclass
class CacheCounts:
    """What a run asked of the cache."""

    hits: int = 0
    """Completions whose log-probs were there."""
    misses: int = 0
    """Completions whose log-probs were not."""
    computed: int = 0
    """Completions that were computed: those of every pack with a miss."""
    damaged: int = 0
    """Entries that were there and not sound: counted as misses, and replaced."""
    passes: int = 0
    """Packs that the reference computed."""


@dataclass(frozen=True)
class Asked:
    """What a run will ask for."""

    completions: Iterable[tuple[Sequence[int], Sequence[int]]]
    """(prompt, completion)."""
    per_token: bool
    autocast: torch.dtype | None


class CachedReference(Reference):
    """Gives what is stored of another reference, and has it compute the packs that hold anything new.

    The first stored value is the one used, also by whoever computed it again: a run's numbers don't depend on when it
    was interrupted, nor on who else fills the store.
    """

    def __init__(self, inner: Reference, identity: Identity, store: Store, reason: str) -> None:
        self.inner = inner
        self.name = inner.name
        self.reason = f"{inner.reason} {reason}"
        self.identity_of_inner = identity
        self.store = store
        self.counts = CacheCounts()
        self._rows: dict[torch.dtype | None, ReferenceRow] = {}
        self._held: dict[tuple[str, bool, bytes], bytes] | None = None
        self._longest = 0
        self._device = str(identity.setting["device"])
        self._warned = False

    @property
    def start_tolerance(self) -> float | None:  # type: ignore[override]  # it follows what was read
        """That of the reference; wider once a value came from the store, where another layout may have rounded it."""
        tolerance = self.inner.start_tolerance
        if tolerance is None or not self._longest:
            return tolerance
        # What has no entry is quantized, and as coarse as the coarsest.
        return tolerance + max(ROUNDING.get(dtype, 0.5) for dtype in self._dtypes()) * self._longest**0.5

    def logprobs(self, pack: Pack, reduction: Reduction = "sum") -> Tensor | None:
        keys, lengths = sequence_keys(pack), pack.length.tolist()
        per_token = reduction == "none"
        autocast = torch.get_autocast_dtype(self._device) if torch.is_autocast_enabled(self._device) else None
        row = self._row(autocast)
        found, damaged = self._read(row, dict(zip(keys, lengths, strict=True)), per_token=per_token)
        missing = sum(key not in found for key in keys)
        self.counts.hits += len(keys) - missing
        self.counts.misses += missing
        if missing:
            computed = self._computed(pack, keys, lengths, row, damaged, per_token=per_token)
            if computed is None:
                return None
            found = computed
        else:
            self._note(lengths)
        return _tensor([found[key] for key in keys], lengths, reduction).to(pack.tokens.device)

    def attached(self) -> AbstractContextManager[Any]:
        return self.inner.attached()

    @property
    def live(self) -> Reference | None:
        return self.inner if self._held is None else None

    def release_if_whole(self, asked: Iterable[Asked]) -> bool:
        """Give back the reference's memory if all that a run will ask for is stored, and hold that; else do nothing."""
        held: dict[tuple[str, bool, bytes], bytes] = {}
        for part in asked:
            row, completions = self._row(part.autocast), iter(part.completions)
            while some := list(islice(completions, _AT_ONCE)):
                lengths = {sequence_key(prompt, completion): len(completion) for prompt, completion in some}
                found, _ = self.store.read(row, lengths, per_token=part.per_token)
                if found.keys() != lengths.keys():
                    return False
                held.update({(row.key, part.per_token, key): data for key, data in found.items()})
        self._held = held
        self.inner.release()
        self.reason += " Everything that the run asks for is there, so no weights of the reference are held in memory."
        return True

    @property
    def keys(self) -> list[str]:
        """Of the references in the store whose values were asked for: one a precision of autocast."""
        return [row.key for row in self._rows.values()]

    def summary(self) -> dict[str, Any]:
        """Return where the values lie, whose they are and what was asked of them; JSON-able."""
        return {
            "folder": str(self.store.folder),
            "reference": {"setting": self.identity_of_inner.setting_key, "weights": self.identity_of_inner.weights_key},
            **asdict(self.counts),
        }

    def _row(self, autocast: torch.dtype | None) -> ReferenceRow:
        """Return whose values are asked for: autocast is part of how log-probs are computed."""
        if autocast not in self._rows:
            known = self.identity_of_inner
            about = known.about + ("" if autocast is None else f", autocast to {_name(autocast)}")
            self._rows[autocast] = ReferenceRow(known.key(autocast), known.setting_key, known.weights_key, about)
        return self._rows[autocast]

    def _note(self, lengths: Iterable[int]) -> None:
        """Remember the longest completion whose value was computed elsewhere, perhaps in another layout."""
        self._longest = max(self._longest, *lengths, 0)

    def _dtypes(self) -> list[str]:
        """Return the precisions that values were computed in."""
        return [self.identity_of_inner.setting["dtype"], *(_name(autocast) for autocast in self._rows if autocast)]

    def _read(
        self, row: ReferenceRow, lengths: Mapping[bytes, int], *, per_token: bool
    ) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
        if self._held is not None:
            there = {key: self._held.get((row.key, per_token, key)) for key in lengths}
            return {key: data for key, data in there.items() if data is not None}, {}
        found, damaged = self.store.read(row, lengths, per_token=per_token)
        self.counts.damaged += len(damaged)
        if damaged and not self._warned:
            self._warned = True
            warnings.warn(
                f"{len(damaged)} of {len(lengths)} log-probs of the reference in {self.store.folder} are damaged; they "
                "are computed anew. Further ones are counted, not named.",
                stacklevel=2,
            )
        return found, damaged

    def _computed(
        self,
        pack: Pack,
        keys: Sequence[bytes],
        lengths: Sequence[int],
        row: ReferenceRow,
        damaged: Mapping[bytes, bytes],
        *,
        per_token: bool,
    ) -> dict[bytes, bytes] | None:
        """Compute a pack, store what is new of it, and return what holds for each completion now."""
        if self._held is not None:
            raise RunError(
                "a completion is asked for that was not in the reference cache when the run began, and the reference "
                "was given back: go on by --resume, or write reference.cache: false."
            )
        new = self.inner.logprobs(pack, "none" if per_token else "sum")
        if new is None:
            return None
        self.counts.computed += len(keys)
        self.counts.passes += 1
        values = _values(keys, lengths, new, per_token=False) if not per_token else [
            *_values(keys, lengths, new, per_token=True),
            *_values(keys, lengths, reduce_segments(new, pack.segment, len(keys)).to(new.dtype), per_token=False),
        ]  # fmt: skip
        own = {value.completion: value.data for value in values if value.per_token == per_token}
        won = self.store.write(row, [value for value in values if value.is_logprob], damaged)
        found = {key: won.get((key, per_token), data) for key, data in own.items()}
        self._note(length for key, length in zip(keys, lengths, strict=True) if found[key] != own[key])
        return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def sequence_key(prompt: Sequence[int], completion: Sequence[int]) -> bytes:
    """Return the key of a completion behind its prompt: 16 bytes of their token ids and where one ends."""
    return _keyed(_begun(len(prompt)), np.asarray([*prompt, *completion]))


def sequence_keys(pack: Pack) -> list[bytes]:
    """Return the key of each of the pack's S completions: what `sequence_key` gives."""
    tokens = pack.tokens.cpu().numpy()
    if pack.layout is None:
        widths = [tokens.shape[1]] * len(tokens) if pack.mask is None else pack.mask.sum(1).tolist()
        rows = zip(tokens, widths, pack.length.tolist(), strict=True)
        return [_keyed(_begun(width - length), row[:width]) for row, width, length in rows]
    keys: list[bytes] = []
    for group in pack.layout.groups:
        stop = group.start + group.prompt
        prompt = _begun(group.prompt)
        prompt.update(_bytes(tokens[0, group.start : stop]))
        for length in group.completions:
            keys.append(_keyed(prompt.copy(), tokens[0, stop : stop + length]))
            stop += length
    return keys


def _begun(prompt: int) -> Any:
    return hashlib.blake2b(prompt.to_bytes(8, "little"), digest_size=16)


def _keyed(begun: Any, tokens: np.ndarray[Any, Any]) -> bytes:
    begun.update(_bytes(tokens))
    key: bytes = begun.digest()
    return key


def _bytes(tokens: np.ndarray[Any, Any]) -> bytes:
    return tokens.astype("<i4").tobytes()


def _values(keys: Sequence[bytes], lengths: Sequence[int], found: Tensor, *, per_token: bool) -> list[Value]:
    flat = found.detach().cpu().numpy()
    flat = flat.astype(f"<f{flat.itemsize}", copy=False)
    stops = np.cumsum(lengths) if per_token else np.arange(1, len(keys) + 1)
    parts = np.split(flat, stops[:-1])
    return [
        Value(key, length, part.tobytes(), per_token) for key, length, part in zip(keys, lengths, parts, strict=True)
    ]


def _tensor(data: Sequence[bytes], lengths: Sequence[int], reduction: Reduction) -> Tensor:
    """Return stored values as (S,), or token by token (N,)."""
    counts = lengths if reduction == "none" else [1] * len(lengths)
    parts = [numbers_of(part, count) for part, count in zip(data, counts, strict=True)]
    numbers = np.concatenate(parts)
    found = torch.from_numpy(numbers.astype(numbers.dtype.newbyteorder("=")))
    return found / torch.tensor(lengths) if reduction == "mean" else found
