"""What goes into sampling and what comes out of it: prompts from any file, rollouts in Parquet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from prefopt.data.config import DataOptions
from prefopt.data.files import written
from prefopt.data.formats.extras import without_nulls
from prefopt.data.read import as_messages, plain
from prefopt.data.sources import Source, open_sources
from prefopt.errors import DataError, RunError, nearest
from prefopt.sampling.prompts import encode_prompt

if TYPE_CHECKING:
    import pyarrow

Message: TypeAlias = "Mapping[str, Any]"
Finish = Literal["end", "length"]


@dataclass(frozen=True)
class Prompt:
    """What is to be answered, and what else its row says of it (a known answer, say)."""

    prompt_id: str
    """16 hex digits, the digest of prompt and row: the same content has the same id in any file and order."""
    prompt: str | tuple[Message, ...]
    """Text to continue, or the messages that the assistant answers."""
    row: Mapping[str, Any]
    """Every other column."""

    @classmethod
    def of(cls, prompt: str | Iterable[Message], row: Mapping[str, Any] | None = None) -> Prompt:
        """Return the prompt with the id of its content."""
        kept = prompt if isinstance(prompt, str) else tuple(dict(message) for message in prompt)
        row = dict(row or {})
        content = json.dumps([kept, row], sort_keys=True, default=str)
        return cls(hashlib.sha256(content.encode()).hexdigest()[:16], kept, row)


@dataclass(frozen=True)
class Rollout:
    """One completion that was sampled, and what is known of it whatever it is scored by."""

    prompt_id: str
    """Of the prompt that it answers."""
    sample: int
    """Which of the prompt's n samples it is, from 0."""
    seed: int
    """What it was drawn with."""
    prompt_ids: tuple[int, ...]
    """The token ids that the completion follows."""
    token_ids: tuple[int, ...]
    """The completion as it was sampled, with its end of turn unless it was cut."""
    text: str
    """The completion without special tokens."""
    finish: Finish
    """Whether it ended by itself or at the longest length."""
    policy: float
    """log pi(y | x) under the policy at temperature 1, nats, by prefopt's kernel."""
    reference: float | None
    """The same under the reference, where there is one."""


class Prompts(list[Prompt]):
    """Distinct prompts in the order of their first row, and what became of the other rows."""

    def __init__(self, prompts: Iterable[Prompt] = ()) -> None:
        super().__init__(prompts)
        self.duplicates = 0
        """Rows that repeat an earlier one in every column."""
        self.empty = 0
        """Rows whose prompt is missing or holds nothing but space."""
        self.rejected: list[str] = []
        """For each row that can't be used, where it stands and why."""


def read_prompts(
    source: Source,
    tokenizer: Any = None,
    *,
    column: str = "prompt",
    max_tokens: int | None = None,
    options: DataOptions | None = None,
) -> Prompts:
    """Read the prompts of files, data sets or rows in memory; every distinct row once.

    Args:
        source: as of `load_preferences`.
        tokenizer: when given, prompts that it can't encode are rejected here instead of when they are sampled.
        column: which column holds the prompt: text, or a list of messages.
        max_tokens: with a tokenizer, the longest prompt that is used.
        options: how data sets are opened (`config`, `split`, `revision`), and the share of rows that may be rejected.

    Raises:
        DataError: nothing to read, no such column, no prompt left, or more rejected rows than `max_rejected` allows.
    """
    options = options or DataOptions()
    found = Prompts()
    seen: set[str] = set()
    total = 0
    for named in open_sources(source, options):
        for raw in named.read(None):
            total += 1
            if raw.row is None:
                found.rejected.append(f"{raw.where}: {raw.problem}")
                continue
            if column not in raw.row:
                raise DataError(
                    f"{raw.where} has no column '{column}' to take the prompt from; it has {', '.join(raw.row)}"
                    f"{nearest(column, raw.row) or '; name one of them.'}"
                )
            value = as_messages(raw.row[column])
            if not _says_something(value):
                found.empty += 1
                continue
            reason = _unusable(value, tokenizer, max_tokens)
            if reason:
                found.rejected.append(f"{raw.where}: {reason}")
                continue
            others = {name: plain(item) for name, item in raw.row.items() if name != column}
            prompt = Prompt.of(str(value) if isinstance(value, str) else map(without_nulls, value), others)
            if prompt.prompt_id in seen:
                found.duplicates += 1
            else:
                seen.add(prompt.prompt_id)
                found.append(prompt)
    _check(found, total, options.max_rejected)
    return found


