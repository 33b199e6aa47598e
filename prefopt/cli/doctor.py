"""`prefopt doctor`: what this machine can do, and what each absence costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from prefopt.cli.console import print_json, results


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what this machine can do: device, dtypes, Triton, bitsandbytes, versions, and what each absence costs."""
    from rich.markup import escape
    from rich.table import Table

    from prefopt.environment import capabilities, describe

    facts = describe()
    found = capabilities(facts)
    backend = _logprob_backend(facts)
    if as_json:
        print_json({**facts, "capabilities": [asdict(capability) for capability in found], "logprobs": backend})
        return
    console = results()
    memory = facts["memory_gib"]
    console.print(f"{facts['platform']}, Python {facts['python']}", highlight=False)
    console.print(
        f"{facts['cpu']['model']}, {facts['cpu']['cores']} cores, {facts['threads']} threads"
        + (f", {memory:g} GiB of memory" if memory else ""),
        highlight=False,
    )
    table = Table("", "here", "found", "without it", show_lines=True)
    for capability in found:
        here = "[green]yes[/]" if capability.available else "[yellow]no[/]"
        cost = "" if capability.available else capability.cost_of_absence
        table.add_row(capability.name, here, escape(capability.detail), escape(cost))
    console.print(table)
    console.print(
        f"Log-probs in bfloat16: the {backend['backend']} backend, since {backend['reason']}.", highlight=False
    )
    versions = (f"{name} {version}" for name, version in facts["packages"].items())
    console.print(", ".join(versions), highlight=False)


def _logprob_backend(facts: dict[str, Any]) -> dict[str, str]:
    """Return which backend computes log-probs on the device that a run would use, and why."""
    import torch

    from prefopt.kernels.backends import recommend

    devices = facts["devices"]
    name, reason = recommend(torch.device(devices[0]["type"] if devices else "cpu"), torch.bfloat16)
    return {"backend": name, "reason": reason}
