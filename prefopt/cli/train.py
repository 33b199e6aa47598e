"""`prefopt train`: a recipe in, a run directory out."""

from __future__ import annotations

import shlex

import typer

from prefopt.cli.console import INTERRUPTED, messages
from prefopt.cli.recipe_arguments import Overrides, RecipeFile, Resume


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train a model on preferences as a recipe says.

    Writes a run directory (train.output_dir) with the adapter, checkpoints, metrics, held-out evaluation before and
    after, samples and report.html, and prints its path. The recipe is checked whole before a model loads.

    **Examples**

    - `prefopt train recipe.yaml`
    - `prefopt train recipe.yaml loss=ipo train.learning_rate=1e-5 train.output_dir=runs/ipo`
    - `prefopt train recipe.yaml --resume`
    - `torchrun --nproc_per_node 2 -m prefopt train recipe.yaml`
    """
    from prefopt.recipe import load_recipe

    overrides = overrides or []
    plan = load_recipe(recipe, overrides)
    from prefopt.report import write_report  # after the check: a typing mistake should not wait for these imports
    from prefopt.report.card import write_card
    from prefopt.train.ranks import ranks_of_this_run
    from prefopt.workflow import train_run
    from prefopt.workflow.push import weights_of

    console = messages()
    try:
        result = train_run(plan, resume=resume, console=console)
    except KeyboardInterrupt:
        again = shlex.join(["prefopt", "train", str(recipe), *overrides, "--resume"])
        console.print(f"Interrupted. Go on from the last checkpoint with:\n  {again}", soft_wrap=True, highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    if not ranks_of_this_run().main:
        return  # one of several processes; the first one says what came of it
    console.print(f"report: {write_report(result.path)}", soft_wrap=True, highlight=False)
    write_card(result.path, weights_of(result.path))
    typer.echo(result.path)
