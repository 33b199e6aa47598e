"""The fused linear log-prob never holds more than a tile of logits, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from prefopt.kernels import sequence_logprobs
train_hidden, train_weight = sys.argv[1] == "True", sys.argv[2] == "True"
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
torch.manual_seed(0)
N, H, V = int(sys.argv[3]), 640, 262_144
hidden = torch.randn(N, H).bfloat16().requires_grad_(train_hidden)
weight = torch.empty(V, H, dtype=torch.bfloat16)
for part in weight.split(4096):
    part.copy_(torch.rand(640) * 0.04)
weight.requires_grad_(train_weight)
target = torch.randint(0, V, (N,))
segment = torch.arange(N) // 64
# Products once before, for what the vendor's library keeps.
torch.mm(hidden.detach()[:64], weight.detach()[:4096].T)
before = peak()
out = sequence_logprobs(hidden, weight, target, segment, N // 64)
if out.requires_grad:
    out.sum().backward()
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("train_hidden", "train_weight", "tokens", "limit"),
    # Fewer tokens with gradients, to save time; a head in training gets a gradient of its own size, 320 MiB.
    [(False, False, 4096, 150), (True, False, 512, 150), (True, True, 256, 320 + 100)],
    ids=["scoring", "frozen head", "trained head"],
)
def test_scoring_thousands_of_tokens_over_a_large_vocabulary_takes_little_memory(
    train_hidden, train_weight, tokens, limit
):
    pytest.importorskip("resource", reason="the peak of a process can't be read here")
    command = [sys.executable, "-c", SCRIPT, str(train_hidden), str(train_weight), str(tokens)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stderr
    grown = float(run.stdout)  # MiB; the full logits of 4,096 tokens are 2,048 MiB in bfloat16, of 256 tokens 128 MiB
    print(f"{grown:.0f} MiB")
    assert grown < limit
