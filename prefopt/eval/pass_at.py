"""How probably one of k samples is right."""

from __future__ import annotations

import math


def pass_at_k(n: int, right: int, k: int) -> float | None:
    """Return the probability that one of k samples is right, without bias, from n >= k of which `right` are.

    1 - C(n - c, k) / C(n, k), Eq. 1 of arXiv:2107.03374; None where there are fewer than k.
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k) if n >= k else None
