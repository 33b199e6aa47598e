"""`prefopt demo`: the main job on a small real model and real human judgements."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from prefopt.cli.console import INTERRUPTED, messages


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The run directory: new or empty.")] = Path(
        "runs/demo"
    ),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps; the default takes a few minutes on two CPU cores.")
    ] = None,
) -> None:
    """Teach a small language model which of two film-review sentences people liked better.

    SmolLM2-135M-Instruct learns by LoRA and DPO from pairs of sentences that human raters scored, on the CPU if need
    be. Shows samples before and after side by side and held-out accuracy with its 95 % interval, and writes a run
    directory with report.html, whose path it prints.
    """
    from prefopt.demo.run import run_demo

    run = output.absolute()  # what the run directory says of itself must hold from anywhere
    try:
        result = run_demo(run, steps=steps, console=messages())
    except KeyboardInterrupt:
        again = shlex.join(["prefopt", "train", str(run / "recipe.yaml"), "--resume"])
        messages().print(f"Interrupted. Go on training with:\n  {again}", soft_wrap=True, highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    messages().print(f"report: {result.report}", soft_wrap=True, highlight=False)
    typer.echo(result.path)
