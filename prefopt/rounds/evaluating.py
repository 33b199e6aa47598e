"""The stage that evaluates: what a round's policy does on held-out prompts, and whether to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.rounds.config import StopSection
from prefopt.rounds.files import content_hash, read_json, write_text
from prefopt.rounds.measures import drift, measure
from prefopt.rounds.run import START, Plan, Run
from prefopt.rounds.sampling import EVAL_ROLLOUTS
from prefopt.rounds.scoring import EVAL_SCORES, pairs_of
from prefopt.rounds.stage import Manifest, Stage
from prefopt.rounds.tables import read_scores
from prefopt.sampling import read_rollouts

METRICS = "metrics.json"


def plan_evaluation(run: Run, number: int) -> Plan:
    """Measure what a round's policy answered to held-out prompts."""
    inputs = {
        "rollouts": run.made[number, "eval-sample"].content(EVAL_ROLLOUTS),
        "scores": run.made[number, "eval-score"].content(EVAL_SCORES),
    }
    if number != START:
        inputs["start"] = run.made[START, "evaluate"].content(METRICS)
    stage = Stage("evaluate", run.round_folder(number), inputs, {"eval": run.recipe.eval.model_dump(mode="json")})
    return Plan(stage, lambda: run.ranks.of_main(lambda: _evaluate(run, stage, number)))


def metrics_of(run: Run, number: int) -> Mapping[str, Any]:
    """Return the measures of a round that is evaluated."""
    return read_json(run.round_folder(number) / METRICS)


def _evaluate(run: Run, stage: Stage, number: int) -> Manifest:
    scored = pairs_of(read_rollouts(stage.folder / EVAL_ROLLOUTS), read_scores(stage.folder / EVAL_SCORES))
    found = measure(scored, run.recipe.eval)
    if number != START:
        found["drift"] = drift(found, dict(metrics_of(run, START)))
    write_text(stage.folder / METRICS, json.dumps(found, indent=1))
    return stage.commit({METRICS: content_hash([found])}, {})


def why_stop(rules: StopSection, measured: Sequence[Mapping[str, Any]], tokens: int) -> str | None:
    """Return why a run ends before its last round, in words; None where it goes on.

    Args:
        rules: the recipe's.
        measured: of the start and then of every round so far.
        tokens: sampled to learn from, so far.
    """
    if rules.tokens is not None and tokens >= rules.tokens:
        return f"{tokens:,} tokens were sampled, and rounds.stop.tokens is {rules.tokens:,}"
    kl = (measured[-1]["kl"] or {}).get("value")
    if rules.kl is not None and kl is not None and kl > rules.kl:
        return f"KL to the first reference is {kl:.3g} nats a completion, above rounds.stop.kl {rules.kl:g}"
    rewards = [one["reward"]["value"] for one in measured if one["reward"]]
    if rules.no_gain is not None and len(rewards) > rules.no_gain:
        best = max(rewards[: -rules.no_gain])
        if max(rewards[-rules.no_gain :]) <= best:
            return (
                f"the held-out reward has not been above {best:.4g} for {rules.no_gain} "
                f"round{'s' if rules.no_gain > 1 else ''} (rounds.stop.no_gain)"
            )
    return None
