"""Compare ways to compute sequence log-probs and their gradient: time, peak memory, error, share of the bare products.

    python benchmarks/logprobs.py                                   # the CPU, or the GPU where there is one
    python benchmarks/logprobs.py --shape 512,640,262144 --plot kernels.png

Each contender runs in a process of its own, in turn. Its time is divided by that of the bare matrix products that it
needs (one to score, two with the gradient of the hidden states), taken right before and right after it in the same
process. They write to memory that is there already, and are nothing but arithmetic; to score, the same is said of
`hidden @ weight.T` as one writes it, which takes new memory for its logits. The table goes to stdout and its last line
is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SHAPES = ("512,576,49152", "512,640,262144")
"""Completion tokens, hidden size, vocabulary: SmolLM2's head and Gemma 3 270M's."""
CHECKED = 64
"""Tokens whose log-probs and gradients are compared with float64."""


@dataclass(frozen=True)
class Job:
    """One contender at one shape."""

    name: str
    tokens: int
    hidden: int
    vocabulary: int
    dtype: str
    device: str
    repeats: int
    threads: int


# ---- the contenders: each returns log-probs (N,) of target ids, differentiable in hidden ----


def ours(hidden: Any, weight: Any, target: Any) -> Any:
    import torch

    from prefopt.kernels import sequence_logprobs

    segment = torch.zeros_like(target)
    return sequence_logprobs(hidden, weight, target, segment, 1, reduction="none")


def full_logits(hidden: Any, weight: Any, target: Any) -> Any:
    import torch

    logits = hidden @ weight.T
    return torch.log_softmax(logits, -1, dtype=torch.float32).gather(1, target[:, None])[:, 0]


def trl_chunked(hidden: Any, weight: Any, target: Any) -> Any:
    from trl.kernels import ChunkedLogProbFunction

    return ChunkedLogProbFunction.apply(hidden, weight, None, target, 1.0, 32768, None, 1.0, ())[0]


def torch_linear_cross_entropy(hidden: Any, weight: Any, target: Any) -> Any:
    import torch
    from torch.nn import functional as F

    # The chunked form sums over tokens.
    options = torch.nn.LinearCrossEntropyOptions()
    return -F.linear_cross_entropy(hidden, weight, target, reduction="sum", options=options)


def liger(hidden: Any, weight: Any, target: Any) -> Any:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    return -LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, target, None, None, -100, 0.0, 0.0, "sum")[0]  # fmt: skip


def cut_cross_entropy(hidden: Any, weight: Any, target: Any) -> Any:
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden, weight, target, reduction="none")


CONTENDERS: dict[str, tuple[Callable[[Any, Any, Any], Any], str, bool]] = {
    "prefopt": (ours, "prefopt", False),
    "full logits": (full_logits, "torch", False),
    "TRL chunked": (trl_chunked, "trl", False),
    "torch linear_cross_entropy": (torch_linear_cross_entropy, "torch", False),
    "Liger": (liger, "liger_kernel", True),
    "CCE": (cut_cross_entropy, "cut_cross_entropy", True),
}
"""Name -> (function, package, runs on CUDA only)."""


# ---- one process ----


def measure(job: Job) -> dict[str, Any]:
    """Run one contender; returns ratios to the bare products, memory and errors."""
    import torch

    torch.set_num_threads(job.threads)
    score = CONTENDERS[job.name][0]
    draw = torch.Generator().manual_seed(0)
    dtype = getattr(torch, job.dtype)
    hidden = torch.randn(job.tokens, job.hidden, generator=draw).to(job.device, dtype)
    weight = torch.empty(job.vocabulary, job.hidden, device=job.device, dtype=dtype)
    for part in weight.split(4096):
        part.copy_(torch.randn(part.shape, generator=draw) * 0.08)
    target = torch.randint(0, job.vocabulary, (job.tokens,), generator=draw).to(job.device)
    leaf = hidden.clone().requires_grad_()

    def with_gradient() -> None:
        leaf.grad = None
        score(leaf, weight, target).sum().backward()

    def alone() -> None:
        with torch.no_grad():
            score(hidden, weight, target)

    # Products once before, for what the vendor's library keeps; memory before anything large is made.
    (hidden[:64] @ weight[:4096].T).sum().item()
    memory = {name: grown(job.device, run) for name, run in (("alone", alone), ("with_gradient", with_gradient))}
    error = errors(score, hidden[:CHECKED], weight, target[:CHECKED])
    logits = torch.empty(job.tokens, job.vocabulary, device=job.device, dtype=dtype)
    back = torch.empty_like(hidden)

    def one_product() -> None:
        torch.mm(hidden, weight.T, out=logits)

    def two_products() -> None:
        one_product()
        torch.mm(logits, weight, out=back)

    def written_product() -> None:
        hidden @ weight.T

    ratios = {}
    for name, run, bare in (
        ("alone", alone, one_product),
        ("alone_as_written", alone, written_product),
        ("with_gradient", with_gradient, two_products),
    ):
        run()
        bare()
        ratios[name] = spread([paired(run, bare, job.device) for _ in range(job.repeats)])
    return {"ratio": ratios, "memory_mib": memory, "error": error}


def paired(run: Callable[[], None], bare: Callable[[], None], device: str) -> float:
    before, taken, after = (seconds(f, device) for f in (bare, run, bare))
    return taken / ((before + after) / 2)


def seconds(run: Callable[[], None], device: str) -> float:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def grown(device: str, run: Callable[[], None]) -> float:
    """Return by how many MiB `run` raises the peak: of the device's memory, or of the process's (Linux)."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed and the allocator kept
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident

    def peak() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    held = peak()
    run()
    return (peak() - held) / 1024


