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
) -> None:
    """Write what runs came to as one HTML file that needs no network: verdict, curves, measures, samples, cost.

    Works on a run that is still going, and on rounds. Several runs are laid over one another, with a table side by
    side and a sentence on which is best and how sure that is.

    **Examples**

    - `prefopt report runs/mine`
    - `prefopt report runs/dpo runs/ipo runs/simpo --out compared.html`
    """
    from prefopt.report import write_reports

    typer.echo(write_reports(runs, out))
