"""Samples of finished runs: which prompts, what was drawn and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from prefopt.data import Example
from prefopt.errors import DataError, RecipeError
from prefopt.models.references import Reference
from prefopt.models.scoring import example_divergences
from prefopt.rewards import Attempt, Reward, RewardConfig, ScoreFailure, absolute_files, make_attempt, opens_thinking
from prefopt.sampling import HfEngine, Prompt, Rollout, Sampler, prompt_key, read_prompts
from prefopt.workflow.directory import RECIPE
from prefopt.workflow.weights import Loaded, read_run_recipe


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What is sampled of every model that is measured, the same of all."""

    samples_per_prompt: int = 4
    max_new_tokens: int = 64
    seed: int = 0
    batch_size: int = 64
    """Samples computed at once."""
    token_budget: int | None = None
    """Tokens scored at once; None takes what suits the device."""
    resamples: int = 2000
    """Of the bootstrap over prompts."""


@dataclass(frozen=True)
class Drawn:
    """A sample, how far it is from the reference, and what it is worth."""

    rollout: Rollout
    kl: float
    """Sum over its tokens of the exact divergence of the next token, nats."""
    score: float | None
    failure: str | None
    """Why there is no score."""


def run_prompts(
    run: Path | None,
    tokenizer: Any,
    *,
    source: str | Sequence[str] | None = None,
    column: str | None = None,
    limit: int | None = None,
) -> list[Prompt]:
    """Return the prompts of a file, or those that a run (None: there is none) holds out, each once.

    Of preferences (a training run's `data.eval`) the same prompt stands in many rows: the first one counts.

    Raises:
        RecipeError: the run holds nothing out and no file is named.
        DataError: the file can't be read, or has no prompts.
    """
    said = {} if run is None else read_run_recipe(run)
    rounds = "rounds" in said
    held_out = (said.get("prompts") or {}).get("eval") if rounds else (said.get("data") or {}).get("eval")
    named = source if source is not None else held_out
    if named is None:
        raise RecipeError(
            f"{run or 'A model by itself'} holds no prompts out (there is no data.eval); name some by --prompts FILE."
        )
    own_column = (said.get("prompts") or {}).get("column") if rounds and source is None else None
    found = list(read_prompts(named, tokenizer, column=column or own_column or "prompt"))
    if source is None and not rounds:
        found = list({prompt_key(prompt.prompt): prompt for prompt in reversed(found)}.values())[::-1]
    return found[:limit]


def read_reward(scorer: str | None, file: Path | None, runs: Sequence[Path]) -> RewardConfig:
    """Return what samples are scored by: a kind of scorer by name, a section in a YAML file, or the first rounds' own.

    Args:
        scorer: a kind with its defaults, such as "sentiment".
        file: a YAML file that is a `score` section, or has one (a recipe of rounds).
        runs: where neither is given, the first of these that is a run of rounds says it.

    Raises:
        RecipeError: both or nothing is given, or the section is wrong.
    """
    if scorer is not None and file is not None:
        raise RecipeError("--scorer and --reward are both given; name one of them.")
    where, section, base = "--scorer", scorer, Path.cwd()
    if file is not None:
        where, base = str(file), file.parent
        section = read_yaml(file)
        if isinstance(section, dict):
            section = section.get("score", section.get("reward", section))
    elif scorer is None:
        own = next(((run, said) for run in runs if "score" in (said := read_run_recipe(run))), None)
        if own is None:
            raise RecipeError(
                "Nothing says what samples are worth: name a scorer by --scorer (such as sentiment) or a file with "
                "a score section, as recipes of rounds have it, by --reward FILE."
            )
        where, section = str(own[0] / RECIPE), own[1]["score"]
    try:
        return RewardConfig.model_validate(absolute_files(section, base))
    except ValidationError as error:
        more = f"; give the keys of {scorer} by --reward FILE" if section is scorer else ""
        raise RecipeError(f"{where}: {first_problem(error)}{more}") from None


def read_yaml(file: Path) -> Any:
    """Return what a YAML file holds. Raises `RecipeError` where it is missing, or no YAML."""
    try:
        return yaml.safe_load(file.read_text())
    except OSError as error:
        raise RecipeError(f"{file} can't be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{file} can't be read as YAML: {' '.join(str(error).split())[:200]}") from error


def first_problem(error: ValidationError) -> str:
    """Return the first thing that is wrong with a section: key and what is wrong with it."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def sample(
    loaded: Loaded, prompts: Sequence[Prompt], options: SamplingOptions, *, temperature: float = 1.0
) -> list[Rollout]:
    """Return the samples of each prompt, in order.

    Raises:
        DataError: a prompt can't be encoded, or leaves no room for a completion.
        ModelError: a log-prob is not finite.
    """
    sampler = Sampler(options.max_new_tokens, temperature)
    engine = HfEngine(
        loaded.packed,
        loaded.tokenizer,
        sampler,
        batch_size=options.batch_size,
        token_budget=options.token_budget,
    )
    return engine.sample(prompts, n=options.samples_per_prompt, seed=options.seed)


def draw(
    loaded: Loaded, reference: Reference, prompts: Sequence[Prompt], options: SamplingOptions
) -> list[tuple[Rollout, float]]:
    """Return samples at temperature 1, each with its sequence KL to the reference, nats. Raises as `sample`."""
    rollouts = sample(loaded, prompts, options)
    examples = as_examples(rollouts)
    kl, policy, compared = example_divergences(examples, loaded.packed, reference, options.token_budget)
    return [
        (replace(one, policy=float(policy[at]), reference=float(compared[at])), float(kl[at]))
        for at, one in enumerate(rollouts)
    ]


def as_examples(rollouts: Sequence[Rollout]) -> list[Example]:
    """Return samples as what is scored: each with its prompt, by their tokens."""
    return [Example(one.prompt_ids, (one.token_ids,)) for one in rollouts]


def score(
    drawn: Sequence[tuple[Rollout, float]],
    prompts: Sequence[Prompt],
    config: RewardConfig,
    reward: Reward,
    tokenizer: Any,
) -> list[Drawn]:
    """Return the samples with their scores; one that the scorer refuses has the reason instead."""
    attempts = attempts_of([rollout for rollout, _ in drawn], prompts, config, tokenizer)
    found = []
    for (rollout, kl), said in zip(drawn, reward.score(attempts), strict=True):
        if isinstance(said, ScoreFailure):
            found.append(Drawn(rollout, kl, None, said.reason))
        else:
            found.append(Drawn(rollout, kl, float(said), None))
    return found


def attempts_of(
    rollouts: Sequence[Rollout], prompts: Sequence[Prompt], config: RewardConfig | None, tokenizer: Any
) -> list[Attempt]:
    """Return what a scorer sees of samples, their thinking split off as the section says."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    thinking = None if config is None else config.thinking
    attempts = []
    for rollout in rollouts:
        prompt = by_id[rollout.prompt_id]
        opened = thinking is not None and opens_thinking(tokenizer.decode(list(rollout.prompt_ids)), thinking.open)
        attempts.append(
            make_attempt(prompt.prompt, rollout.text, row=prompt.row, thinking=thinking, opened=opened, rollout=rollout)
        )
    return attempts


def check_columns(prompts: Sequence[Prompt], config: RewardConfig, source: Any) -> None:
    """Raise `DataError` when a row lacks a column that a scorer needs."""
    for prompt in prompts:
        if missing := sorted(config.columns - prompt.row.keys()):
            raise DataError(
                f"{source}: the scorer needs the column '{missing[0]}' of every row, and one has "
                f"{', '.join(map(str, prompt.row)) or 'no other column than the prompt'}."
            )