def errors(score: Callable[[Any, Any, Any], Any], hidden: Any, weight: Any, target: Any) -> dict[str, float]:
    """Return errors against float64: of the summed log-prob, a token, and of the gradient, relative (norms)."""
    import torch

    leaf = hidden.clone().requires_grad_()
    found = score(leaf, weight, target).sum()
    found.backward()
    exact = hidden.double().requires_grad_()
    # In parts, so that no (V, H) in float64 is made.
    lse = [torch.logsumexp(exact @ part.double().T, 1) for part in weight.split(16384)]
    total = ((exact * weight[target].double()).sum(1) - torch.logsumexp(torch.stack(lse), 0)).sum()
    total.backward()
    return {
        "logprob": abs(float(found.detach()) - float(total.detach())) / hidden.shape[0],
        "gradient": float((leaf.grad.double() - exact.grad).norm() / exact.grad.norm()),
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


# ---- the whole ----


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", metavar="N,H,V", help=f"repeatable; default {' and '.join(SHAPES)}")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="append", choices=tuple(CONTENDERS), help="repeatable; default: all")
    parser.add_argument("--plot", default="", metavar="FILE", help="write a figure there")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def spawn(job: Job) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(asdict(job))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def absent(name: str, device: str) -> str:
    """Return why a contender does not run here; empty when it does."""
    _, package, cuda_only = CONTENDERS[name]
    if importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    return "it runs on CUDA only" if cuda_only and device != "cuda" else ""


def show(name: str, result: dict[str, Any]) -> None:
    if reason := result.get("absent") or result.get("failed"):
        print(f"  {name:28} -: {reason}", flush=True)
        return
    alone, written, gradient = (result["ratio"][k] for k in ("alone", "alone_as_written", "with_gradient"))
    memory, error = result["memory_mib"], result["error"]
    print(
        f"  {name:28} {alone['median']:5.2f} ({alone['min']:.2f} .. {alone['max']:.2f}) {memory['alone']:6.0f} MiB, "
        f"{written['median']:5.2f} of `hidden @ weight.T`   "
        f"{gradient['median']:5.2f} ({gradient['min']:.2f} .. {gradient['max']:.2f}) {memory['with_gradient']:6.0f} MiB"
        f"   error {error['logprob']:.1e} nats, gradient {error['gradient']:.1e}",
        flush=True,
    )


def plot(results: dict[str, dict[str, Any]], file: str, device: str) -> None:
    """Draw the ratios to the bare products, a panel a shape."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in CONTENDERS if any("ratio" in rows.get(name, {}) for rows in results.values())]
    figure, axes = plt.subplots(1, len(results), figsize=(5.2 * len(results), 3.4), sharey=True, squeeze=False)
    bars = ((-0.2, "alone", "scores alone", "#9db8d2"), (0.2, "with_gradient", "scores and gradient", "#2f5d8a"))
    for axis, (shape, rows) in zip(axes[0], results.items(), strict=True):
        ran = [(place, rows[name]["ratio"]) for place, name in enumerate(names) if "ratio" in rows[name]]
        for offset, key, label, colour in bars:
            values = [ratio[key]["median"] for _, ratio in ran]
            drawn = axis.barh([p + offset for p, _ in ran], values, height=0.36, label=label, color=colour)
            axis.bar_label(drawn, fmt="%.2f", padding=2, fontsize=8)
        axis.axvline(1, color="#666", linewidth=0.8)
        axis.set_title("N {}, H {}, V {:,}".format(*map(int, shape.split(","))), fontsize=9)
        axis.set_xlabel("time / time of the bare matrix products")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    axes[0][0].legend(frameon=False, fontsize=8, loc="upper right")
    figure.suptitle(f"Log-probs on {device}", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    options = parse(arguments)
    if options.child:
        print(json.dumps(measure(Job(**json.loads(options.child)))))
        return 0
    import torch

    cuda = torch.cuda.is_available()
    device = ("cuda" if cuda else "cpu") if options.device == "auto" else options.device
    where = torch.cuda.get_device_name() if device == "cuda" else f"a CPU with {options.threads} threads"
    results: dict[str, dict[str, Any]] = {}
    for shape in options.shape or SHAPES:
        tokens, hidden, vocabulary = map(int, shape.split(","))
        print(f"N {tokens}, H {hidden}, V {vocabulary}, {options.dtype} on {where}: scores alone, scores and gradient")
        rows = results[shape] = {}
        for name in options.only or CONTENDERS:
            reason = absent(name, device)
            job = Job(name, tokens, hidden, vocabulary, options.dtype, device, options.repeats, options.threads)
            rows[name] = {"absent": reason} if reason else spawn(job)
            show(name, rows[name])
    if options.plot:
        plot(results, options.plot, where)
    settings = {k: v for k, v in vars(options).items() if k != "child"}
    print(json.dumps({"benchmark": "kernels", "device": where, "results": results, "settings": settings,
                      "torch": torch.__version__, "python": platform.python_version()}))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
