"""`prefopt eval harness`: lm-evaluation-harness before and after training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefopt.cli.console import print_json, results, say

if TYPE_CHECKING:
    from prefopt.eval.harness import Difference, Estimate
    from prefopt.workflow.harness import HarnessResult


def harness(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    tasks: Annotated[
        str, typer.Option(help="Names of tasks, groups or tags, patterns or YAML files, with commas between.")
    ] = "",
    include_path: Annotated[
        list[Path] | None,
        typer.Option(help="A folder or YAML file of own tasks; without --tasks all of them are measured."),
    ] = None,
    limit: Annotated[
        float | None, typer.Option(help="The first documents of each task: a number, or a share below 1.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples shown before each question, instead of the task's own number.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests computed at once: memory and time.")] = 8,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Put questions as turns of a chat.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write to this file, instead of eval/harness.json of the run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what harness.json holds.")] = False,
) -> None:
    """Measure a run and the model that it began with by lm-evaluation-harness, in one table.

    Needs `pip install 'prefopt[lm-eval]'`. Nothing is fetched for tasks whose data is in local files.

    **Examples**

    - `prefopt eval harness runs/mine --tasks arc_easy,hellaswag --limit 200`
    - `prefopt eval harness runs/mine --include-path my_tasks`
    """
    from prefopt.workflow.directory import evaluation_json
    from prefopt.workflow.harness import HarnessOptions, harness_of_run

    found = harness_of_run(
        run,
        [name for part in tasks.split(",") if (name := part.strip())],
        include=include_path or [],
        out=out,
        options=HarnessOptions(limit, num_fewshot, batch_size, apply_chat_template),
        say=say,
    )
    if as_json:
        print_json(evaluation_json("harness", found.to_dict()))
    else:
        _show(found)


def _show(result: HarnessResult) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("measure", "documents", "shots", "before", "after", "difference", title=f"lm_eval {result.harness}")
    for one in result.compared:
        better = "" if one.higher_is_better is None else " ↑" if one.higher_is_better else " ↓"
        table.add_row(
            Text(one.name + better),
            str(one.documents),
            "-" if one.num_fewshot is None else str(one.num_fewshot),
            _estimate(one.base),
            _estimate(one.tuned),
            _gap(one.difference),
        )
    console = results()
    console.print(table)
    for sentence in result.words:
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)


def _estimate(found: Estimate) -> str:
    return f"{found.value:.4f}" + ("" if found.standard_error is None else f" ± {found.standard_error:.4f}")


def _gap(found: Difference) -> str:
    if found.low is None:
        return f"{found.value:+.4f}"
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}){'' if found.paired else ', not paired'}"
