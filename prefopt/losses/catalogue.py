"""What each loss says of itself, for people and programs that choose one."""

from __future__ import annotations

from dataclasses import dataclass

from prefopt.losses.base import Extra, Statistics
from prefopt.losses.registry import available

_DATA = {
    "paired": "pairs",
    "unpaired": "labels or pairs",
    "listwise": "scored lists, or pairs",
    "demonstration": "good answers, of labels, pairs or lists",
}
_SCORES = {"unused": "", "given": " with scores", "ordered": " with scores, chosen's the higher"}
_EXTRAS: dict[Extra, str] = {
    "token": "log-probs of single tokens",
    "log_sum_p2": "statistics of the policy's distributions",
    "divergence": "the reference's distributions",
}


@dataclass(frozen=True)
class Entry:
    """One loss of the catalogue."""

    name: str
    meaning: str
    """One sentence."""
    data: str
    """What it trains on, in words: pairs serve losses of labels and lists too, and lists every loss."""
    needs_reference: bool
    statistics: Statistics
    """What of a step its examples share; `none`: each counts by itself."""
    extras: tuple[str, ...]
    """What it asks of the models beside sums of log-probs, in words: each costs memory or time."""
    hyper: dict[str, float | bool | str]
    """Hyper-parameters with their defaults."""
    paper: str


def catalogue() -> list[Entry]:
    """Return every loss, in alphabetical order."""
    return [
        Entry(
            name=name,
            meaning=kind.meaning(),
            data="what the loss in it takes" if kind.wraps else _DATA[kind.form] + _SCORES[kind.scores],
            needs_reference=kind.needs_reference,
            statistics=kind.statistics,
            extras=tuple(words for extra, words in _EXTRAS.items() if extra in kind.extras),
            hyper=kind().hyper(),
            paper=kind.paper,
        )
        for name, kind in available().items()
    ]
