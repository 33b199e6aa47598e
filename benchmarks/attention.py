"""Compare the shared-prompt attention with scaled dot-product attention a group: forward and backward of one layer.

    python benchmarks/attention.py

Per-group SDPA computes each completion behind its own copy of the prompt, causally; padded SDPA does so for all of them
in one batch. Times are taken in turn in one process, and ours is divided by each. The table goes to stdout and its last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prefopt.kernels.attention import shared_prompt_attention
from prefopt.records import Layout

Shape = Sequence[tuple[int, Sequence[int]]]

SHAPES: dict[str, Shape] = {
    "32 groups: prompt 35, completions 25 and 25": [(35, (25, 25))] * 32,
    "8 groups: prompts of 60 to 400, completions of 30 to 250": [
        (60, (30, 45)), (110, (250, 80)), (150, (60, 60)), (200, (90, 35)),
        (240, (140, 200)), (290, (70, 110)), (340, (45, 95)), (400, (180, 240)),
    ],
    "2 groups: prompt 1200, completions 600 and 800": [(1200, (600, 800))] * 2,
}  # fmt: skip
HEADS, KV_HEADS, SIZE = 9, 3, 64


def sequences(layout: Layout) -> list[Tensor]:
    """Return the row's tokens that each completion sees, prompt and itself."""
    found = []
    for g in layout.groups:
        prompt, start = torch.arange(g.start, g.start + g.prompt), g.start + g.prompt
        for length in g.completions:
            found.append(torch.cat([prompt, torch.arange(start, start + length)]))
            start += length
    return found


def per_group(query: Tensor, key: Tensor, value: Tensor, rows: list[Tensor]) -> Tensor:
    out = [
        F.scaled_dot_product_attention(*(x[:, :, r] for x in (query, key, value)), is_causal=True, enable_gqa=True)
        for r in rows
    ]
    return torch.cat(out, 2)


def padded(query: Tensor, key: Tensor, value: Tensor, rows: list[Tensor]) -> Tensor:
    wide = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # padding stands behind: causal attention ignores it
    gathered = (x[0][:, wide].transpose(0, 1) for x in (query, key, value))
    return F.scaled_dot_product_attention(*gathered, is_causal=True, enable_gqa=True)


def seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(shape: Shape, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Return ours over each peer's time: median, least and most."""
    layout = Layout.of(shape)
    rows = sequences(layout)
    leaves = [
        torch.randn(1, heads, layout.tokens, SIZE, dtype=dtype, requires_grad=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]

    def step(attend: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for leaf in leaves:
                leaf.grad = None
            attend().sum().backward()

        return run

    def ours() -> Tensor:
        return shared_prompt_attention(torch.nn.Identity(), *leaves, None, layout=layout)[0]

    peers = {
        "per-group SDPA": step(lambda: per_group(*leaves, rows)),
        "padded SDPA": step(lambda: padded(*leaves, rows)),
    }
    mine = step(ours)
    for run in (mine, *peers.values()):
        run()
    ratios: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(repeats):
        for name, run in peers.items():
            before, other, after = seconds(mine), seconds(run), seconds(mine)
            ratios[name].append((before + after) / 2 / other)
    return {name: {"median": statistics.median(r), "min": min(r), "max": max(r)} for name, r in ratios.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results = {}
    print(f"one layer, {HEADS} heads of {SIZE} over {KV_HEADS}, {options.dtype}: ours over")
    for name, shape in SHAPES.items():
        results[name] = measure(shape, getattr(torch, options.dtype), options.repeats)
        shown = (f"{k} {r['median']:.2f} ({r['min']:.2f} .. {r['max']:.2f})" for k, r in results[name].items())
        print(f"  {name:58} {'   '.join(shown)}", flush=True)
    print(json.dumps({"benchmark": "attention", "results": results, "settings": vars(options)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
