"""`prefopt merge`: a run's adapter put into its model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefopt.cli.console import print_json, results

if TYPE_CHECKING:
    from prefopt.workflow.merge import Merged


def merge(
    run: Annotated[Path, typer.Argument(help="A finished run directory.", metavar="RUN", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The folder to write: new or empty.", metavar="OUT", show_default=False)],
    dtype: Annotated[
        str, typer.Option(help="Of the saved weights: auto (the policy's), bfloat16, float16 or float32.")
    ] = "auto",
    data: Annotated[
        str | None, typer.Option(help="Preferences to measure the drift on, instead of the recipe's data.eval.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Examples to measure the drift on; 0 measures none.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written and measured as JSON.")] = False,
) -> None:
    """Merge a run's adapter into its model: safetensors and tokenizer that load anywhere, without an adapter.

    The merge is computed in float32 and rounded once. What is written is then loaded and compared with the policy, its
    adapter on: the drift is the difference of their log-probs. An adapter that was trained on quantized weights is
    merged into those weights, unpacked, not into the original ones.

    **Examples**

    - `prefopt merge runs/mine merged/mine`
    - `prefopt merge runs/mine merged/mine --dtype bfloat16 --rows 200`
    """
    from prefopt.report.card import write_card
    from prefopt.workflow.merge import merge_run

    merged = merge_run(run, out, dtype=dtype, data=data, rows=rows)
    write_card(run, out, merged=merged)
    if as_json:
        print_json({**asdict(merged), "path": str(merged.path)})
    else:
        _show(merged)


def _show(merged: Merged) -> None:
    console = results()
    console.print(f"{merged.path}: {merged.dtype}", soft_wrap=True, highlight=False)
    if merged.quantized:
        console.print("The adapter was trained on quantized weights: the model holds those, unpacked.")
    if (drift := merged.drift) is not None:
        console.print(
            f"drift over {drift.completions} completions, nats: a token {drift.token_mean:.2g} on average, "
            f"{drift.token_max:.2g} at most; a completion {drift.completion_mean:.2g} on average, "
            f"{drift.completion_max:.2g} at most",
            highlight=False,
        )
