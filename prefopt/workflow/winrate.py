"""Two models answer the same prompts with the same seeds: whose answers are better, by a scorer or a judge."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.errors import RecipeError, RunError
from prefopt.eval.intervals import Floats
from prefopt.eval.winrate import Position, WinRate, both_orders, win_rate
from prefopt.rewards import Attempt, RewardConfig, ScoreFailure, build_scorer, reward_identity
from prefopt.rewards.judge import Judge
from prefopt.sampling import Prompt, Rollout
from prefopt.train.callbacks import replace_text
from prefopt.workflow.directory import RECIPE, each_once, keep_evaluation
from prefopt.workflow.generations import SamplingOptions, attempts_of, check_columns, read_reward, run_prompts, sample
from prefopt.workflow.judging import judged, read_judge
from prefopt.workflow.weights import Weights, check_model, load_weights, weights_named

WINRATE = "winrate.json"


@dataclass(frozen=True, kw_only=True)
class WinrateOptions(SamplingOptions):
    """What both sides sample: fewer and longer answers, at any temperature."""

    samples_per_prompt: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0


@dataclass(frozen=True)
class WinrateResult:
    """What `eval/winrate.json` holds."""

    a: str
    b: str
    scorer: str
    options: WinrateOptions
    found: WinRate
    position: Position | None
    """Of a judge alone."""
    failures: dict[str, int]
    """Why there was no verdict, and how often: the three most frequent reasons."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "scorer": self.scorer,
            "samples_per_prompt": self.options.samples_per_prompt,
            "max_new_tokens": self.options.max_new_tokens,
            "temperature": self.options.temperature,
            "seed": self.options.seed,
            **self.found.to_dict(),
            "position": None if self.position is None else self.position.to_dict(),
            "failures": self.failures,
        }


