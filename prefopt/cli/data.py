"""`prefopt data`: what preferences are taken for, their conversion to one form, and a held-out part of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prefopt.cli.console import print_json, results
from prefopt.errors import DataError

SourceArgument = Annotated[
    str,
    typer.Argument(help="A file, a glob, or the name of a Hugging Face dataset.", metavar="SRC", show_default=False),
]
FormatOption = Annotated[str, typer.Option("--format", help="What a row is; auto finds it out.", metavar="FORMAT")]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(help="Where a field has another name: prompt=question. Repeatable.", show_default=False),
]
SplitOption = Annotated[str, typer.Option(help="Split of a Hugging Face dataset.")]
AsChatOption = Annotated[bool, typer.Option("--as-chat", help="Take strings as a user's and an assistant's turn.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")]
MaxRejectedOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of rows that may be unusable before nothing is written.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


def inspect(
    source: SourceArgument,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Model whose tokenizer and chat template are used; without, lengths are characters."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option("--eval", help="Held-out preferences: how much of them stands in SRC too?", metavar="OTHER"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write it as one HTML page that needs nothing else.", metavar="OUT.html")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Examples to show.")] = 3,
    data_format: FormatOption = "auto",
    column: ColumnOption = None,
    split: SplitOption = "train",
    as_chat: AsChatOption = False,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens that prompt and completion may have.")] = 1024,
    as_json: JsonOption = False,
) -> None:
    """Say what preference data is: its format and why, rows used and rejected and why, lengths, noise, examples.

    With --tokenizer rows are cut as training cuts them, so that rows that are too long, or whose prompt and completion
    share a token, show up too, and what each max_length would leave out.

    **Examples**

    - `prefopt data inspect pairs.jsonl`
    - `prefopt data inspect pairs.jsonl --tokenizer ./my-model --eval held_out.jsonl --html pairs.html`
    - `prefopt data inspect 'data/*.parquet' --column prompt=question --json`
    """
    from prefopt.data.inspection import inspect_source

    loaded = None
    if tokenizer is not None:
        from prefopt.models.tokenizer import tokenizer_of

        loaded = tokenizer_of(tokenizer)
    inspection = inspect_source(
        source,
        loaded,
        rows=rows,
        held_out=held_out,
        max_length=max_length,
        **_options(data_format, column, split, as_chat),
    )
    if html is not None:
        from prefopt.report import write_data_page

        write_data_page(inspection, html)
    if as_json:
        print_json(inspection.to_dict())
        return
    from prefopt.cli.data_view import show_inspection

    show_inspection(results(), inspection)
    if html is not None:
        typer.echo(html)


def convert(
    source: SourceArgument,
    out: Annotated[Path, typer.Argument(help="The Parquet file to write.", metavar="OUT", show_default=False)],
    data_format: FormatOption = "auto",
    column: ColumnOption = None,
    split: SplitOption = "train",
    as_chat: AsChatOption = False,
    max_rejected: MaxRejectedOption = 0.01,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write preferences of any recognised format as Parquet with prefopt's own columns.

    The file is read back and compared before it takes its name. Rows that can't be used are listed in
    OUT.rejected_rows.jsonl.

    **Examples**

    - `prefopt data convert pairs.jsonl pairs.parquet`
    - `prefopt data convert 'data/*.json' all.parquet --column prompt=question --overwrite`
    """
    from prefopt.data.convert import convert_source

    options = _options(data_format, column, split, as_chat)
    _show(convert_source(source, out, overwrite=overwrite, max_rejected=max_rejected, **options), as_json=as_json)


def split_data(
    source: SourceArgument,
    out: Annotated[Path, typer.Option(help="Folder for train.parquet and eval.parquet.", show_default=False)],
    eval_share: Annotated[float, typer.Option(help="Share of the prompts that is held out, between 0 and 1.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Another seed holds out other prompts.")] = 0,
    data_format: FormatOption = "auto",
    column: ColumnOption = None,
    split: SplitOption = "train",
    as_chat: AsChatOption = False,
    max_rejected: MaxRejectedOption = 0.01,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Hold out a share of the prompts: no prompt stands on both sides, and further rows never move those there are.

    **Example**

    - `prefopt data split pairs.jsonl --out data --eval-share 0.1`
    """
    from prefopt.data.split import split_source

    options = _options(data_format, column, split, as_chat)
    parts = split_source(
        source, out, eval_share=eval_share, seed=seed, overwrite=overwrite, max_rejected=max_rejected, **options
    )
    _show(parts, as_json=as_json)


def _show(written: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(written.to_dict())
        return
    for line in written.lines():
        results().print(line, markup=False, highlight=False, soft_wrap=True)


def _options(data_format: str, column: list[str] | None, split: str, as_chat: bool) -> dict[str, Any]:
    return {"format": data_format, "columns": _columns(column or []), "split": split, "as_chat": as_chat}


def _columns(pairs: list[str]) -> dict[str, str]:
    split = [pair.partition("=") for pair in pairs]
    for field, equals, name in split:
        if not (field and equals and name):
            raise DataError(f"--column {field}{equals}{name} is not of the form field=column, as in prompt=question.")
    return {field: name for field, _, name in split}
