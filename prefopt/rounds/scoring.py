"""The stage that scores: every rollout gets a number or the reason why it has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from prefopt.rewards import Reward, ScoreFailure, build_scorer, make_attempt, opens_thinking
from prefopt.rewards.config import RewardConfig
from prefopt.rounds.config import VERIFIERS
from prefopt.rounds.run import Plan, Run
from prefopt.rounds.sampling import EVAL_ROLLOUTS, ROLLOUTS, shards_of
from prefopt.rounds.stage import Manifest, Stage
from prefopt.rounds.tables import ScoreRow, finite_mean, read_scores, rows_hash, write_scores
from prefopt.sampling import Prompt, Rollout, read_rollouts

SCORES, EVAL_SCORES = "scores.parquet", "eval-scores.parquet"
_RIGHT = 1.0


def plan_scoring(run: Run, number: int) -> Plan:
    """Score what a round sampled to learn from."""
    return plan_scores(run, number, "score", run.made[number, "sample"], ROLLOUTS, SCORES, run.round_prompts(number))


def plan_eval_scoring(run: Run, number: int) -> Plan:
    """Score what a round sampled of held-out prompts."""
    sampled = run.made[number, "eval-sample"]
    return plan_scores(run, number, "eval-score", sampled, EVAL_ROLLOUTS, EVAL_SCORES, run.prompts[1])


def plan_scores(
    run: Run, number: int, name: str, sampled: Manifest, rollouts: str, output: str, prompts: Sequence[Prompt]
) -> Plan:
    """Return the stage that scores one file of rollouts, of these prompts."""
    # Prompts are no input of their own: what was sampled names them by content.
    stage = Stage(name, run.round_folder(number), {"rollouts": sampled.content(rollouts)}, run.scoring)

    def make() -> Manifest | None:
        return run.ranks.of_main(lambda: _score(run, stage, prompts, rollouts, output))

    return Plan(stage, make, lambda: [shards_of(stage)])


def _score(run: Run, stage: Stage, prompts: Sequence[Prompt], rollouts: str, output: str) -> Manifest:
    """Score shard by shard: what a scorer said before a kill is not asked again."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    found = read_rollouts(stage.folder / rollouts)
    prompt_ids = list(dict.fromkeys(rollout.prompt_id for rollout in found))
    size = run.recipe.rounds.shard
    shard_of = {prompt_id: at // size for at, prompt_id in enumerate(prompt_ids)}
    folder = shards_of(stage)
    reward: Reward | None = None
    rows: list[ScoreRow] = []
    for shard, group in groupby(found, key=lambda rollout: shard_of[rollout.prompt_id]):
        part = Stage(f"{shard:05d}", folder, {"of": stage.key}, {"size": size})
        path = folder / f"{shard:05d}.parquet"
        if part.done() is None:
            # What a judge spent lies beside the shards: of this very scoring, and gone once that is done.
            reward = reward or build_scorer(run.recipe.score, folder / stage.key)
            scored = _scored(run, reward, by_id, list(group))
            write_scores(path, scored)
            part.commit({path.name: rows_hash(scored)}, {})
        rows += read_scores(path)
    write_scores(stage.folder / output, rows)
    spent = {} if reward is None else reward.spent
    return stage.commit({output: rows_hash(rows)}, counts_of(rows) | ({"spent": spent} if spent else {}))


def _scored(run: Run, reward: Reward, prompts: dict[str, Prompt], rollouts: Sequence[Rollout]) -> list[ScoreRow]:
    config = run.recipe.score
    thinking = config.thinking
    attempts = []
    opens: dict[str, bool] = {}  # whether what the template writes of a prompt opens its answer's thinking
    for rollout in rollouts:
        prompt = prompts[rollout.prompt_id]
        if thinking is not None and prompt.prompt_id not in opens:
            opens[prompt.prompt_id] = opens_thinking(run.tokenizer.decode(list(rollout.prompt_ids)), thinking.open)
        opened = opens.get(prompt.prompt_id, False)
        attempts.append(
            make_attempt(prompt.prompt, rollout.text, row=prompt.row, thinking=thinking, opened=opened, rollout=rollout)
        )
    totals, parts = reward.score_parts(attempts)
    rows = []
    for at, (rollout, attempt, total) in enumerate(zip(rollouts, attempts, totals, strict=True)):
        score, failure = (None, total.reason) if isinstance(total, ScoreFailure) else (float(total), None)
        said = {name: scores[at] for name, scores in parts.items()}
        correct = _correct(config, run.recipe.eval.correct, score, said)
        rows.append(ScoreRow(rollout.prompt_id, rollout.sample, score, correct, attempt.broken, failure))
    return rows


def _correct(config: RewardConfig, lowest: float | None, score: float | None, parts: dict[str, Any]) -> bool | None:
    """Return whether an answer is right: by its score, or because all verifiers say so; None where nothing says it."""
    if lowest is not None:
        return score is not None and score >= lowest
    verifiers = [name for name, part in config.scorers.items() if part.kind in VERIFIERS]
    if not verifiers:
        return None
    return all(isinstance(parts[name], float | int) and parts[name] >= _RIGHT for name in verifiers)


def counts_of(rows: Sequence[ScoreRow]) -> dict[str, Any]:
    """Return what to tell people of scores."""
    said = Counter(row.failure for row in rows if row.failure is not None)
    correct = [float(row.correct) for row in rows if row.correct is not None]
    return {
        "scored": sum(row.score is not None for row in rows),
        "failed": sum(said.values()),
        "failures": dict(said.most_common(3)),
        "reward": finite_mean(row.score for row in rows),
        "correct": finite_mean(correct),
        "broken": sum(row.broken for row in rows),
    }


def pairs_of(rollouts: Sequence[Rollout], rows: Sequence[ScoreRow]) -> list[tuple[Rollout, ScoreRow]]:
    """Return each rollout with what it was given."""
    scores = {(row.prompt_id, row.sample): row for row in rows}
    return [(rollout, scores[rollout.prompt_id, rollout.sample]) for rollout in rollouts]
