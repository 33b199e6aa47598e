"""What a run took: time, tokens, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prefopt.report.read import Json, RunFiles
from prefopt.report.words import NONE, duration, is_number, number, percent


def train_cost(run: RunFiles) -> list[tuple[str, str]]:
    """Return what training took, by what its steps logged."""
    if not run.metrics:
        return []
    last = run.metrics[-1]
    steps = float(last["step"])
    seconds = last.get("time")
    memory = _values(run.metrics, "memory_bytes")
    found = [
        ("Steps", number(last["step"])),
        ("Time", duration(seconds)),
        ("Time a step", f"{number(seconds / steps)} s" if is_number(seconds) and steps else NONE),
        ("Tokens computed", number(last.get("tokens"))),
        ("Tokens a second", _middle(run.metrics, "tokens_per_second")),
        ("Share of the machine’s arithmetic", _share(run.metrics)),
        ("Memory at most", f"{number(max(memory) / 2**30)} GiB" if memory else NONE),
        ("Examples used", number(((run.data or {}).get("train") or {}).get("rows_used"))),
    ]
    return [(label, value) for label, value in found if value != NONE]


def _values(rows: Sequence[Json], key: str) -> list[float]:
    return [float(row[key]) for row in rows if is_number(row.get(key))]


def _middle(rows: Sequence[Json], key: str) -> str:
    values = _values(rows, key)
    return f"{number(round(float(np.median(values))))} (median of the steps)" if values else NONE


def _share(rows: Sequence[Json]) -> str:
    values = _values(rows, "flops_share")
    return f"{percent(float(np.median(values)))} (median of the steps)" if values else NONE


def rounds_cost(seconds: Mapping[str, float], sampled: int, memory: float | None) -> list[tuple[str, str]]:
    """Return what rounds took, stage by stage.

    Args:
        seconds: stage -> wall time of all rounds and starts.
        sampled: tokens sampled to learn from.
        memory: bytes that training took at most, where it was logged.
    """
    total = sum(seconds.values())
    found = [
        ("Time of all stages", duration(total) if seconds else NONE),
        *(
            (f"… {stage}", f"{duration(part)} ({percent(part / total)})")
            for stage, part in sorted(seconds.items(), key=lambda one: -one[1])
            if total and part >= 0.001 * total
        ),
        ("Tokens sampled to learn from", number(sampled) if sampled else NONE),
        ("Sampled tokens a second", number(round(sampled / seconds["sample"])) if seconds.get("sample") else NONE),
        ("Memory at most, training", f"{number(memory / 2**30)} GiB" if memory else NONE),
    ]
    return [(label, value) for label, value in found if value != NONE]
