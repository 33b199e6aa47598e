"""`prefopt eval rewardbench`: RewardBench's scores, from a file of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefopt.cli.console import print_json, results, say
from prefopt.cli.evaluate import TokenBudget, cells, plain_text

if TYPE_CHECKING:
    from prefopt.workflow.rewardbench import RewardBenchRun


def rewardbench(
    run_or_recipe: Annotated[
        Path,
        typer.Argument(
            help="A run of a policy or of a reward model, or a recipe whose model is scored as it is.",
            metavar="RUN_OR_RECIPE",
            show_default=False,
        ),
    ],
    file: Annotated[
        str, typer.Argument(help="Rows with prompt, chosen, rejected and subset.", metavar="FILE", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write to this file, instead of eval/rewardbench.json of the run.")
    ] = None,
    token_budget: TokenBudget = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what rewardbench.json holds.")] = False,
) -> None:
    """Score a model by RewardBench's protocol, on a local file of its rows.

    Of a policy the sums of log-ratios are compared, without beta; where there is no reference, the sums of log-probs;
    of a reward model its numbers. Equal numbers are wrong. Sections weigh subsets by their published numbers of rows;
    one that lacks a subset has no score. The scores are kept in the run, as `eval/rewardbench.json`.

    **Examples**

    - `prefopt eval rewardbench runs/mine reward_bench.parquet`
    - `prefopt eval rewardbench recipe.yaml reward_bench.jsonl --out base.json`
    """
    from prefopt.workflow import rewardbench_run
    from prefopt.workflow.directory import evaluation_json

    found = rewardbench_run(run_or_recipe, file, token_budget=token_budget, out=out, say=say)
    if as_json:
        print_json(evaluation_json("rewardbench", found.to_dict()))
    else:
        _show(found)


def _show(found: RewardBenchRun) -> None:
    from rich.table import Table

    scores = found.scores
    table = Table("section", "subset", "rows", "accuracy", "95 % interval", title=f"RewardBench, by {found.mode}")
    for name, subset in scores.subsets.items():
        table.add_row(subset.section, plain_text(name), str(subset.correct.n), *cells(subset.correct)[:2])
    console = results()
    console.print(table)
    for name, score in scores.sections.items():
        lacking = ", ".join(scores.missing.get(name, ()))
        console.print(f"{name}: {_percent(score)}" + (f" (no rows of {lacking})" if lacking else ""), soft_wrap=True)
    console.print(f"overall: {_percent(scores.overall)}")
    for name, (n, published) in scores.partial.items():
        console.print(f"{name} has {n} rows of the {published} published", style="dim")


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f} %"
