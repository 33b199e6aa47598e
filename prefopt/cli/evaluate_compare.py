"""`prefopt eval compare`: two runs on the same pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefopt.cli.console import print_json, results, say
from prefopt.cli.evaluate import cells, plain_text

if TYPE_CHECKING:
    from prefopt.eval import Comparison


def compare(
    run_a: Annotated[Path, typer.Argument(help="A finished run.", metavar="RUN_A", show_default=False)],
    run_b: Annotated[Path, typer.Argument(help="Another one.", metavar="RUN_B", show_default=False)],
    name: Annotated[
        str | None,
        typer.Option(help="Compare eval/pairs_NAME.json of both, instead of what they measured after training."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file, instead of eval/compare.json of RUN_A.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what compare.json holds.")] = False,
) -> None:
    """Say which of two runs prefers the chosen completion of the same pairs more often, or that it can't be told.

    Reads what the runs have measured and loads no model. Pairs are compared one by one: McNemar's exact test, and 95 %
    intervals of the differences by bootstrap over pairs. What was found is kept in RUN_A, as `eval/compare.json`.

    **Examples**

    - `prefopt eval compare runs/dpo runs/ipo`
    - `prefopt eval pairs runs/dpo --data other.jsonl --name other`, the same of `runs/ipo`, then
      `prefopt eval compare runs/dpo runs/ipo --name other`
    """
    from prefopt.workflow import compare_runs
    from prefopt.workflow.directory import evaluation_json

    found = compare_runs(run_a, run_b, name=name, out=out, say=say)
    if as_json:
        print_json(evaluation_json("compare", found.to_dict()))
    else:
        _show(found)


def _show(found: Comparison) -> None:
    from rich.table import Table

    words = {"reward": "reward", "logprob": "log-prob", "logprob_per_token": "log-prob per token"}
    table = Table(
        "prefers chosen by", plain_text(found.a), plain_text(found.b), "b minus a", "95 % interval", "only a / b",
        "p", "margin, b minus a", "95 % interval", title=f"{found.n} pairs",
    )  # fmt: skip
    for part in found.contrasts:
        split = f"{part.only_a} / {part.only_b}"
        margin = cells(part.margin, percent=False)[:2]
        table.add_row(
            words[part.measure],
            cells(part.a)[0],
            cells(part.b)[0],
            *cells(part.accuracy)[:2],
            split,
            f"{part.p:.2g}",
            *margin,
        )  # fmt: skip
    console = results()
    console.print(table)
    console.print(plain_text(found.verdict), soft_wrap=True)
