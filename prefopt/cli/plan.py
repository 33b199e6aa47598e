"""`prefopt plan`: what a recipe will take of memory and time, before a weight is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prefopt.cli.console import print_json, results
from prefopt.cli.recipe_arguments import Overrides


def plan(
    recipe: Annotated[
        Path | None, typer.Argument(help="The recipe: a YAML file.", metavar="RECIPE", show_default=False)
    ] = None,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Plan for this GPU: 4090, a100, ...; else for this machine.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Plan for a GPU with so much memory, as in 24GB.")
    ] = None,
    tokens_per_example: Annotated[
        int | None,
        typer.Option("--tokens-per-example", min=2, help="Take this length instead of looking at the data."),
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print the table of docs/plan.md: known models on usual cards.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON: bytes, flops, seconds.")] = False,
) -> None:
    """Say what a recipe will take: parameters, memory by part, the largest token budget, time, and what to change.

    Nothing is loaded but the model's configuration and the data, so a model of any size plans in seconds. Figures for
    GPUs are computed, not measured.

    **Examples**

    - `prefopt plan recipe.yaml`
    - `prefopt plan recipe.yaml --gpu 4090`
    - `prefopt plan recipe.yaml model.lora.r=64 train.activation_checkpointing=true --memory 16GB --json`
    """
    from prefopt.errors import RecipeError

    if table:
        from prefopt.workflow.plan_table import plan_table

        for line in plan_table():  # each takes some seconds
            results().print(line, soft_wrap=True, highlight=False, markup=False)
        return
    if recipe is None:
        raise RecipeError("prefopt plan needs a recipe: name its YAML file.")
    from prefopt.recipe import load_recipe

    wanted = load_recipe(recipe, overrides or [])
    from prefopt.workflow.plan import plan_recipe

    found = plan_recipe(wanted, gpu=gpu, memory=memory, tokens_per_example=tokens_per_example)
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found)


def _show(found: Any) -> None:
    from rich import box
    from rich.table import Table

    console = results()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False)

    machine = found.machine
    learned = _count(found.trainable)
    say(f"{found.model}: {_count(found.parameters)} parameters in {found.dtype}, {learned} of them train")
    say(f"{machine.name}" + ("" if machine.memory is None else f", {_size(machine.memory)}"))
    table = Table("memory", "", box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    table.columns[1].justify = "right"
    names = {
        "weights": "frozen weights", "trained": "weights that train", "gradients": "gradients",
        "optimizer": "optimizer", "reference": "reference", "activations": "activations",
        "logits": "tile of logits", "context": "context of the device",
    }  # fmt: skip
    for name, label in names.items():
        table.add_row(label, _size(getattr(found.parts, name)))
    table.add_row("[bold]together", f"[bold]{_size(found.parts.total)}")
    console.print(table)
    say(f"A pack of {found.pack_tokens:,} tokens (train.token_budget: {found.token_budget:,}; {found.lengths}).")
    if machine.memory is not None:
        say("It fits." if found.fits else "[bold red]It does not fit.[/]")
        if found.largest_budget is not None:
            say(f"Largest token budget that fits, or that a step can use: {found.largest_budget:,}")
    say(f"A step: {found.step_tokens:,.0f} tokens, {found.step_flops / 1e12:,.2f} TFLOP{_time(found)}")
    for note in found.notes:
        say(note)
    for advice in found.advice:
        verdict = "fits" if advice.fits else "does not fit yet"
        say(f"- {advice.what}: {_size(advice.total)}, {verdict}\n  {' '.join(advice.overrides)}")
    if machine.gpu:
        say("Computed from the model's code and the GPU's data sheet, not measured on one.")


def _time(found: Any) -> str:
    if found.step_seconds is None:
        return ""
    text = f", about {_duration(found.step_seconds)}"
    if found.steps_per_epoch:
        epoch = _duration(found.step_seconds * found.steps_per_epoch)
        text += f"; an epoch of {found.steps_per_epoch:,} steps about {epoch}"
    return text


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def _count(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
