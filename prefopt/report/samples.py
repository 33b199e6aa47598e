"""Samples of a run as the page shows them: sides beside one another, what stood in between, what can be filtered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefopt.report.read import RunFiles
from prefopt.report.shading import Answer, answers
from prefopt.report.words import number

_OWN_REFERENCE = ("adapter_off", "frozen_copy")
"""References that are the model as it began, unless the samples hold its own."""


@dataclass(frozen=True)
class Side:
    """The completions of one model, or of the data."""

    key: str
    label: str
    kind: str
    """A class of the page's style."""
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Sample:
    """One prompt."""

    heading: str
    prompt: str
    sides: tuple[Side, ...]
    during: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(step, completions) of evaluations during training."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """What the page's selections go by: name -> words."""


def run_samples(run: RunFiles) -> list[Sample]:
    """Return the samples of a training run."""
    own = (run.reference or {}).get("kind") in _OWN_REFERENCE
    found = []
    for at, sample in enumerate(run.samples):
        prompt = text_of(sample.get("prompt"))
        drawn = [
            Side("before", _before(own, sample), "before", answers(sample, "before")),
            Side("after", "After training", "after", answers(sample, "after")),
            Side("reference", "Reference", "reference", answers(sample, "reference")),
            Side("chosen", "In the data: chosen", "chosen", answers(sample, "chosen")),
            Side("rejected", "In the data: rejected", "rejected", answers(sample, "rejected")),
        ]
        sides = tuple(side for side in drawn if side.answers or side.key in ("before", "after"))
        during = tuple(
            (number(record.get("step")), tuple(text_of(text) for text in record.get("completions") or ()))
            for record in run.during
            if text_of(record.get("prompt")) == prompt
        )
        changed = sample.get("before") != sample.get("after")
        choices = {"changed": "yes" if changed else "no"}
        found.append(Sample(f"Prompt {at + 1}", prompt, sides, during, choices))
    return found


def kinds_of(samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """Return what the page can show or hide: (key, label) of every side there is."""
    return list({side.key: (side.key, side.label) for one in samples for side in one.sides}.values())


def is_shaded(samples: Sequence[Sample]) -> bool:
    """Whether any completion is cut into scored pieces."""
    return any(one.pieces for sample in samples for side in sample.sides for one in side.answers)


def text_of(value: Any) -> str:
    """Return a prompt as text; of messages, or of what a chat template makes of them, each behind its role."""
    if isinstance(value, list):
        return "\n\n".join(
            f"{turn.get('role', '')}: {turn.get('content', '')}" if isinstance(turn, Mapping) else str(turn)
            for turn in value
        )
    text = "" if value is None else str(value)
    return _turns(text) or text


_ROLE = re.compile(r"(?:^|(?<=\n))(system|user|assistant|model)\n")


def _turns(text: str) -> str | None:
    """Return the turns of a prompt whose template was decoded without its marks: a role on a line of its own."""
    parts = _ROLE.split(f"{text}\n")
    roles, said = parts[1::2], [part.strip() for part in parts[2::2]]
    if parts[0].strip() or len(roles) < 2 or roles[-1] not in ("assistant", "model") or said[-1]:
        return None
    if roles[:-1] == ["user"]:
        return said[0]
    return "\n".join(f"{role}: {words}" for role, words in zip(roles[:-1], said[:-1], strict=True))


def _before(own: bool, sample: Mapping[str, Any]) -> str:
    return "Before training, the reference" if own and not sample.get("reference") else "Before training"
