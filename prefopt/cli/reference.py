"""`prefopt reference`: compute a reference's log-probs ahead of training, see what is kept, remove it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from prefopt.cli.console import messages, print_json, results
from prefopt.cli.recipe_arguments import Overrides, RecipeFile

_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells a process. A build's processes share the cache and nothing else."""

Folder = Annotated[
    Path | None, typer.Option("--folder", help="The cache, where it is not beside Hugging Face's.", show_default=False)
]


def build(
    recipe: RecipeFile,
    overrides: Overrides = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Compute the I-th of N parts, from 0; torchrun sets it by itself."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Compute the log-probs that a recipe's training will ask its reference for, and keep them.

    Training then needs no pass of the reference, and where all of a data set is there, no weights of it in memory.
    Interrupted, it goes on where it was when started again. Several processes may fill one cache.

    **Examples**

    - `prefopt reference build recipe.yaml`
    - `prefopt reference build recipe.yaml --shard 0/4`
    - `torchrun --nproc-per-node 4 -m prefopt reference build recipe.yaml`
    """
    from prefopt.recipe import load_recipe

    part = _part(shard)
    more = list(overrides or [])
    local = os.environ.get("LOCAL_RANK")
    for name in _LAUNCHED:
        os.environ.pop(name, None)
    if local is not None:  # to this process its own GPU is the only one
        seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[int(local)] if int(local) < len(seen) else local
    plan = load_recipe(recipe, more)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from prefopt.workflow import build_cache

    columns = (TextColumn("[bold]reference"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages()) as shown:
        task = shown.add_task("build", total=None)
        result = build_cache(
            plan, shard=part, progress=lambda done, total: shown.update(task, completed=done, total=total)
        )
    if json:
        print_json(result.to_dict())
        return
    results().print(
        f"{result.there:,} log-probs were there, {result.computed:,} were computed in {result.packs:,} packs and "
        f"{result.seconds:.1f} s; {result.bytes:,} bytes of this reference lie in {result.folder}",
        soft_wrap=True,
        highlight=False,
    )


def status(
    folder: Folder = None, json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False
) -> None:
    """List the references whose log-probs are kept: completions, bytes, last use."""
    import time
    from dataclasses import asdict

    from prefopt.workflow import cache_usage

    place, usage = cache_usage(folder)
    if json:
        print_json({"folder": str(place), "references": [asdict(row) for row in usage]})
        return
    for row in usage:
        used = time.strftime("%Y-%m-%d", time.localtime(row.used))
        results().print(
            f"{row.key[:12]}  {row.about}: {row.completions:,} completions, {row.bytes:,} bytes, last used {used}",
            soft_wrap=True,
            highlight=False,
        )
    messages().print(f"{len(usage)} references in {place}", soft_wrap=True, highlight=False)


def clear(
    folder: Folder = None,
    unused_days: Annotated[
        float, typer.Option("--unused-days", min=0, help="Only what no run has used for so many days.")
    ] = 0.0,
) -> None:
    """Remove kept log-probs; runs compute them again when they need them."""
    from prefopt.workflow import clear_cache

    gone = clear_cache(folder, unused_days=unused_days)
    results().print(f"{gone} references removed", highlight=False)


def _part(shard: str | None) -> tuple[int, int]:
    """Return which part of how many is asked for: by the option, else by torchrun, else all."""
    if shard is None:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    index, _, world = shard.partition("/")
    if not (index.isdecimal() and world.isdecimal() and int(index) < int(world)):
        raise typer.BadParameter(
            f"'{shard}' is no part: write I/N with I from 0 to N - 1, as 0/4.", param_hint="--shard"
        )
    return int(index), int(world)
