"""`prefopt eval pairs`: how often a model prefers the chosen completion of held-out pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefopt.cli.console import print_json, results, say

if TYPE_CHECKING:
    from prefopt.eval import Accuracy, AgreementBin, Calibration, Estimate, Mean, PairEvaluation, Share

RunOrRecipe = Annotated[
    Path,
    typer.Argument(
        help="A run directory, or a recipe whose model is measured as it is.",
        metavar="RUN_OR_RECIPE",
        show_default=False,
    ),
]
TokenBudget = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens computed at once, instead of the recipe's: memory and time, not numbers."),
]


def pairs(
    run_or_recipe: RunOrRecipe,
    data: Annotated[
        str | None, typer.Option(help="Pairs or lists to measure on, instead of the recipe's data.eval.")
    ] = None,
    slice_by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="A column of the data, of numbers or words: accuracy by its values."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Keep a run's measures as eval/pairs_NAME.json instead of eval/pairs.json.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file, instead of eval/pairs.json of the run.")] = None,
    token_budget: TokenBudget = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what pairs.json holds, each pair included.")] = False,
) -> None:
    """Measure on held-out pairs how often a model prefers the chosen completion.

    Shares and means come with 95 % intervals and ties are counted apart. **log-prob** asks what the model would rather
    say, **reward** what training taught it beyond its reference. Of scored lists the best and the worst completion are
    a pair. What is measured of a run is kept in it, as `eval/pairs.json`.

    **Examples**

    - `prefopt eval pairs runs/mine`
    - `prefopt eval pairs runs/mine --slice-by topic`
    - `prefopt eval pairs runs/mine --data other_pairs.jsonl --name other`
    - `prefopt eval pairs recipe.yaml --out base.json`
    """
    from prefopt.workflow import eval_pairs_run
    from prefopt.workflow.directory import evaluation_json

    evaluation = eval_pairs_run(
        run_or_recipe, data=data, slice_by=slice_by, name=name, out=out, token_budget=token_budget, say=say
    )
    if as_json:
        print_json(evaluation_json("pairs", evaluation.to_dict()))
    else:
        _show(evaluation)


def _show(evaluation: PairEvaluation) -> None:
    from rich.table import Table

    found = evaluation.metrics
    bias = found.length_bias
    table = Table("measure", "value", "95 % interval", "ties", title=f"{found.n} held-out pairs")
    table.add_row("prefers chosen by log-prob", *cells(found.logprob))
    table.add_row("  per token", *cells(found.logprob_per_token))
    table.add_row("  margin, nats", *cells(found.logprob_margin, percent=False))
    table.add_row("  margin, nats a token", *cells(found.logprob_per_token_margin, percent=False))
    if found.reward is not None:
        table.add_row("prefers chosen by reward", *cells(found.reward))
        table.add_row(f"  margin (beta {found.beta:g})", *cells(found.margin, percent=False))
        table.add_row("  per token", *cells(found.reward_per_token))
        table.add_row("  margin a token", *cells(found.margin_per_token, percent=False))
        table.add_row("log-ratio of chosen, nats", *cells(found.chosen_log_ratio, percent=False))
        table.add_row("log-ratio of rejected, nats", *cells(found.rejected_log_ratio, percent=False))
        table.add_row("chosen became less likely", *cells(found.displacement))
    judged = "log-prob" if found.primary == "logprob" else "reward"
    table.add_row(f"AUC by {judged}", *cells(found.auc))
    table.add_row(f"prefers chosen by {judged} where it is shorter", *cells(bias.shorter))
    table.add_row("  where it is longer", *cells(bias.longer))
    table.add_row("  longer minus shorter", *cells(bias.difference))
    if evaluation.human is not None and evaluation.human.value is not None:
        table.add_row("one rater agrees with the rest", *cells(evaluation.human))
    console = results()
    console.print(table)
    if evaluation.slices:
        bins = Table(plain_text(evaluation.slice_by or ""), "pairs", "log-prob", "reward", "one rater", title="by bin")
        for part in evaluation.slices:
            measured = [cells(value)[0] for value in (part.logprob, part.reward, part.human)]
            bins.add_row(plain_text(part.label), str(part.n), *measured)
        console.print(bins)
    if evaluation.calibration is not None:
        _show_calibration(evaluation.calibration)
    if evaluation.by_agreement:
        _show_agreement(evaluation.by_agreement, judged)


def _show_calibration(found: Calibration) -> None:
    from rich.table import Table

    observed = "raters prefer the same" if found.against == "raters" else "the chosen one is preferred"
    table = Table("model is sure by", "pairs", "mean", observed, "95 % interval", title="calibration of sigma(margin)")
    for part in found.bins:
        predicted = "-" if part.predicted is None else f"{100 * part.predicted:.1f} %"
        table.add_row(f"{part.low:.0%} to {part.high:.0%}", str(part.n), predicted, *cells(part.observed)[:2])
    console = results()
    console.print(table)
    error = "-" if found.expected_error is None else f"{found.expected_error:.3f}"
    brier = "-" if found.brier.value is None else f"{found.brier.value:.3f}"
    console.print(f"expected calibration error {error}; Brier score {brier}, 0.25 without an opinion", style="dim")


def _show_agreement(found: tuple[AgreementBin, ...], judged: str) -> None:
    from rich.table import Table

    table = Table(
        "raters for chosen", "pairs", f"model, by {judged}", "95 % interval", "one rater", "95 % interval",
        title="where people agree, and where they don't",
    )  # fmt: skip
    for part in found:
        human = cells(part.human)[:2]
        table.add_row(f"{part.low:.0%} to {part.high:.0%}", str(part.n), *cells(part.accuracy)[:2], *human)
    results().print(table)


def plain_text(text: str) -> str:
    """Return text from data as a table shows it: no markup in it counts."""
    from rich.markup import escape

    return escape(text)


def cells(found: Accuracy | Estimate | Mean | Share | None, *, percent: bool = True) -> tuple[str, str, str]:
    """Return value, interval and ties as text; a dash where there is nothing to count."""
    if found is None or found.value is None or found.low is None or found.high is None:
        return "-", "-", str(getattr(found, "ties", "") or "")
    form, scale, unit = (".1f", 100, " %") if percent else ("+.3f", 1, "")
    value, low, high = (f"{scale * number:{form}}" for number in (found.value, found.low, found.high))
    return f"{value}{unit}", f"{low} to {high}", str(getattr(found, "ties", ""))
