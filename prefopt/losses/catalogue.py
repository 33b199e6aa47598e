"""What each loss says of itself, for people and programs that choose one."""

from __future__ import annotations

from dataclasses import dataclass

from prefopt.losses.base import Statistics
from prefopt.losses.registry import available

_DATA = {
    "paired": "pairs",
    "unpaired": "labels or pairs",
    "demonstration": "good answers, of labels or pairs",
}


@dataclass(frozen=True)
class Entry:
    """One loss of the catalogue."""

    name: str
    meaning: str
    """One sentence."""
    data: str
    """What it trains on, in words: pairs serve unpaired losses too."""
    needs_reference: bool
    statistics: Statistics
    """What of a step its examples share; `none`: each counts by itself."""
    hyper: dict[str, float | bool | str]
    """Hyper-parameters with their defaults."""
    paper: str


def catalogue() -> list[Entry]:
    """Return every loss, in alphabetical order."""
    return [
        Entry(
            name=name,
            meaning=kind.meaning(),
            data=_DATA[kind.form],
            needs_reference=kind.needs_reference,
            statistics=kind.statistics,
            hyper=kind().hyper(),
            paper=kind.paper,
        )
        for name, kind in available().items()
    ]
