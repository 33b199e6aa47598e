"""`prefopt losses`: which losses there are, and what they look like."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prefopt.cli.console import print_json, results


def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List every loss: what it is, what it needs, its hyper-parameters with their defaults, its paper.

    **Examples**

    - `prefopt losses --json`
    - `prefopt losses plot --out losses.png`
    """
    if context.invoked_subcommand:
        return
    from prefopt.losses.catalogue import catalogue

    entries = catalogue()
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for entry in entries:
        needs = [entry.data, "reference" if entry.needs_reference else "no reference"]
        if entry.statistics != "none":
            needs.append(f"statistics: {entry.statistics}")
        needs += entry.extras
        hyper = ", ".join(f"{key} {value}" for key, value in entry.hyper.items())
        about = Text.assemble(
            f"{entry.meaning}.\n", (f"needs {', '.join(needs)}\n", "cyan"), f"{hyper}\n", (f"{entry.paper}\n", "dim")
        )
        table.add_row(Text(entry.name, style="bold"), about)
    results().print(table)


def plot(
    out: Annotated[Path, typer.Option(help="The figure to write: .png, .svg or .pdf.", show_default=False)],
    names: Annotated[
        list[str] | None, typer.Argument(help="Losses; all that are functions of a pair without.", show_default=False)
    ] = None,
) -> None:
    """Draw losses and their gradients against the margin of a pair's log-ratios, with default hyper-parameters.

    **Example**

    - `prefopt losses plot --out losses.png hinge simpo`
    """
    from prefopt.losses.gallery import choose, draw

    draw(choose(names or []), out)
    typer.echo(out)
