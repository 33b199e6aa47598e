"""Compare scoring policy and reference in one sweep over the head's weight with scoring them one after the other.

    python benchmarks/one_sweep.py
    python benchmarks/one_sweep.py --hidden 640 --vocab 262144 --tokens 128 --tokens 512

Both compute the policy's gradient. The two take turns in one process; a line gives the median (least .. most) of the
time in one sweep over the mean of the two runs around it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable

import torch
from logprobs import seconds

from prefopt.kernels import policy_reference_logprobs, sequence_logprobs


def contenders(tokens: int, hidden: int, vocabulary: int, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return (in one sweep, one after the other)."""
    draw = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(tokens, hidden, generator=draw).to(device, torch.bfloat16) for _ in range(2))
    weight = (torch.randn(vocabulary, hidden, generator=draw) * 0.08).to(device, torch.bfloat16)
    target = torch.randint(0, vocabulary, (tokens,), generator=draw).to(device)
    segment = torch.zeros_like(target)
    policy.requires_grad_()

    def together() -> None:
        policy_reference_logprobs(policy, reference, weight, target, segment, 1).policy.sum().backward()

    def apart() -> None:
        with torch.no_grad():
            sequence_logprobs(reference, weight, target, segment, 1)
        sequence_logprobs(policy, weight, target, segment, 1).sum().backward()

    return together, apart


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, action="append", help="repeatable; default 64, 256, 512, 1024 and 2048")
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {}
    print(f"H {options.hidden}, V {options.vocab}, bfloat16 on {device}: time in one sweep over time apart")
    for tokens in options.tokens or (64, 256, 512, 1024, 2048):
        together, apart = contenders(tokens, options.hidden, options.vocab, device)
        together(), apart()
        ratios = []
        for _ in range(options.repeats):
            before, taken, after = (seconds(run, device) for run in (apart, together, apart))
            ratios.append(taken / ((before + after) / 2))
        found[tokens] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        print(f"  N {tokens:5}  {found[tokens]['median']:.2f} ({min(ratios):.2f} .. {max(ratios):.2f})", flush=True)
    print(json.dumps({"benchmark": "one_sweep", "device": device, "results": found, "settings": vars(options)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
