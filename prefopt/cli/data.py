"""`prefopt data inspect`: what a file of preferences is taken for, before anything is trained on it."""

from __future__ import annotations

from typing import Annotated

import typer

from prefopt.cli.console import print_json, results
from prefopt.errors import DataError


def inspect(
    source: Annotated[
        str,
        typer.Argument(
            help="A file, a glob, or the name of a Hugging Face dataset.", metavar="SRC", show_default=False
        ),
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Model whose tokenizer and chat template are used; without, lengths are characters."),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Examples to show.")] = 3,
    data_format: Annotated[
        str, typer.Option("--format", help="auto, pairs, implicit_pairs, labels or lists.")
    ] = "auto",
    column: Annotated[
        list[str] | None,
        typer.Option(help="Where a field has another name: prompt=question. Repeatable.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face dataset.")] = "train",
    max_length: Annotated[int, typer.Option(min=2, help="Tokens that prompt and completion may have.")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what preference data is: its format and why, rows used and rejected and why, lengths, examples.

    With --tokenizer rows are cut as training cuts them, so that rows that are too long, or whose prompt and completion
    share a token, show up too.

    **Examples**

    - `prefopt data inspect pairs.jsonl`
    - `prefopt data inspect 'data/*.parquet' --tokenizer ./my-model --column prompt=question --json`
    """
    from prefopt.data.inspection import inspect_lines, inspect_source

    loaded = None
    if tokenizer is not None:
        from prefopt.models.tokenizer import tokenizer_of

        loaded = tokenizer_of(tokenizer)
    inspection = inspect_source(
        source,
        loaded,
        rows=rows,
        format=data_format,
        columns=_columns(column or []),
        split=split,
        max_length=max_length,
    )
    if as_json:
        print_json(inspection.to_dict())
        return
    console = results()
    for line in inspect_lines(inspection):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for row in inspection.rows:
        console.rule(row.source, align="left")
        for name, text in (("prompt", row.prompt), *row.completions):
            console.print(f"[bold]{name}[/]")
            console.print(text, markup=False, highlight=False)


def _columns(pairs: list[str]) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs]
    for field, equals, name in split:
        if not (field and equals and name):
            raise DataError(f"--column {field}{equals}{name} is not of the form field=column, as in prompt=question.")
    return {field: name for field, _, name in split}
