"""How full packs are: packs a step beside the fewest that any packing needs, and work done beside work asked for.

    python benchmarks/packs.py

Pairs with log-normal lengths like UltraFeedback's: prompts of 180 tokens, completions of 300 (means). Groups are whole,
so that tokens / budget, rounded up, can't always be reached: `fewest` is what an exact search proves to be needed.

Three things are padded where a CPU computes in 16 bits. The row of a pack, in which a completion's last token has no
place, is rounded up for the products with weights (`rows`). Attention cuts it into strips that are batched to blocks:
`queries` are the strips' rows with padding beside the tokens, and `scores` the entries of the blocks beside those that
a token may look at. `all` weighs products and scores by their multiplications in a model of SmolLM2-135M's shape,
forward: what a token costs beside what it would cost without any padding; of the first seed alone. On a GPU rows are
not rounded up.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prefopt.data import Part, plan_packs
from prefopt.data.bins import few_bins
from prefopt.kernels.attention_plan import build_plan
from prefopt.kernels.shapes import rounded
from prefopt.records import Group, Layout

PROMPT, COMPLETION = (180, 0.9), (300, 0.7)
"""Mean, and standard deviation of the logarithm."""
LONGEST = 1000
SEEDS, STEPS = 5, 20
HEADS, KV_HEADS, HEAD, LAYERS, WEIGHTS = 9, 3, 64, 30, 106_200_000
"""SmolLM2-135M's: heads, the numbers of one, layers, and weights in them, each multiplied once a token."""


@dataclass
class Work:
    """What packs hold and what is computed of them."""

    packs: int = 0
    fewest: int = 0
    floor: int = 0
    """Tokens divided by the budget, rounded up, of each step."""
    over: int = 0
    """Steps with more than 1.1 times `floor` packs."""
    unreachable: int = 0
    """Those of them in which no packing takes fewer."""
    tokens: int = 0
    rows: int = 0
    queries: int = 0
    allowed: int = 0
    scores: int = 0

    @property
    def all(self) -> float:
        """Multiplications beside those without padding."""
        score = 2 * HEADS * HEAD * LAYERS
        return (self.rows * WEIGHTS + self.scores * score) / (self.tokens * WEIGHTS + self.allowed * score)


def lengths(draw: random.Random, of: tuple[float, float]) -> int:
    mean, sigma = of
    return min(LONGEST, max(1, int(draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))))


def step(draw: random.Random, pairs: int) -> list[Group]:
    return [
        Group(
            (0,) * lengths(draw, PROMPT),
            ((1,) * lengths(draw, COMPLETION), (2,) * lengths(draw, COMPLETION)),
            pairs=((0, 1),),
        )
        for _ in range(pairs)
    ]


def add_pack(work: Work, pack: Sequence[Part]) -> None:
    """Count the tokens and scores of a pack, and what a CPU makes of them in 16 bits."""
    groups = (part.group for part in pack)
    layout = Layout.of((len(g.prompt), tuple(map(len, g.completions))) for g in groups).without_ends()
    plan = build_plan(
        layout,
        heads=HEADS,
        kv_heads=KV_HEADS,
        window=None,
        sinks=False,
        device=torch.device("cpu"),
        dtype=torch.bfloat16,
    )
    work.tokens += layout.tokens
    work.allowed += layout.attended()
    work.rows += rounded(layout.tokens)
    work.queries += plan.query_rows.numel() // HEADS
    work.scores += plan.scores // HEADS


def measure(pairs: int, budget: int, *, seeds: int = SEEDS, steps: int = STEPS) -> Work:
    """Pack `steps` steps of each seed, and cut those of the first into blocks."""
    work = Work()
    for seed in range(seeds):
        draw = random.Random(seed)
        for _ in range(steps):
            groups = step(draw, pairs)
            plan = plan_packs(groups, token_budget=budget, shared=True)
            sizes = [part.group.tokens for pack in plan for part in pack]
            floor, fewest = -(-sum(sizes) // budget), few_bins(sizes, budget).fewest
            work.packs += len(plan)
            work.fewest += fewest
            work.floor += floor
            if len(plan) > 1.1 * floor:
                work.over += 1
                work.unreachable += len(plan) == fewest
            if seed == 0:
                for pack in plan:
                    add_pack(work, pack)
    return work


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[16, 32, 64, 128], help="pairs a step")
    parser.add_argument("--budgets", type=int, nargs="+", default=[2048, 3000, 4096, 8192, 16384])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each seed")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    print("                packs a step beside        over 1.1 floors   computed / asked for")
    print("pairs  budget   floor  fewest possible     (can't be fewer)    rows  queries  scores    all")
    for pairs in options.pairs:
        for budget in options.budgets:
            work = measure(pairs, budget, seeds=options.seeds, steps=options.steps)
            steps = options.seeds * options.steps
            print(
                f"{pairs:5}  {budget:6}  {work.packs / work.floor:6.3f}  {work.packs / work.fewest:15.3f}"
                f"  {work.over:6} of {steps} ({work.unreachable:4})  {work.rows / work.tokens:6.3f}"
                f"  {work.queries / work.tokens:7.3f}  {work.scores / work.allowed:6.3f}  {work.all:5.3f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
