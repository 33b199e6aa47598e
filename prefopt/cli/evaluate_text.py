"""`prefopt eval text`: how a run's texts differ from those of the model that it began with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefopt.cli.console import print_json, results, say
from prefopt.cli.sampling_options import BatchSize, Limit, MaxNewTokens, PromptColumn, SamplesPerPrompt, TokenBudget

if TYPE_CHECKING:
    from prefopt.eval import Mean, Share
    from prefopt.workflow.text import TextResult


def text(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    prompts: Annotated[
        str | None, typer.Option(help="A file of prompts, instead of those that the run holds out.")
    ] = None,
    prompt_column: PromptColumn = None,
    limit: Limit = None,
    samples_per_prompt: SamplesPerPrompt = 4,
    max_new_tokens: MaxNewTokens = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples, the same for both models.")] = 0,
    batch_size: BatchSize = 64,
    token_budget: TokenBudget = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file, instead of eval/text.json of the run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what text.json holds.")] = False,
) -> None:
    """Measure perplexity, entropy, diversity, refusals and length before and after training, on the same prompts.

    A refusal is a completion that begins in one of some twenty ways: a heuristic for English.

    **Example**

    - `prefopt eval text runs/mine --samples-per-prompt 8`
    """
    from prefopt.workflow.directory import evaluation_json
    from prefopt.workflow.generations import SamplingOptions
    from prefopt.workflow.text import text_of_run

    found = text_of_run(
        run,
        prompts=prompts,
        column=prompt_column,
        limit=limit,
        out=out,
        options=SamplingOptions(
            samples_per_prompt=samples_per_prompt,
            max_new_tokens=max_new_tokens,
            seed=seed,
            batch_size=batch_size,
            token_budget=token_budget,
        ),
        say=say,
    )
    if as_json:
        print_json(evaluation_json("text", found.to_dict()))
    else:
        _show(found)


def _show(result: TextResult) -> None:
    from rich.table import Table

    base, tuned = result.base, result.tuned
    table = Table("measure", "before", "after", title=f"{result.prompts} prompts x {result.samples_per_prompt} samples")
    table.add_row("perplexity of held-out chosen", _cell(base.perplexity), _cell(tuned.perplexity))
    table.add_row("entropy a token, nats", _cell(base.entropy), _cell(tuned.entropy))
    for n in (1, 2, 3):
        table.add_row(f"distinct-{n}", *(f"{getattr(side, f'distinct_{n}'):.1%}" for side in (base, tuned)))
    table.add_row("repeats of the same prompt", f"{base.duplicates:.1%}", f"{tuned.duplicates:.1%}")
    table.add_row("refusals", _cell(base.refusals, percent=True), _cell(tuned.refusals, percent=True))
    table.add_row("length, tokens", _cell(base.length), _cell(tuned.length))
    table.add_row(
        "cut at the longest length", _cell(base.truncated, percent=True), _cell(tuned.truncated, percent=True)
    )
    console = results()
    console.print(table)
    if result.no_perplexity is not None:
        console.print(f"no perplexity: {result.no_perplexity}", soft_wrap=True, highlight=False, markup=False)
    for sentence in result.drift:
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)


def _cell(found: Mean | Share | None, *, percent: bool = False) -> str:
    if found is None or found.value is None:
        return "-"
    form = ".1%" if percent else ".2f"
    return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"
