"""How full packs are: packs a step beside the fewest possible, and tokens computed beside tokens given.

    python benchmarks/packs.py

Pairs with log-normal lengths like UltraFeedback's: prompts of 180 tokens, completions of 300 (means). Computed is what
a CPU computes in 16 bits, where the length of a pack is rounded up.
"""

from __future__ import annotations

import math
import random

from prefopt.data import plan_packs
from prefopt.kernels.shapes import rounded
from prefopt.records import Group

PROMPT, COMPLETION = (180, 0.9), (300, 0.7)
"""Mean, and standard deviation of the logarithm."""
LONGEST = 1000
SEEDS, STEPS = 5, 20


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


def measure(pairs: int, budget: int) -> tuple[float, float, int]:
    """Return the worst seed's packs / fewest and computed / given, and the steps over 1.1 times the fewest packs."""
    packs_share, computed_share, over = 0.0, 0.0, 0
    for seed in range(SEEDS):
        draw = random.Random(seed)
        packs = fewest = computed = given = 0
        for _ in range(STEPS):
            groups = step(draw, pairs)
            plan = plan_packs(groups, token_budget=budget, shared=True)
            own = sum(group.tokens for group in groups)
            computed += sum(rounded(sum(part.group.tokens for part in pack)) for pack in plan)
            given += own
            packs += len(plan)
            fewest += -(-own // budget)
            over += len(plan) > 1.1 * -(-own // budget)
        packs_share, computed_share = max(packs_share, packs / fewest), max(computed_share, computed / given)
    return packs_share, computed_share, over


if __name__ == "__main__":
    print("pairs a step  budget  packs / fewest  computed / given  steps over 1.1")
    for pairs in (16, 32, 64, 128):
        for budget in (2048, 3000, 4096, 8192, 16384):
            packs, computed, over = measure(pairs, budget)
            print(f"{pairs:12}  {budget:6}  {packs:14.3f}  {computed:16.3f}  {over:7} / {SEEDS * STEPS}")
