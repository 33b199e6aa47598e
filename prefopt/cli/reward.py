"""`prefopt reward`: train a reward model, for the scorer `model`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from prefopt.cli.console import INTERRUPTED, messages, print_json, results
from prefopt.cli.recipe_arguments import Overrides, RecipeFile, Resume


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Resume = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")] = False,
) -> None:
    """Train a reward model on a recipe's pairs, and measure it on those held out.

    The recipe is that of `prefopt train`, without the sections loss and reference. Writes a sequence classifier that
    transformers and the scorer `{kind: model, name: ...}` load into train.output_dir/reward_model, and prints its path.

    **Examples**

    - `prefopt reward train recipe.yaml`
    - `prefopt reward train recipe.yaml train.learning_rate=1e-4 --resume`
    """
    from prefopt.recipe import load_recipe

    plan = load_recipe(recipe, overrides or [])
    from prefopt.workflow.reward import train_reward

    try:
        result = train_reward(plan, resume=resume, console=messages())
    except KeyboardInterrupt:
        again = shlex.join(["prefopt", "reward", "train", str(recipe), *(overrides or []), "--resume"])
        messages().print(f"Interrupted. Go on from the last checkpoint with:\n  {again}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    measured = result.evaluation
    if json:
        print_json({"model": str(result.model), "evaluation": measured and measured.to_dict()})
        return
    if measured is not None and measured.accuracy.value is not None:
        found = measured.accuracy
        messages().print(
            f"held out: chosen gets the higher reward in {100 * (found.value or 0):.1f} % of {found.n} pairs "
            f"({100 * (found.low or 0):.1f} to {100 * (found.high or 0):.1f})",
            soft_wrap=True,
            highlight=False,
        )
    results().print(str(result.model), soft_wrap=True, highlight=False)
