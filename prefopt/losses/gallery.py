"""Small multiples of losses against the margin: what a pair costs, and how hard each completion is pulled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.losses.base import Loss
from prefopt.losses.registry import available, build
from prefopt.records import SequenceLogprobs

FORMATS = (".png", ".svg", ".pdf")
WIDEST, LENGTH, NATS, GAP = 60.0, 50, 50.0, 3.0
"""Margins drawn, to either side, in nats; a completion's tokens, and its nats under the reference; a gap of scores."""
_INK, _GRID, _CHOSEN, _REJECTED = "#222222", "#c9c9c9", "#2f6db3", "#d1662b"
_COLUMNS = 5


@dataclass(frozen=True)
class Curve:
    """A loss over margins."""

    margin: Tensor
    """(M,) float64: log-ratio of chosen minus that of rejected, nats."""
    loss: Tensor
    """(M,) float64."""
    raises: Tensor
    """(M,) float64: minus the slope in the chosen log-ratio; positive where a step raises chosen."""
    lowers: Tensor
    """(M,) float64: the slope in the rejected log-ratio; positive where a step lowers rejected."""


def choose(names: Sequence[str]) -> list[Loss]:
    """Return the named losses with their defaults, or all that can be drawn.

    Raises RecipeError for an unknown name, and for a loss that is no function of a pair's two log-ratios.
    """
    drawable = [name for name, kind in available().items() if kind.statistics != "step" and not kind.extras]
    losses = [build(name) for name in names or drawable]
    for loss in losses:
        if loss.name not in drawable:
            raise RecipeError(
                f"The loss {loss.name} can't be drawn against a pair's margin: it {_why_not(loss)}. "
                f"Choose of {', '.join(drawable)}."
            )
    return losses


def _why_not(loss: Loss) -> str:
    if loss.statistics == "step":
        return "depends on the other pairs of its step"
    return "looks at more than a number a completion" if loss.extras else "is none of the package by itself"


def curve(loss: Loss, points: int = 481) -> Curve:
    """Return the loss of pairs whose margin is shared evenly: chosen went up by half of it, rejected down.

    Both completions have `LENGTH` tokens and `NATS` under the reference, which a loss without reference sees as the
    log-probs that the policy started from. Their scores are `GAP` apart. A loss of labels sees a good and a bad
    completion, one of lists a list of two, and mismatched completions are as likely as under the reference.
    """
    margin = torch.linspace(-WIDEST, WIDEST, points, dtype=torch.float64)
    policy = torch.cat([margin / 2, -margin / 2]).sub(NATS).requires_grad_()
    pair = torch.arange(2 * points).view(2, points).t()
    nothing = torch.zeros(0, dtype=torch.int64)
    seen: dict[str, dict[str, Any]] = {
        "paired": {"pair": pair, "pair_score": torch.tensor([[GAP, 0.0]]).expand(points, 2)},
        "unpaired": {"labelled": pair.t().flatten(), "label": torch.arange(2 * points) < points},
        "demonstration": {"labelled": pair[:, 0], "label": torch.ones(points).bool()},
        "listwise": {
            "listed": pair.flatten(),
            "list_index": torch.arange(points).repeat_interleave(2),
            "list_score": torch.tensor([GAP, 0.0]).repeat(points),
        },
    }
    none: dict[str, Any] = {"pair": nothing.reshape(0, 2), "labelled": nothing, "label": nothing.bool()}
    output = loss(
        SequenceLogprobs(
            policy=policy,
            reference=torch.full_like(policy, -NATS, requires_grad=False),
            length=torch.full((2 * points,), LENGTH),
            mismatched=torch.tensor([points // 2]),  # at a margin of 0
            **{**none, **seen[loss.form]},
        )
    )
    (slope,) = torch.autograd.grad(output.loss.sum(), policy)
    value = output.loss.detach().reshape(-1, points).sum(0)  # of labels there are two losses
    return Curve(margin, value, -slope[:points], slope[points:])


def draw(losses: Sequence[Loss], path: Path) -> None:
    """Write the gallery of `losses` to `path`; its suffix is one of `FORMATS`, or RecipeError is raised."""
    if path.suffix.lower() not in FORMATS:
        raise RecipeError(f"{path} must end in one of {', '.join(FORMATS)}: that says how the figure is written.")
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(_COLUMNS, len(losses))
    rows = ceil(len(losses) / columns)
    with mpl.rc_context({"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False, "text.color": _INK}):
        layout = ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.06, hspace=0)
        figure = Figure(figsize=(max(2.5 * columns, 5.5), 2.85 * rows + 0.8), layout=layout)
        # Three rows each: the loss, its pulls, and a gap before the next.
        cells = figure.add_gridspec(3 * rows, columns, height_ratios=(3, 2, 0.5) * rows)
        for place, loss in enumerate(losses):
            row, column = divmod(place, columns)
            upper = figure.add_subplot(cells[3 * row, column])
            _panel(upper, figure.add_subplot(cells[3 * row + 1, column], sharex=upper), loss)
        _legend(figure)
        figure.savefig(path, dpi=120)


def _panel(upper: Any, lower: Any, loss: Loss) -> None:
    """Draw one loss: its value above, its pull on either completion below."""
    found = curve(loss)
    upper.plot(found.margin, found.loss, color=_INK, linewidth=1.8)
    lower.plot(found.margin, found.raises, color=_CHOSEN, linewidth=2.2)
    lower.plot(found.margin, found.lowers, color=_REJECTED, linewidth=1.6, linestyle=(0, (3, 2)))
    upper.set_title(loss.name, fontsize=10, fontweight="bold", loc="left", pad=13)
    upper.text(0, 1.03, f"beta {loss.beta:g}", transform=upper.transAxes, fontsize=7.5, color="#666666")
    for axis in (upper, lower):
        axis.axvline(0, color=_GRID, linewidth=0.8, zorder=0)
        axis.tick_params(length=2, colors="#555555", labelsize=7.5)
        axis.spines[["left", "bottom"]].set_color(_GRID)
        axis.locator_params(axis="y", nbins=4)
    lower.axhline(0, color=_GRID, linewidth=0.8, zorder=0)
    upper.tick_params(labelbottom=False)
    lower.set_xticks((-50, 0, 50))


def _legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=_INK, linewidth=1.8, label="loss of the pair"),
        Line2D([], [], color=_CHOSEN, linewidth=2.2, label="pull up on chosen"),
        Line2D([], [], color=_REJECTED, linewidth=1.6, linestyle=(0, (3, 2)), label="pull down on rejected"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    figure.supxlabel(
        "log-ratio of chosen minus that of rejected, nats\n"
        f"(shared evenly; completions of {LENGTH} tokens and {NATS:g} nats, scored {GAP:g} apart)",
        fontsize=9,
    )
