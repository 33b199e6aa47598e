"""`prefopt rounds`: sample, score, select, train, evaluate, repeat; and what a run of it came to."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from prefopt.cli.console import INTERRUPTED, messages, print_json, results
from prefopt.cli.recipe_arguments import Overrides, RecipeFile

STAGES = ("sample", "score", "select", "train", "evaluate")


class RunByDefault(TyperGroup):
    """Takes `prefopt rounds RECIPE` as `prefopt rounds run RECIPE`: what is no verb of the group is a recipe."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the verb before arguments that name none; help is the group's own."""
        own = {*self.commands, *ctx.help_option_names}
        return list(super().parse_args(ctx, args if not args or args[0] in own else ["run", *args]))


def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help=f"End after this stage: {', '.join(STAGES)}.")
    ] = None,
) -> None:
    """Run or resume rounds as a recipe says: `run` may be left out.

    What is there and was made of the same inputs with the same settings stays. The run directory is
    train.output_dir; its path is printed at the end. Its report.html is written anew after every round.

    **Examples**

    - `prefopt rounds recipe.yaml`
    - `prefopt rounds recipe.yaml --until select`
    - `prefopt rounds recipe.yaml select.k=2`
    - `torchrun --nproc_per_node 2 -m prefopt rounds recipe.yaml`
    """
    from prefopt.errors import nearest
    from prefopt.rounds.recipe import load_rounds

    if until is not None and until not in STAGES:
        raise typer.BadParameter(
            f"'{until}' is no stage; there are {', '.join(STAGES)}{nearest(until, STAGES) or '.'}", param_hint="--until"
        )
    overrides = overrides or []
    plan = load_rounds(recipe, overrides)
    from prefopt.report import report_softly
    from prefopt.rounds.loop import run_rounds
    from prefopt.train.ranks import ranks_of_this_run

    console = messages()

    def note(run: Path) -> None:
        _, failure = report_softly(run)
        if failure:
            console.print(failure, soft_wrap=True, highlight=False, markup=False)

    try:
        result = run_rounds(plan, until=until, console=console, after_round=note)  # type: ignore[arg-type]  # it is one of them
    except KeyboardInterrupt:
        stage = [] if until is None else ["--until", until]
        again = shlex.join(["prefopt", "rounds", str(recipe), *overrides, *stage])
        console.print(f"Interrupted. Go on with the same command:\n  {again}", soft_wrap=True, highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    if ranks_of_this_run().main:
        report, failure = report_softly(result.path)
        console.print(failure or f"report: {report}", soft_wrap=True, highlight=False, markup=False)
        typer.echo(result.path)


def status(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what each round came to: its stages, counts, rewards, acceptance, KL, accuracy and time.

    **Example**

    - `prefopt rounds status runs/irpo`
    """
    from prefopt.rounds.status import rounds_status

    found = rounds_status(directory)
    if json:
        print_json(found.to_dict())
        return
    for line in found.lines():
        results().print(line, soft_wrap=True, highlight=False, markup=False)


def plot(
    directories: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The figure to write: .png, .svg or .pdf.", show_default=False)],
) -> None:
    """Draw held-out reward, pass@1, KL and length by round, of one run or of several over one another.

    **Example**

    - `prefopt rounds plot runs/irpo runs/sft --out rounds.png`
    """
    from prefopt.rounds.figure import draw_rounds

    draw_rounds(directories, out)
    typer.echo(out)
