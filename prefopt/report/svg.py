"""A matplotlib figure -> an SVG element that takes its colours and its font from the page around it.

Figures are drawn in stand-in colours, which become CSS variables: one drawing serves light, dark and print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stand-ins: colours that no drawing would use by itself.
INK, MUTED, GRID = "#010203", "#010204", "#010205"
CHOSEN, REJECTED = "#010206", "#010207"
BEFORE, AFTER, HUMAN = "#010208", "#010209", "#01020a"
RUNS = ("#01020b", "#01020c", "#01020d", "#01020e", "#01020f", "#010210")
"""Of runs, or of whatever else stands side by side."""
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--rule",
    CHOSEN: "--chosen",
    REJECTED: "--rejected",
    BEFORE: "--before",
    AFTER: "--after",
    HUMAN: "--human",
    **{stand_in: f"--run{letter}" for stand_in, letter in zip(RUNS, "abcdef", strict=True)},
}
# Inches of 72 CSS pixels: about the width of a phone, so that text keeps its size there.
_SIZE = (4.8, 3.05)
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prefopt",
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 11.5,
    "figure.facecolor": "none",
}


def draw(name: str, alternative: str, paint: Callable[[Any], None]) -> Markup:
    """Return one figure as an inline SVG element.

    Args:
        name: unique on the page; its ids begin with it.
        alternative: what the figure shows, in words, for who can't see it.
        paint: draws on the axes it is given, in this module's colours.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(name, alternative, buffer.getvalue())


def _inline(name: str, alternative: str, text: str) -> Markup:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    text = re.sub(r"font: (\S+) [^;\"]*", r"font-size: \1", text)
    box = re.search(r'viewBox="([^"]*)"', text)
    body = text[text.index(">") + 1 :]
    view = box.group(1) if box else "0 0 400 220"
    head = f'<svg role="img" aria-label="{escape(alternative)}" viewBox="{view}" xmlns="http://www.w3.org/2000/svg">'
    return Markup(head + body)
