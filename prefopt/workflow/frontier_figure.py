"""The figure of a frontier: reward over KL with error bars, a line a run, the dominating set ringed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefopt.eval.frontier import Frontier, FrontierPoint

_LONGEST_LEGEND = 16


def draw_frontier(frontier: Frontier, folder: Path) -> None:
    """Write frontier.png and frontier.svg into a folder, each whole or not at all.

    Raises:
        OSError: the folder can't be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axis = figure.subplots()
    runs: dict[str, list[FrontierPoint]] = {}
    for point in frontier.points:
        if point.kl.value is not None and point.reward.value is not None:
            runs.setdefault("start" if point.label == "start" else point.run, []).append(point)
    for run, points in runs.items():
        _line(axis, run, points)
    best = sorted((p.kl.value, p.reward.value) for p in frontier.points if p.dominating)
    if best:
        kls, rewards = zip(*best, strict=True)
        axis.scatter(kls, rewards, s=110, facecolors="none", edgecolors="#222", linewidths=1.1, zorder=4,
                     label="dominating set")  # fmt: skip
        axis.plot(kls, rewards, color="#222", linewidth=0.8, linestyle=":", zorder=1)
    axis.set_xlabel("sequence KL to the reference, nats")
    axis.set_ylabel(f"reward of samples ({frontier.scorer})")
    drawn = f"{frontier.prompts} prompts x {frontier.samples_per_prompt} samples"
    axis.set_title(f"{drawn} of up to {frontier.max_new_tokens} tokens, 95 % intervals", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    if len(runs) <= _LONGEST_LEGEND:
        axis.legend(frameon=False, fontsize=8)
    for suffix in (".png", ".svg"):
        final = folder / f"frontier{suffix}"
        aside = final.with_name(f".frontier{suffix}")
        figure.savefig(aside, dpi=150)
        aside.replace(final)


def _line(axis: Any, run: str, points: list[FrontierPoint]) -> None:
    kls, rewards = ([getattr(p, name) for p in points] for name in ("kl", "reward"))
    axis.errorbar(
        [one.value for one in kls],
        [one.value for one in rewards],
        xerr=[[max(0.0, one.value - one.low) for one in kls], [max(0.0, one.high - one.value) for one in kls]],
        yerr=[[max(0.0, one.value - one.low) for one in rewards], [max(0.0, one.high - one.value) for one in rewards]],
        marker="s" if run == "start" else "o",
        markersize=5,
        linewidth=1.0,
        elinewidth=0.7,
        capsize=2,
        label=Path(run).name,
        zorder=3,
    )
