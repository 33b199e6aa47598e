"""Scores and groups of a round in Parquet, and the content of each as a hash."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefopt.data import DataSummary, Example, PreferenceData
from prefopt.data.files import written
from prefopt.errors import RunError
from prefopt.rounds.files import content_hash
from prefopt.rounds.select_config import Form
from prefopt.sampling import Rollout


@dataclass(frozen=True)
class ScoreRow:
    """What a rollout was given."""

    prompt_id: str
    sample: int
    score: float | None
    """None where a scorer failed."""
    correct: bool | None
    """Whether a verifier takes it as right; None where nothing says so."""
    broken: bool
    """Its thinking is missing where it is required, or its tags make no sense."""
    failure: str | None
    """Why it has no score."""


@dataclass(frozen=True)
class GroupRow:
    """One example: a prompt and its completions, as they were sampled."""

    prompt_id: str
    prompt_ids: tuple[int, ...]
    samples: tuple[int, ...]
    """Which of the prompt's samples the completions are: (chosen, rejected), the best first of a list, or one."""
    completions: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]
    cut: tuple[bool, ...]
    """Of each completion, whether it was cut before it ended."""
    label: bool | None
    """Of a labelled completion or a demonstration."""


def rollouts_hash(rollouts: Iterable[Rollout]) -> str:
    """Return the hash of what was sampled and its log-probs."""
    return content_hash(asdict(rollout) for rollout in rollouts)


def rows_hash(rows: Iterable[ScoreRow | GroupRow]) -> str:
    """Return the hash of scores or groups."""
    return content_hash(asdict(row) for row in rows)


def write_scores(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Write scores whole or not at all. Raises `RunError` when the disk refuses."""
    _write(path, rows, _score_fields())


def read_scores(path: Path) -> list[ScoreRow]:
    """Return what `write_scores` wrote. Raises `RunError` for a file that is missing or damaged."""
    return [ScoreRow(**row) for row in _read(path, _score_fields())]


def write_groups(path: Path, rows: Sequence[GroupRow]) -> None:
    """Write groups whole or not at all. Raises `RunError` when the disk refuses."""
    _write(path, rows, _group_fields())


def read_groups(path: Path) -> list[GroupRow]:
    """Return what `write_groups` wrote. Raises `RunError` for a file that is missing or damaged."""
    many = ("prompt_ids", "samples", "scores", "cut")
    return [
        GroupRow(
            **row | {name: tuple(row[name]) for name in many} | {"completions": tuple(map(tuple, row["completions"]))}
        )
        for row in _read(path, _group_fields())
    ]


def preferences(form: Form, rows: Sequence[GroupRow]) -> PreferenceData:
    """Return groups as training data, of the token ids as they were sampled.

    Raises:
        DataError: a group that doesn't have what its form needs.
    """
    kind = {"pairs": "paired", "lists": "listwise"}.get(form, "unpaired")
    examples = [
        Example(
            row.prompt_ids,
            row.completions,
            label=row.label,
            source=f"{row.prompt_id}:{','.join(map(str, row.samples))}",
            scores=() if kind == "unpaired" else row.scores,
            cut=row.cut if any(row.cut) else (),
        )
        for row in rows
    ]
    named = "demonstration" if form == "demonstrations" else kind
    summary = DataSummary(rows_read=len(rows), rows_used=len(rows), form=named)
    return PreferenceData(kind, examples, summary=summary)  # type: ignore[arg-type]  # one of the three forms


def _write(path: Path, rows: Sequence[Any], fields: Sequence[tuple[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {name: [getattr(row, name) for row in rows] for name, _ in fields}, schema=pyarrow.schema(fields)
    )
    with written(path) as aside, aside.open("wb") as file:
        pyarrow.parquet.write_table(table, file, compression="zstd")


def _read(path: Path, fields: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, partitioning=None)
        rows: list[dict[str, Any]] = table.select([name for name, _ in fields]).to_pylist()
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise RunError(f"{path} can't be read: {' '.join(str(error).split())[:300]}") from error
    return rows


def _score_fields() -> list[tuple[str, Any]]:
    import pyarrow

    return [
        ("prompt_id", pyarrow.string()),
        ("sample", pyarrow.int32()),
        ("score", pyarrow.float64()),
        ("correct", pyarrow.bool_()),
        ("broken", pyarrow.bool_()),
        ("failure", pyarrow.string()),
    ]


def _group_fields() -> list[tuple[str, Any]]:
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    return [
        ("prompt_id", pyarrow.string()),
        ("prompt_ids", ids),
        ("samples", ids),
        ("completions", pyarrow.list_(ids)),
        ("scores", pyarrow.list_(pyarrow.float64())),
        ("cut", pyarrow.list_(pyarrow.bool_())),
        ("label", pyarrow.bool_()),
    ]


def finite_mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of those that are numbers; None where none is."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(there) / len(there) if there else None
