"""`prefopt eval winrate`: whose completions of the same prompts are better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefopt.cli.console import print_json, results, say
from prefopt.cli.sampling_options import BatchSize, Limit, MaxNewTokens, PromptColumn, SamplesPerPrompt

if TYPE_CHECKING:
    from prefopt.eval import Estimate
    from prefopt.workflow.winrate import WinrateResult

_SIDE = "A run directory, a recipe whose model is taken as it is, or a model."


def winrate(
    a: Annotated[str, typer.Argument(metavar="A", help=_SIDE, show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help=_SIDE, show_default=False)],
    scorer: Annotated[str | None, typer.Option(help="The higher score wins: a kind with its defaults.")] = None,
    reward: Annotated[Path | None, typer.Option(help="A YAML file with a score section instead.")] = None,
    judge: Annotated[
        Path | None, typer.Option(help="A YAML file with the keys of a judge, which compares in both orders, instead.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(help="A file of prompts, instead of those that A holds out.")] = None,
    prompt_column: PromptColumn = None,
    limit: Limit = None,
    samples_per_prompt: SamplesPerPrompt = 1,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples, the same for both.")] = 0,
    batch_size: BatchSize = 64,
    out: Annotated[Path | None, typer.Option(help="Write to this file, instead of eval/winrate.json of A.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what winrate.json holds.")] = False,
) -> None:
    """Compare what two models answer to the same prompts with the same seeds.

    Printed are the raw win rate, ties half, and the one at equal length, which is of this comparison alone and not
    the leaderboard number of a like name; both with 95 % intervals over prompts. A judge sees every pair in both
    orders; opposite verdicts are a tie. The answers lie beside the rates, as `winrate_samples.jsonl`.

    **Examples**

    - `prefopt eval winrate runs/mine HuggingFaceTB/SmolLM2-135M-Instruct --scorer sentiment`
    - `prefopt eval winrate runs/dpo runs/ipo --judge judge.yaml --prompts questions.jsonl`
    """
    from prefopt.workflow.directory import evaluation_json
    from prefopt.workflow.winrate import WinrateOptions, winrate_of

    found = winrate_of(
        a,
        b,
        scorer=scorer,
        reward=reward,
        judge=judge,
        prompts=prompts,
        column=prompt_column,
        limit=limit,
        out=out,
        options=WinrateOptions(
            samples_per_prompt=samples_per_prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
        ),
        say=say,
    )
    if as_json:
        print_json(evaluation_json("winrate", found.to_dict()))
    else:
        _show(found)


def _show(result: WinrateResult) -> None:
    from rich.table import Table
    from rich.text import Text

    found = result.found
    table = Table("", "value", "95 % interval", title=Text(f"{result.a} against {result.b}, by {result.scorer}"))
    table.add_row("win rate", *_cells(found.raw))
    table.add_row("win rate at equal length", *_cells(found.length_controlled))
    table.add_row("wins, ties, losses", f"{found.wins_a}, {found.ties}, {found.wins_b}", f"{found.failed} failed")
    table.add_row("tokens, the one and the other", *(f"{side.value:.1f}" for side in (found.length_a, found.length_b)))
    if result.position is not None and result.position.first.value is not None:
        first = result.position.first
        table.add_row(
            "the judge prefers what stands first", f"{first.value:.1%}", f"{first.low:.1%} to {first.high:.1%}"
        )
    console = results()
    console.print(table)
    for reason, count in result.failures.items():
        console.print(f"no verdict, {count} times: {reason}", markup=False)


def _cells(rate: Estimate) -> tuple[str, str]:
    if rate.value is None:
        return "-", "-"
    return f"{rate.value:.1%}", f"{rate.low:.1%} to {rate.high:.1%}"
