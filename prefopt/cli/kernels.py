"""`prefopt kernels`: what the Triton kernels take of a GPU, and how long they must take, without having one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from prefopt.cli.console import messages, print_json, results
from prefopt.errors import PrefoptError, nearest

ARCHITECTURES = "80 (A100), 86 (RTX 3090), 89 (RTX 4090), 90 (H100), 120 (RTX 5090)"


def check(
    dtype: Annotated[str, typer.Option(help="all, bfloat16, float16 or float32.")] = "all",
    architecture: Annotated[str, typer.Option(help=f"all, or one of {ARCHITECTURES}.")] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Compile every kernel for every GPU that is supported and print what it takes; none of them need be here.

    A kernel that spills registers, multiplies 16-bit tiles without tensor cores or needs more than a GPU has is marked,
    and the exit code is 1.
    """
    try:
        from prefopt.kernels import compiled
    except ImportError as error:
        raise PrefoptError(
            f"the kernels can't be compiled without the package triton, which is published for Linux ({error})"
        ) from error
    dtypes = {"all": tuple(compiled.DTYPES), **{d: (d,) for d in compiled.DTYPES}}
    capabilities = {"all": tuple(compiled.SHARED_LIMIT), **{str(c): (c,) for c in compiled.SHARED_LIMIT}}
    wanted_dtypes, wanted = _pick("--dtype", dtype, dtypes), _pick("--architecture", architecture, capabilities)
    cases = [case for case in compiled.cases() if case[1] in wanted_dtypes and case[2] in wanted]
    from rich.progress import track

    found = list(track(compiled.check_all(cases), "compiling", total=len(cases), console=messages(), transient=True))
    failed = [usage for usage in found if usage.complaints]
    if as_json:
        print_json([{**asdict(usage), "complaints": usage.complaints} for usage in found])
    else:
        _print_usages(found)
    if failed:
        raise typer.Exit(1)


def _print_usages(found: list[Any]) -> None:
    from rich.table import Table

    console = results()
    table = Table("kernel", "dtype", "sm", "warps", "registers", "stack", "shared", "instructions", "tensor cores", "")
    for usage in found:
        table.add_row(
            usage.kernel,
            usage.dtype,
            str(usage.capability),
            str(usage.warps),
            str(usage.registers),
            str(usage.stack),
            str(usage.shared),
            str(usage.instructions),
            "" if usage.tensor_cores is None else str(usage.tensor_cores),
            f"[red]{'; '.join(usage.complaints)}[/]" if usage.complaints else "[green]ok[/]",
        )
    console.print(table)
    bad = sum(bool(usage.complaints) for usage in found)
    console.print(f"{len(found)} compiled, {bad} with a complaint.", highlight=False)


def roofline(
    gpu: Annotated[str, typer.Option(help="3090, 4090, 5090, a100, h100 or all.")] = "all",
    hidden: Annotated[int, typer.Option(min=1, help="Hidden size of the model.")] = 4096,
    vocab: Annotated[int, typer.Option(min=1, help="Entries of its vocabulary.")] = 128256,
    tokens: Annotated[int, typer.Option(min=1, help="Completion tokens scored at once.")] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Predict how long log-probs take on a GPU by each way to compute them: arithmetic on data sheets, not a timing.

    **Example**

    - `prefopt kernels roofline --gpu 4090 --hidden 4096 --vocab 128256 --tokens 4096`
    """
    from prefopt.kernels.roofline import GPUS, paths, score_alone

    wanted = _pick("--gpu", gpu.lower(), {"all": tuple(GPUS), **{name: (name,) for name in GPUS}})
    rows: list[dict[str, Any]] = [
        {
            "gpu": GPUS[name].name,
            "what": what,
            "path": path.name,
            "gigaflops": path.flops / 1e9,
            "gigabytes": path.bytes / 1e9,
            "compute_ms": path.floors(GPUS[name])[0] * 1e3,
            "memory_ms": path.floors(GPUS[name])[1] * 1e3,
            "binds": path.binds(GPUS[name]),
            "predicted_ms": path.seconds(GPUS[name]) * 1e3,
            "extra_mib": path.memory / 2**20,
        }
        for name in wanted
        for what, ways in paths(tokens, hidden, vocab).items()
        for path in ways
    ]
    verdicts = {name: score_alone(GPUS[name], tokens, hidden, vocab) for name in wanted}
    if as_json:
        alone = {
            name: {"faster": v.faster.name, "binds": v.faster.binds(GPUS[name]), "one_kernel_below_hidden": v.hidden}
            for name, v in verdicts.items()
        }
        print_json({"rows": rows, "gpus": {name: asdict(GPUS[name]) for name in wanted}, "scores_alone": alone})
        return
    for name in wanted:
        _print_predictions(GPUS[name], [row for row in rows if row["gpu"] == GPUS[name].name])
        _print_verdict(GPUS[name], verdicts[name])
    results().print("compute and memory: floors in ms; ms: the prediction; MiB: beside inputs and results.")


def _print_predictions(gpu: Any, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    console = results()
    console.print(
        f"{gpu.name}: {gpu.teraflops:g} TFLOP/s, {gpu.bandwidth:g} GB/s ({gpu.source})", highlight=False, soft_wrap=True
    )
    for what in dict.fromkeys(row["what"] for row in rows):
        names = (what, "TFLOP", "GB", "compute", "memory", "ms", "binds", "MiB")
        table = Table(*names, box=box.SIMPLE, padding=(0, 1), pad_edge=False)
        table.columns[0].no_wrap = True
        for row in (row for row in rows if row["what"] == what):
            times = [f"{row[k]:,.1f}" for k in ("compute_ms", "memory_ms", "predicted_ms")]
            table.add_row(
                row["path"], f"{row['gigaflops'] / 1e3:.1f}", f"{row['gigabytes']:.1f}", *times,
                row["binds"], f"{row['extra_mib']:,.0f}",
            )  # fmt: skip
        console.print(table)


def _print_verdict(gpu: Any, verdict: Any) -> None:
    times = [f"{path.seconds(gpu) * 1e3:,.1f} ms, {path.binds(gpu)} binds" for path in (verdict.faster, verdict.slower)]
    where = "at every hidden size" if verdict.hidden is None else f"below a hidden size of {verdict.hidden:,}"
    results().print(
        f"To score alone, '{verdict.faster.name}' ({times[0]}) is predicted to be faster than '{verdict.slower.name}' "
        f"({times[1]}); 'one kernel' is the faster one {where}.\n",
        highlight=False,
        soft_wrap=True,
    )


def _pick(option: str, value: str, choices: dict[str, Any]) -> Any:
    if value not in choices:
        raise PrefoptError(
            f"{option} is {value!r}; it must be one of {', '.join(choices)}{nearest(value, tuple(choices))}"
        )
    return choices[value]
