"""A figure of a run: reward, pass@1, KL and length by round, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefopt.errors import RunError
from prefopt.rounds.status import RoundStatus, rounds_status

_PANELS = (
    ("held_out", "held-out reward"),
    ("right", "pass@1"),
    ("kl", "KL to the first reference (nats)"),
    ("length", "length (tokens)"),
)
_FORMATS = (".png", ".svg", ".pdf")


def draw_rounds(runs: Sequence[Path], out: Path) -> None:
    """Draw runs of rounds over one another, by round; what none of them measured has no panel.

    Args:
        runs: run directories; a line is named like its directory.
        out: the figure to write: .png, .svg or .pdf.

    Raises:
        RunError: a directory is no run of rounds, nothing is measured yet, or the figure can't be written.
    """
    from matplotlib.figure import Figure

    if out.suffix not in _FORMATS:
        raise RunError(f"{out} doesn't end in {', '.join(_FORMATS)}; name the figure so.")
    names = [run.name for run in runs]
    alike = len(set(names)) < len(names)
    lines = {str(run) if alike else run.name: rounds_status(run).rounds for run in runs}
    panels = [panel for panel in _PANELS if any(_points(rounds, panel[0])[0] for rounds in lines.values())]
    if not panels:
        raise RunError(f"{', '.join(map(str, runs))}: no round is evaluated yet, so there is nothing to draw.")
    figure = Figure(figsize=(3.4 * len(panels), 3.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (key, title) in zip(axes[0], panels, strict=True):
        for name, rounds in lines.items():
            at, value, low, high = _points(rounds, key)
            [line] = axis.plot(at, value, marker="o", label=name)
            axis.fill_between(at, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("rounds trained")
        axis.xaxis.get_major_locator().set_params(integer=True)
    if len(lines) > 1:
        axes[0][0].legend(fontsize=8)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150)
    except OSError as error:
        raise RunError(f"{out} can't be written: {error.strerror}; name a file that can.") from error


def _points(rounds: Sequence[RoundStatus], key: str) -> tuple[list[Any], ...]:
    """Return rounds trained so far, value, and both ends of its interval, of every round that has them."""
    after = [0 if one.name == "start" else int(one.name) + 1 for one in rounds]
    found = [(at, said) for at, one in zip(after, rounds, strict=True) if (said := getattr(one, key)) is not None]
    known = [(at, said["value"], said["low"], said["high"]) for at, said in found if said["value"] is not None]
    return tuple(map(list, zip(*known, strict=True))) if known else ([], [], [], [])