def winrate_of(
    a: str,
    b: str,
    *,
    scorer: str | None = None,
    reward: Path | None = None,
    judge: Path | None = None,
    prompts: str | Sequence[str] | None = None,
    column: str | None = None,
    limit: int | None = None,
    out: Path | None = None,
    options: WinrateOptions | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> WinrateResult:
    """Compare the completions of two models, prompt by prompt and sample by sample, and write what was found.

    Args:
        a: a run directory, a recipe whose model is taken as it is, or a model's name or folder.
        b: the same of the other side.
        scorer: a kind of scorer; the answer with the higher score is better, equal ones tie.
        reward: a YAML file with a score section instead.
        judge: a YAML file with the keys of a judge, which compares the two answers in both orders, instead.
        prompts: what to sample from instead of what A (or B) holds out.
        column: which column of it holds the prompt.
        limit: the first of them.
        out: a file to write to; None is `eval/winrate.json` of A where A is a run, and otherwise nowhere. What was
            sampled lies beside it, as NAME_samples.jsonl: a line a comparison.
        options: what is sampled.
        say: is told what is being done.

    Raises:
        RecipeError: what judges is not said, or said twice, or both sides are one.
        RunError: a run has no weights yet.
        DataError: prompts that can't be read or lack a column, or no comparison with a verdict.
    """
    options = options or WinrateOptions()
    sides = [weights_named(a), weights_named(b)]
    if len(each_once([one.run for one in sides])) == 1:
        raise RecipeError(
            f"{a} and {b} are one, which writes the same text from the same seed: every comparison would be a tie. "
            "Name another model beside it."
        )
    runs = [one.run for one in sides if (one.run / RECIPE).is_file()]
    if judge is not None and (scorer is not None or reward is not None):
        raise RecipeError("--judge compares by itself; leave --scorer and --reward out.")
    section = None if judge is None else read_judge(judge)
    config = None if section is not None else read_reward(scorer, reward, runs)
    opened = None if section is None else Judge(section)  # a key that is missing is told before anything is sampled
    if config is not None:
        reward_identity(config)  # and so is a package
    if options.temperature == 0 and options.samples_per_prompt > 1:
        raise RecipeError("At temperature 0 all samples of a prompt are equal; write --samples-per-prompt 1.")
    asked = run_prompts(runs[0] if runs else None, None, source=prompts, column=column, limit=limit)
    if config is not None:
        check_columns(asked, config, prompts or runs[0])
    for weights in sides:
        check_model(weights)  # the second one's absence should not cost the samples of the first
    rollouts, attempts = [], []
    for weights in sides:
        say(f"{weights.label}: sampling {len(asked)} prompts x {options.samples_per_prompt}")
        sampled, seen = _sampled(weights, asked, config, options)
        rollouts.append(sampled)
        attempts.append(seen)
    if opened is not None:
        say(f"judging {len(rollouts[0])} pairs in both orders")
        verdicts, position, why = _judged(opened, *attempts)
    else:
        assert config is not None  # one of the two is
        position, (verdicts, why) = None, _scored(config, *attempts)
    lengths = [[len(one.token_ids) for one in side] for side in rollouts]
    found = win_rate(
        verdicts["outcome"], lengths[0], lengths[1], [one.prompt_id for one in rollouts[0]], resamples=options.resamples
    )
    named = f"judge {section.model}" if section is not None else ", ".join(config.scorers if config else ())
    result = WinrateResult(a, b, named, options, found, position, dict(Counter(why).most_common(3)))
    path = out or (sides[0].run / "eval" / WINRATE if (sides[0].run / RECIPE).is_file() else None)
    if path is not None:
        _write_samples(path.with_name(f"{path.stem}_samples.jsonl"), attempts, rollouts, verdicts)
    keep_evaluation(path, "winrate", result.to_dict(), say)
    return result


def _write_samples(
    path: Path,
    attempts: Sequence[Sequence[Attempt]],
    rollouts: Sequence[Sequence[Rollout]],
    verdicts: Mapping[str, Floats],
) -> None:
    """Write both sides' answers beside one another, a line a comparison; what has no number is null."""
    lines = []
    for at, (a, b) in enumerate(zip(*rollouts, strict=True)):
        row = {"prompt": attempts[0][at].prompt, "sample": a.sample, "a": a.text, "b": b.text}
        row |= {"tokens_a": len(a.token_ids), "tokens_b": len(b.token_ids)}
        row |= {key: float(values[at]) if np.isfinite(values[at]) else None for key, values in verdicts.items()}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    try:
        replace_text(path, "".join(lines))
    except OSError as error:
        raise RunError(f"{path} can't be written ({error.strerror}); name another place by --out FILE.") from error


def _sampled(
    weights: Weights, prompts: Sequence[Prompt], config: RewardConfig | None, options: WinrateOptions
) -> tuple[list[Rollout], list[Attempt]]:
    loaded = load_weights(weights)
    rollouts = sample(loaded, prompts, options, temperature=options.temperature)
    return rollouts, attempts_of(rollouts, prompts, config, loaded.tokenizer)


def _judged(
    judge: Judge, a: Sequence[Attempt], b: Sequence[Attempt]
) -> tuple[dict[str, Floats], Position | None, list[str]]:
    """Return what a judge said of each comparison, by name, how much position counted, and why there was no verdict."""
    ahead, behind, why = judged(judge, a, b)
    outcomes, position = both_orders(ahead, behind)
    return {"a_stood_first": ahead, "b_stood_first": behind, "outcome": outcomes}, position, why


def _scored(config: RewardConfig, a: Sequence[Attempt], b: Sequence[Attempt]) -> tuple[dict[str, Floats], list[str]]:
    """Return the scores of both sides and what follows of each comparison, NaN where there is none, and why."""
    said = build_scorer(config).score([*a, *b])
    why = [one.reason for one in said if isinstance(one, ScoreFailure)]
    values = np.array([np.nan if isinstance(one, ScoreFailure) else float(one) for one in said])
    ours, theirs = values.reshape(2, -1)
    return {"score_a": ours, "score_b": theirs, "outcome": (np.sign(ours - theirs) + 1) / 2}, why
