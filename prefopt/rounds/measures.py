"""What a round is measured by on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from prefopt.eval.intervals import mean
from prefopt.eval.pass_at import pass_at_k
from prefopt.eval.text import distinct, duplicates
from prefopt.rounds.config import RoundsEvalConfig
from prefopt.rounds.tables import ScoreRow
from prefopt.sampling import Rollout

Scored = tuple[Rollout, ScoreRow]
_GRAMS = (1, 2)


def measure(scored: Sequence[Scored], config: RoundsEvalConfig) -> dict[str, Any]:
    """Return the measures of a policy from samples of held-out prompts; JSON-able.

    Every mean is one over prompts of the mean of each, and its 95 % interval is bootstrapped over prompts: samples of
    one prompt are not independent. A completion without a score counts as wrong, and for the reward not at all.
    """
    prompts = [list(group) for _, group in groupby(scored, key=lambda pair: pair[0].prompt_id)]

    def over_prompts(value: Callable[[list[Scored]], float | None]) -> dict[str, Any] | None:
        values = [found for prompt in prompts if (found := value(prompt)) is not None]
        return mean(values, resamples=config.resamples).to_dict() if values else None

    rollouts = [rollout for rollout, _ in scored]
    tokens = [rollout.token_ids for rollout in rollouts]
    known = any(row.correct is not None for _, row in scored)
    k = config.k or config.n
    total = len(scored)
    return {
        "prompts": len(prompts),
        "completions": total,
        "reward": over_prompts(lambda prompt: _mean(row.score for _, row in prompt)),
        "pass@1": over_prompts(lambda prompt: pass_at(1, prompt)) if known else None,
        "k": k,
        "pass@k": over_prompts(lambda prompt: pass_at(k, prompt)) if known else None,
        "kl": over_prompts(lambda prompt: _mean(map(_log_ratio, prompt))) if config.temperature == 1 else None,
        "kl_per_token": _per_token(scored) if config.temperature == 1 else None,
        "length": over_prompts(lambda prompt: _mean(float(len(rollout.token_ids)) for rollout, _ in prompt)),
        "ended": sum(rollout.finish == "end" for rollout in rollouts) / total,
        "broken": sum(row.broken for _, row in scored) / total,
        "failed": sum(row.score is None for _, row in scored) / total,
        **{f"distinct_{n}": distinct(tokens, n) for n in _GRAMS},
        "duplicates": duplicates([rollout.prompt_id for rollout in rollouts], tokens),
    }


def drift(now: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """Return how far length, format and diversity have moved since the start: signs that a reward is being gamed."""
    lengths = [measured["length"] and measured["length"]["value"] for measured in (now, start)]
    return {
        "length": lengths[0] / lengths[1] if all(lengths) else None,
        **{name: now[name] - start[name] for name in ("ended", "broken", "failed", "duplicates")},
        **{f"distinct_{n}": now[f"distinct_{n}"] - start[f"distinct_{n}"] for n in _GRAMS},
    }


def pass_at(k: int, prompt: Sequence[Scored]) -> float | None:
    """Return `pass_at_k` of a prompt's samples."""
    return pass_at_k(len(prompt), sum(bool(row.correct) for _, row in prompt), k)


def _log_ratio(pair: Scored) -> float | None:
    rollout = pair[0]
    return None if rollout.reference is None else rollout.policy - rollout.reference


def _per_token(scored: Sequence[Scored]) -> float | None:
    ratios = [ratio for pair in scored if (ratio := _log_ratio(pair)) is not None]
    tokens = sum(len(rollout.token_ids) for rollout, _ in scored if rollout.reference is not None)
    return math.fsum(ratios) / tokens if tokens else None


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None
