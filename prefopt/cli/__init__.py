"""The command line: one file a verb, put together here. No logic lives in this room.

Results go to stdout and messages to stderr. Exit codes: 0 done, 1 the run failed, 2 something the user can mend,
130 interrupted. Nothing heavy is imported before a verb runs, so that `--help` is quick.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer
from rich.markup import escape

from prefopt.cli import (
    chat,
    data,
    demo,
    doctor,
    evaluate,
    evaluate_compare,
    evaluate_frontier,
    evaluate_harness,
    evaluate_rewardbench,
    evaluate_text,
    evaluate_winrate,
    kernels,
    losses,
    merge,
    plan,
    push,
    reference,
    report,
    reward,
    rounds,
    train,
    version,
)
from prefopt.cli.console import messages
from prefopt.errors import PrefoptError

FAILED, USER_ERROR = 1, 2

app = typer.Typer(
    name="prefopt",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `prefopt demo`, or write a recipe and `prefopt train recipe.yaml`.",
)
evaluations = typer.Typer(no_args_is_help=True, help="Measure a run, or a recipe's model before it is trained.")
datasets = typer.Typer(
    no_args_is_help=True, help="Look at preference data before training on it, convert it, split it."
)
loss_verbs = typer.Typer(invoke_without_command=True, callback=losses.show)
reference_verbs = typer.Typer(no_args_is_help=True, help="Log-probs of references, computed once and kept.")
reward_verbs = typer.Typer(no_args_is_help=True, help="Reward models: what completions are scored by.")
round_verbs = typer.Typer(
    cls=rounds.RunByDefault,
    no_args_is_help=True,
    help="Learn from a reward: sample, score, select, train, evaluate, repeat. `prefopt rounds RECIPE` does it.",
)
kernel_verbs = typer.Typer(no_args_is_help=True, help="What the kernels take of a GPU, which need not be here.")

app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("plan")(plan.plan)
app.add_typer(evaluations, name="eval")
evaluations.command("pairs")(evaluate.pairs)
evaluations.command("frontier")(evaluate_frontier.frontier)
evaluations.command("winrate")(evaluate_winrate.winrate)
evaluations.command("text")(evaluate_text.text)
app.command("report")(report.report)
evaluations.command("compare")(evaluate_compare.compare)
evaluations.command("rewardbench")(evaluate_rewardbench.rewardbench)
evaluations.command("harness")(evaluate_harness.harness)
app.command("chat")(chat.chat)
app.command("merge")(merge.merge)
app.command("push")(push.push)
app.add_typer(datasets, name="data")
datasets.command("inspect")(data.inspect)
datasets.command("convert")(data.convert)
datasets.command("split")(data.split_data)
app.add_typer(loss_verbs, name="losses")
loss_verbs.command("plot")(losses.plot)
app.add_typer(round_verbs, name="rounds")
round_verbs.command("run")(rounds.run)
round_verbs.command("status")(rounds.status)
round_verbs.command("plot")(rounds.plot)
app.add_typer(kernel_verbs, name="kernels")
kernel_verbs.command("check")(kernels.check)
kernel_verbs.command("roofline")(kernels.roofline)
app.add_typer(reference_verbs, name="reference")
reference_verbs.command("build")(reference.build)
reference_verbs.command("status")(reference.status)
reference_verbs.command("clear")(reference.clear)
app.add_typer(reward_verbs, name="reward")
reward_verbs.command("train")(reward.train)
app.command("doctor")(doctor.doctor)
app.command("version")(version.version)


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=version.print_and_exit),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works after a verb too.")
    ] = False,
) -> None:
    """Offline preference optimization: a causal language model and a file of preferences in, a better model out."""


def main() -> None:
    """Run the command line and exit: the console script."""
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments, prog_name="prefopt")
    except PrefoptError as error:
        _complain(str(error), debug=debug)
        sys.exit(USER_ERROR)
    except (OSError, MemoryError) as error:
        _complain(f"The run failed: {error or 'this machine ran out of memory'}.", debug=debug)
        sys.exit(FAILED)
    except RuntimeError as error:
        from prefopt.data.workers import death_of_a_worker

        if (death := death_of_a_worker(error)) is not None:
            _complain(str(death), debug=debug)
            sys.exit(USER_ERROR)
        if type(error).__name__ != "OutOfMemoryError":  # torch's, named so that torch need not be imported
            raise
        _complain(f"The run failed: the device ran out of memory; lower train.token_budget. ({error})", debug=debug)
        sys.exit(FAILED)


def _complain(text: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    # Not wrapped and not highlighted: a message is searched for, and read by programs.
    messages().print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True, highlight=False)
