"""Where the time of prefopt's own training steps goes, by kind of operator.

    python benchmarks/step.py
    python benchmarks/step.py --policy full --prompts long --steps 3

The workload is that of `vs_trl.py`. A table: milliseconds a step, share, calls. "products" are split by what they
multiply: the layers' frozen weights, the head, LoRA's low rank, attention. What no matrix product is stands below,
operator by operator. The profiler's own cost is in every figure, most in operators that are called often. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from paired import cells, workload
from paired.measure import Clock, Job
from paired.our_side import build_trainer
from paired.prepare import prepare

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")
BATCHED = ("aten::bmm", "aten::baddbmm")
SHOWN = 20


def kind_of(name: str, shapes: list[list[int]], rank: int, tiles: set[int]) -> str:
    """Return what an operator multiplies, or its own name."""
    if name in BATCHED:
        return "products: attention"
    if name not in PRODUCTS:
        return name
    sides = {side for shape in shapes for side in shape}
    if rank in sides:
        return "products: low rank"
    return "products: head" if sides & tiles else "products: layers"


def profile(job: Job) -> tuple[Counter[str], Counter[str], list[float]]:
    """Train; return milliseconds and calls by kind, of all steps, and every step's seconds without the first."""
    clock = Clock()
    trainer = build_trainer(job, clock)
    vocabulary = int(trainer.packed.head_weight.shape[0])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        trainer.train()
    milliseconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    # The head is multiplied in tiles of the vocabulary: 4,096 tokens of it forward, 1,024 back.
    tiles = {vocabulary, 4096, 1024, vocabulary % 4096, vocabulary % 1024} - {0}
    for event in profiler.key_averages(group_by_input_shape=True):
        kind = kind_of(event.key, [s for s in event.input_shapes if s], job.rank, tiles)
        milliseconds[kind] += event.self_cpu_time_total / 1e3
        calls[kind] += event.count
    return milliseconds, calls, clock.seconds(job.warmup)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", choices=("lora", "full"), default="lora")
    parser.add_argument("--prompts", choices=tuple(cells.PROMPTS), default="short")
    parser.add_argument("--loss", choices=cells.LOSSES, default="dpo")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        job = Job(
            side="ours", variant=cells.OURS[options.policy], precomputed=False, model=str(work / "model"),
            rows=str(work / "rows.jsonl"), work=str(work / "run"), result="", warmup=1, steps=options.steps - 1,
            threads=options.threads, policy=options.policy, loss=options.loss,
            prompt_words=cells.PROMPTS[options.prompts],
        )  # fmt: skip
        prepare(job, str(workload.default_sentences()), options.model)
        milliseconds, calls, seconds = profile(job)
    total, steps = sum(milliseconds.values()), options.steps
    rows: list[dict[str, Any]] = [
        {"kind": kind, "ms": spent / steps, "share": spent / total, "calls": calls[kind] / steps}
        for kind, spent in sorted(milliseconds.items(), key=lambda item: (":" not in item[0][:9], -item[1]))
        if kind.startswith("products") or spent in sorted(milliseconds.values())[-SHOWN:]
    ]
    for row in rows:
        print(f"{row['kind']:36s} {row['ms']:9.1f} ms a step {row['share']:6.1%} {row['calls']:8.0f} calls")
    print(f"{'all':36s} {total / steps:9.1f} ms a step")
    print(json.dumps({"benchmark": "step", "options": vars(options), "rows": rows, "step_seconds": seconds}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
