"""`prefopt eval pairs`: how often a model prefers the chosen completion of held-out pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefopt.cli.console import print_json, results

if TYPE_CHECKING:
    from prefopt.eval import Accuracy, Mean, PairEvaluation, Share


def pairs(
    run_or_recipe: Annotated[
        Path,
        typer.Argument(
            help="A run directory, or a recipe whose model is measured as it is.",
            metavar="RUN_OR_RECIPE",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="Pairs or lists to measure on, instead of the recipe's data.eval.")
    ] = None,
    token_budget: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens computed at once, instead of the recipe's: memory and time, not numbers."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, each pair included, as JSON.")] = False,
) -> None:
    """Measure on held-out pairs how often a model prefers the chosen completion.

    Shares come with 95 % intervals and ties are counted apart. **log-prob** asks what the model would rather
    say, **reward** what training taught it beyond its reference. Of scored lists the best and the worst completion are
    a pair.

    **Examples**

    - `prefopt eval pairs runs/mine`
    - `prefopt eval pairs runs/mine --data other_pairs.jsonl --json > evaluation.json`
    """
    from prefopt.workflow import eval_pairs_run

    evaluation = eval_pairs_run(run_or_recipe, data=data, token_budget=token_budget)
    if as_json:
        print_json(evaluation.to_dict())
    else:
        _show(evaluation)


def _show(evaluation: PairEvaluation) -> None:
    from rich.table import Table

    found = evaluation.metrics
    table = Table("measure", "value", "95 % interval", "ties", title=f"{found.n} held-out pairs")
    table.add_row("prefers chosen by log-prob", *_cells(found.logprob))
    table.add_row("  per token", *_cells(found.logprob_per_token))
    table.add_row("prefers chosen by reward", *_cells(found.reward))
    table.add_row("  chosen is the shorter", *_cells(found.shorter_chosen))
    table.add_row("  chosen is the longer", *_cells(found.longer_chosen))
    table.add_row("one rater agrees with the rest", *_cells(evaluation.human))
    table.add_row(f"margin (beta {found.beta:g})", *_cells(found.margin, percent=False))
    table.add_row("log-ratio of chosen, nats", *_cells(found.chosen_log_ratio, percent=False))
    table.add_row("log-ratio of rejected, nats", *_cells(found.rejected_log_ratio, percent=False))
    table.add_row("chosen became less likely", *_cells(found.displacement))
    console = results()
    console.print(table)
    if evaluation.slices:
        bins = Table(evaluation.slice_by or "", "pairs", "log-prob", "reward", "one rater", title="by bin")
        for part in evaluation.slices:
            measured = [_cells(value)[0] for value in (part.logprob, part.reward, part.human)]
            bins.add_row(part.label, str(part.n), *measured)
        console.print(bins)


def _cells(found: Accuracy | Mean | Share | None, *, percent: bool = True) -> tuple[str, str, str]:
    """Return value, interval and ties as text; a dash where there is nothing to count."""
    if found is None or found.value is None or found.low is None or found.high is None:
        return "-", "-", str(getattr(found, "ties", "") or "")
    form, scale, unit = (".1f", 100, " %") if percent else ("+.3f", 1, "")
    value, low, high = (f"{scale * number:{form}}" for number in (found.value, found.low, found.high))
    return f"{value}{unit}", f"{low} to {high}", str(getattr(found, "ties", ""))
