"""`prefopt report`: a run, or several over one another, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run directories, of training or of rounds.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write, instead of report.html in the run (of several: beside the first)."),
    ] = None,
    measured: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Show what prefopt eval wrote elsewhere (its --out) too: a file, or a frontier's folder. Again for "
            "more; several runs take frontiers alone.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write what runs came to as one HTML file that needs no network: verdict, curves, measures, samples, cost.

    Works on a run that is still going, and on rounds. Several runs are laid over one another, with a table side by
    side and a sentence on which is best and how sure that is.

    **Examples**

    - `prefopt report runs/mine`
    - `prefopt report runs/dpo runs/ipo runs/simpo --out compared.html`
    - `prefopt report runs/beta-1 runs/beta-2 --measured frontier`
    """
    from prefopt.report import write_reports

    typer.echo(write_reports(runs, out, measured or ()))
