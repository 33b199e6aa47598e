"""`prefopt eval frontier`: reward of samples against sequence KL to the reference, of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefopt.cli.console import print_json, results, say
from prefopt.cli.sampling_options import BatchSize, Limit, MaxNewTokens, PromptColumn, SamplesPerPrompt, TokenBudget

if TYPE_CHECKING:
    from prefopt.eval.frontier import Frontier
    from prefopt.eval.kl import ClusteredMean


def frontier(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories of train or rounds.", show_default=False)
    ],
    scorer: Annotated[
        str | None, typer.Option(help="What samples are scored by: a kind with its defaults, as sentiment.")
    ] = None,
    reward: Annotated[
        Path | None, typer.Option(help="A YAML file with a score section instead, as recipes of rounds have it.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="A file of prompts, instead of those that the first run holds out.")
    ] = None,
    prompt_column: PromptColumn = None,
    limit: Limit = None,
    samples_per_prompt: SamplesPerPrompt = 4,
    max_new_tokens: MaxNewTokens = 64,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Measure every checkpoint of the runs.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples, the same for all runs.")] = 0,
    batch_size: BatchSize = 64,
    token_budget: TokenBudget = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to write to, instead of the first run's eval: these are several files."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what frontier.json holds.")] = False,
) -> None:
    """Measure what runs earn on samples against how far they moved: mean reward by sequence KL to the reference.

    All runs answer the same prompts with the same seeds at temperature 1. The divergence is the exact one at every
    sampled token, with log-ratios beside it as a check. Writes frontier.json, .csv, .png and .svg; what is measured
    already is not sampled again. The runs must have begun with the same model.

    **Examples**

    - `prefopt eval frontier runs/beta-* --scorer sentiment --out frontier`
    - `prefopt eval frontier runs/irpo runs/dpo --reward rounds.yaml --checkpoints`
    """
    from prefopt.workflow.directory import evaluation_json
    from prefopt.workflow.frontier import FrontierOptions, frontier_of_runs

    found = frontier_of_runs(
        runs,
        scorer=scorer,
        reward=reward,
        prompts=prompts,
        column=prompt_column,
        limit=limit,
        out=out,
        options=FrontierOptions(
            samples_per_prompt=samples_per_prompt,
            max_new_tokens=max_new_tokens,
            checkpoints=checkpoints,
            seed=seed,
            batch_size=batch_size,
            token_budget=token_budget,
        ),
        say=say,
    )
    if as_json:
        print_json(evaluation_json("frontier", found.to_dict()))
    else:
        _show(found)


def _show(found: Frontier) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("point", f"reward ({found.scorer})", "KL, nats", "by log-ratios", "tokens", "cut", "dominating",
                  title=f"{found.prompts} prompts x {found.samples_per_prompt} samples")  # fmt: skip
    for one in found.points:
        length = "-" if one.length.value is None else f"{one.length.value:.1f}"
        table.add_row(
            Text(one.label), _cell(one.reward), _cell(one.kl), _cell(one.kl_log_ratio), length,
            f"{one.truncated:.0%}", "yes" if one.dominating else "",
        )  # fmt: skip
    results().print(table)


def _cell(found: ClusteredMean) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "-"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
