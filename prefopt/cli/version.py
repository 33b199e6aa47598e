"""`prefopt version`: which prefopt this is."""

from __future__ import annotations

from importlib.metadata import version as installed

import typer


def version() -> None:
    """Print the installed version."""
    typer.echo(f"prefopt {installed('prefopt')}")


def print_and_exit(asked: bool) -> None:
    """Answer `prefopt --version`."""
    if asked:
        version()
        raise typer.Exit
