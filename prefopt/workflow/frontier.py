"""Finished runs -> the reward-KL frontier: every point sampled once, kept by what it is made of, drawn together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import RunError
from prefopt.eval.frontier import Frontier, FrontierPoint, mark_dominating
from prefopt.eval.kl import clustered_mean, sequence_kl
from prefopt.rewards import Reward, RewardConfig, build_scorer, reward_identity
from prefopt.sampling import Prompt
from prefopt.train.callbacks import replace_text
from prefopt.workflow.directory import each_once, keep_evaluation, write_json
from prefopt.workflow.frontier_figure import draw_frontier
from prefopt.workflow.generations import SamplingOptions, check_columns, draw, read_reward, run_prompts, score
from prefopt.workflow.weights import (
    Weights,
    divergence_from,
    load_weights,
    reference_hash,
    start_of,
    weights_hash,
    weights_of_run,
)

POINTS = "frontier_points"
"""The folder beside frontier.json that holds what every point's samples are, a file a point."""


@dataclass(frozen=True, kw_only=True)
class FrontierOptions(SamplingOptions):
    """What is sampled of every point, and what points there are."""

    checkpoints: bool = False
    """Also the checkpoints of training runs; rounds are points always."""


def frontier_of_runs(
    runs: Sequence[Path],
    *,
    scorer: str | None = None,
    reward: Path | None = None,
    prompts: str | Sequence[str] | None = None,
    column: str | None = None,
    limit: int | None = None,
    out: Path | None = None,
    options: FrontierOptions | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Frontier:
    """Measure reward and sequence KL of runs on the same prompts, and write frontier.json, .csv, .png and .svg.

    The model that all began with is a point too. A point that was measured before from the same weights, prompts,
    scorer and settings is read, not sampled again.

    Args:
        runs: directories of `prefopt train` or `prefopt rounds`; one that is named twice counts once.
        scorer: a kind of scorer; see `read_reward`.
        reward: a YAML file with a score section instead.
        prompts: what to sample from instead of what the first run holds out.
        column: which column of it holds the prompt.
        limit: the first of them.
        out: the folder to write to; None is the first run's `eval`.
        options: what is sampled.
        say: is told what is being done, a line a point.

    Raises:
        RunError: a directory is no run or has no weights, or runs began with different models.
        RecipeError: the scorer is not said, or wrong; no prompts.
        DataError: prompts that can't be read or lack a column that the scorer needs.
    """
    options = options or FrontierOptions()
    runs = each_once(runs)
    config = read_reward(scorer, reward, runs)
    identity = reward_identity(config)
    found = [weights for run in runs for weights in weights_of_run(run, every_checkpoint=options.checkpoints)]
    base = _shared_reference(found)
    asked = run_prompts(runs[0], None, source=prompts, column=column, limit=limit)
    check_columns(asked, config, prompts or runs[0])
    folder = out or runs[0] / "eval"
    built: Reward | None = None
    points = []
    for weights in [start_of(found[0]), *found]:
        key = _key(weights, base, asked, identity, options)
        kept = folder / POINTS / f"{key}.json"
        rows = _read(kept)
        if rows is None:
            say(f"{weights.label}: sampling {len(asked)} prompts x {options.samples_per_prompt}")
            built = built or build_scorer(config)
            rows = _measure(weights, asked, config, built, options)
            write_json(kept, rows)
        else:
            say(f"{weights.label}: measured before")
        points.append(_point(weights, rows, options.resamples))
    made = Frontier(
        mark_dominating(points),
        scorer=", ".join(config.scorers),
        prompts=len(asked),
        samples_per_prompt=options.samples_per_prompt,
        max_new_tokens=options.max_new_tokens,
    )
    _write(made, folder, say)
    return made


def _shared_reference(found: Sequence[Weights]) -> str:
    """Return the hash of what all runs began with. Raises `RunError` when two differ."""
    seen: dict[str, str] = {}
    known: dict[str, str] = {}
    for weights in found:
        said = json.dumps([weights.model.model_dump(mode="json"), weights.reference.model_dump(mode="json")])
        if said not in known:
            known[said] = reference_hash(weights)
        seen.setdefault(known[said], weights.label)
    if len(seen) > 1:
        first, second, *_ = seen.values()
        raise RunError(
            f"{first} and {second} have different references (base weights, starting adapter or quantization), so "
            "their divergences can't stand in one figure; compare runs that began with the same model."
        )
    return next(iter(seen))


def _key(weights: Weights, base: str, prompts: Sequence[Prompt], reward: str, options: FrontierOptions) -> str:
    """Return what a point is a function of, as 32 hexadecimal digits; batch size and token budget only round."""
    model = weights.model.model_dump(mode="json", exclude={"name", "device", "adapter"})
    parts = [
        base, None if weights.folder is None else weights_hash(weights.folder), model, weights.seed,
        [prompt.prompt_id for prompt in prompts], reward, options.samples_per_prompt, options.max_new_tokens,
        options.seed,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _measure(
    weights: Weights, prompts: Sequence[Prompt], config: RewardConfig, reward: Reward, options: FrontierOptions
) -> list[dict[str, Any]]:
    loaded = load_weights(weights, divergence_from(weights.reference))
    assert loaded.reference is not None  # one was asked for
    drawn = draw(loaded, loaded.reference, prompts, options)
    rows = []
    for one in score(drawn, prompts, config, reward, loaded.tokenizer):
        rollout = one.rollout
        assert rollout.reference is not None  # `draw` gives it
        rows.append(
            {
                "prompt_id": rollout.prompt_id,
                "sample": rollout.sample,
                "text": rollout.text,
                "tokens": len(rollout.token_ids),
                "finish": rollout.finish,
                "kl": one.kl,
                "log_ratio": rollout.policy - rollout.reference,
                "score": one.score,
                "failure": one.failure,
            }
        )
    return rows


def _read(path: Path) -> list[dict[str, Any]] | None:
    """Return what a point's file holds; None where there is none, or none that can be read."""
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return rows if isinstance(rows, list) and rows else None


def _point(weights: Weights, rows: Sequence[dict[str, Any]], resamples: int) -> FrontierPoint:
    prompts = [row["prompt_id"] for row in rows]
    scores = [float("nan") if row["score"] is None else row["score"] for row in rows]
    moved = sequence_kl(
        [row["kl"] for row in rows],
        [row["log_ratio"] for row in rows],
        prompts,
        length=[row["tokens"] for row in rows],
        truncated=[row["finish"] == "length" for row in rows],
        resamples=resamples,
    )
    return FrontierPoint.of(
        clustered_mean(scores, prompts, resamples=resamples),
        moved,
        label=weights.label,
        run=str(weights.run),
        step=weights.step,
        loss=weights.loss,
        beta=weights.beta,
        failed=sum(row["score"] is None for row in rows),
    )


def _write(made: Frontier, folder: Path, say: Callable[[str], object]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw_frontier(made, folder)
        replace_text(folder / "frontier.csv", made.to_csv())
    except OSError as error:
        raise RunError(f"{folder} can't be written: {error.strerror}; name another folder by --out.") from error
    keep_evaluation(folder / "frontier.json", "frontier", made.to_dict(), say)
