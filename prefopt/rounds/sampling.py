"""The stage that samples: shards of prompts, each the same bits whoever makes it, joined to one file.

Which process makes which shard is a function of the shard's number alone, and not of claims on files: nothing is left
to clear away after a kill, and what a process did is known without asking it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.rounds.engines import open_engine
from prefopt.rounds.files import bytes_hash
from prefopt.rounds.run import START, Plan, Run, prompts_hash
from prefopt.rounds.stage import Manifest, Stage
from prefopt.rounds.tables import finite_mean, rollouts_hash
from prefopt.sampling import Prompt, Rollout, SampleConfig, read_rollouts, write_rollouts

ROLLOUTS, EVAL_ROLLOUTS, HINT_ROLLOUTS = "rollouts.parquet", "eval-rollouts.parquet", "hint-rollouts.parquet"

Asked = Callable[[], Mapping[str, tuple[int, ...]]]
"""Gives by prompt id the token ids that completions are to follow, where that is not what was asked."""


def plan_sampling(run: Run, number: int) -> Plan:
    """Sample what a round learns from, from what the round before trained."""
    prompts, sample = run.round_prompts(number), run.recipe.sample
    return plan_shards(run, number, "sample", prompts, sample, policy=number - 1, output=ROLLOUTS)


def plan_eval_sampling(run: Run, number: int) -> Plan:
    """Sample the held-out prompts from what a round trained."""
    options, sample = run.recipe.eval, run.recipe.sample
    # Of the policy itself: what cuts its distribution is a means of learning.
    changes: dict[str, Any] = {"n": options.n, "temperature": options.temperature, "top_p": 1.0, "top_k": 0}
    if sample.engine == "file":  # which holds other prompts
        changes |= {"engine": "hf", "path": None}
    sample = sample.model_copy(update=changes)
    return plan_shards(run, number, "eval-sample", run.prompts[1], sample, policy=number, output=EVAL_ROLLOUTS)


def plan_shards(
    run: Run,
    number: int,
    name: str,
    prompts: list[Prompt],
    sample: SampleConfig,
    *,
    policy: int,
    output: str,
    hint: Mapping[str, Any] | None = None,
    asked: Asked | None = None,
) -> Plan:
    """Return the stage that samples some prompts.

    Args:
        run: the run.
        number: of the round whose stage it is.
        name: of the stage.
        prompts: what is answered.
        sample: how.
        policy: the round whose policy answers.
        output: the file that it writes.
        hint: what makes these prompts others than those that their ids name.
        asked: the prompts that the completions are kept behind in that case.
    """
    stage = Stage(
        name,
        run.round_folder(number),
        inputs={
            "model": run.model_hash,
            "policy": run.weights_hash(policy),
            "prompts": prompts_hash(prompts),
            **({"file": bytes_hash(Path(sample.path))} if sample.path else {}),
        },
        parameters={
            "sample": sample.model_dump(mode="json"),
            "reference": run.recipe.reference.model_dump(mode="json", exclude={"cache", "cache_dir", "device"}),
            "round": number,
            "shard": run.recipe.rounds.shard,  # which prompts are computed together decides the last bits
            **({"hint": dict(hint), "samples before": run.recipe.sample.n} if hint else {}),
        },
        seed=run.recipe.rounds.seed,
    )
    return Plan(
        stage,
        lambda: _sample(run, stage, prompts, sample, run.weights(policy), output, asked),
        lambda: [shards_of(stage)],
    )


def shards_of(stage: Stage) -> Path:
    """Return where a stage keeps its shards until they are joined."""
    return stage.folder / f".{stage.name}-shards"


def _sample(
    run: Run,
    stage: Stage,
    prompts: Sequence[Prompt],
    sample: SampleConfig,
    policy: Path | None,
    output: str,
    asked: Asked | None,
) -> Manifest | None:
    size = run.recipe.rounds.shard
    shards = [prompts[at : at + size] for at in range(0, len(prompts), size)]
    folder = shards_of(stage)
    parts = [
        Stage(f"{number:05d}", folder, {"of": stage.key}, {"shards": len(shards)}, _seed(stage, number))
        for number in range(len(shards))
    ]
    mine = range(run.ranks.rank, len(shards), run.ranks.size)
    missing = [number for number in mine if parts[number].done() is None]
    if missing:
        engine = open_engine(run.recipe, sample, policy)
        behind = None if asked is None else asked()
        for done, number in enumerate(missing, start=1):
            path = folder / f"{number:05d}.parquet"
            rollouts = engine.sample(shards[number], n=sample.n, seed=parts[number].seed)
            if behind is not None:
                rollouts = engine.judge.moved(rollouts, behind, run.recipe.sample.n)
            write_rollouts(path, rollouts)
            parts[number].commit({path.name: rollouts_hash(rollouts)}, {"rollouts": len(rollouts)})
            run.say(f"  {stage.name}: {done} of {len(missing)} shards")
    run.ranks.meet()
    return _join(stage, parts, folder, output) if run.ranks.main else None


def _join(stage: Stage, parts: Sequence[Stage], folder: Path, output: str) -> Manifest:
    """Put the shards together in their order."""
    rollouts = [rollout for part in parts for rollout in read_rollouts(folder / f"{part.name}.parquet")]
    write_rollouts(stage.folder / output, rollouts)
    return stage.commit({output: rollouts_hash(rollouts)}, counts_of(rollouts))


def counts_of(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return what to tell people of rollouts."""
    return {
        "prompts": len({rollout.prompt_id for rollout in rollouts}),
        "rollouts": len(rollouts),
        "tokens": sum(len(rollout.token_ids) for rollout in rollouts),
        "truncated": sum(rollout.finish == "length" for rollout in rollouts),
        "kl": finite_mean(None if one.reference is None else one.policy - one.reference for one in rollouts),
    }


def _seed(stage: Stage, shard: int) -> int:
    """Return what a shard is drawn with: other shards, rounds, purposes and runs with another seed draw otherwise."""
    said = f"{stage.seed} {stage.name} {stage.parameters['round'] - START} {shard}"
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:4], "big")