def _says_something(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value is not None and value != []


def _unusable(value: Any, tokenizer: Any, max_tokens: int | None) -> str:
    """Return why a prompt can't be sampled from, or an empty string."""
    if not isinstance(value, str) and not (
        isinstance(value, list | tuple) and all(isinstance(item, Mapping) and "role" in item for item in value)
    ):
        return f"the prompt is of type {type(value).__name__}, not a text or a list of messages with a role"
    if tokenizer is None:
        return ""
    try:
        length = len(encode_prompt(tokenizer, value))
    except DataError as error:
        return str(error)
    too_long = max_tokens is not None and length > max_tokens
    return f"the prompt has {length} tokens, more than {max_tokens}" if too_long else ""


def _check(found: Prompts, total: int, max_rejected: float) -> None:
    rejected = len(found.rejected)
    if total and rejected > max_rejected * total:
        raise DataError(
            f"{rejected} of {total} prompts can't be used, more than max_rejected={max_rejected:g} of them; the first: "
            f"{found.rejected[0]}"
        )
    if not found:
        raise DataError(
            f"There is no prompt to sample from: of {total} rows {found.empty} are empty and {rejected} unusable."
        )


def prompt_key(prompt: Any) -> str:
    """Return what tells a prompt (text or messages) from others by itself, without the rest of its row."""
    kept = str(prompt) if isinstance(prompt, str) else [without_nulls(message) for message in prompt]
    return "prompt:" + json.dumps(kept, sort_keys=True, default=str)


def write_rollouts(path: Path, rollouts: Iterable[Rollout]) -> None:
    """Write rollouts, in their order, to one Parquet file that appears whole or not at all.

    Raises:
        RunError: the disk refuses.
    """
    import pyarrow
    import pyarrow.parquet

    kept = list(rollouts)
    names = [field.name for field in fields(Rollout)]
    table = pyarrow.table({name: [getattr(rollout, name) for rollout in kept] for name in names}, schema=_schema())
    with written(path) as aside, aside.open("wb") as file:
        pyarrow.parquet.write_table(table, file, compression="zstd")


def read_rollouts(path: Path) -> list[Rollout]:
    """Return what `write_rollouts` wrote.

    Raises:
        RunError: the file is missing, damaged, or holds something else.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, partitioning=None)
    except (OSError, pyarrow.ArrowException) as error:
        raise RunError(f"The rollouts {path} can't be read: {' '.join(str(error).split())[:300]}") from error
    missing = [field.name for field in _schema() if field not in table.schema]
    if missing:
        raise RunError(f"{path} holds no rollouts: the column '{missing[0]}' is missing or has another type.")
    return list(_rollouts(table))


def _rollouts(table: pyarrow.Table) -> Iterator[Rollout]:
    for row in table.select([field.name for field in fields(Rollout)]).to_pylist():
        yield Rollout(**row | {name: tuple(row[name]) for name in ("prompt_ids", "token_ids")})


def _schema() -> pyarrow.Schema:
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    return pyarrow.schema(
        [
            ("prompt_id", pyarrow.string()),
            ("sample", pyarrow.int32()),
            ("seed", pyarrow.int64()),
            ("prompt_ids", ids),
            ("token_ids", ids),
            ("text", pyarrow.string()),
            ("finish", pyarrow.string()),
            ("policy", pyarrow.float64()),
            ("reference", pyarrow.float64()),
        ]
    )
