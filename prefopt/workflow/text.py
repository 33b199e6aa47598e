"""A run's model and the one that it began with, on the same prompts and seeds: how their texts differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefopt.data import Example, PreferenceData
from prefopt.errors import PrefoptError
from prefopt.eval import held_out_pairs
from prefopt.eval.text import TextEvaluation, drift_in_words, text_evaluation
from prefopt.models.scoring import example_entropies, example_logprobs
from prefopt.sampling import HfEngine, Prompt, Sampler
from prefopt.workflow.directory import write_json
from prefopt.workflow.finished import run_recipe
from prefopt.workflow.generations import Weights, load_sampler, read_run_recipe, run_prompts, start_of, weights_of_run
from prefopt.workflow.inputs import load_held_out

TEXT = "text.json"


@dataclass(frozen=True)
class TextOptions:
    """What is sampled of both models."""

    samples_per_prompt: int = 4
    max_new_tokens: int = 64
    seed: int = 0
    batch_size: int = 64
    token_budget: int = 8192
    resamples: int = 2000


@dataclass(frozen=True)
class TextResult:
    """What `eval/text.json` holds."""

    base: TextEvaluation
    tuned: TextEvaluation
    drift: tuple[str, ...]
    prompts: int
    samples_per_prompt: int
    max_new_tokens: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "text",
            "prefopt": version("prefopt"),
            "prompts": self.prompts,
            "samples_per_prompt": self.samples_per_prompt,
            "max_new_tokens": self.max_new_tokens,
            "temperature": 1.0,
            "base": self.base.to_dict(),
            "tuned": self.tuned.to_dict(),
            "drift": list(self.drift),
        }


def text_of_run(
    run: Path,
    *,
    prompts: str | Sequence[str] | None = None,
    column: str | None = None,
    limit: int | None = None,
    options: TextOptions | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> TextResult:
    """Measure the texts of a run and of the model that it began with, and write `eval/text.json`.

    The perplexity is of the chosen completions of the recipe's `data.eval`, where there are any.

    Args:
        run: a directory of `prefopt train` or `prefopt rounds`.
        prompts: what to sample from instead of what the run holds out.
        column: which column of it holds the prompt.
        limit: the first of them.
        options: what is sampled.
        say: is told what is being done.

    Raises:
        RunError: `run` is no run, or has no weights yet.
        DataError: prompts that can't be read.
    """
    options = options or TextOptions()
    tuned = weights_of_run(run)[-1]
    asked = run_prompts(run, None, source=prompts, column=column, limit=limit)
    measured = []
    for weights in (start_of(tuned), tuned):
        say(f"{weights.label}: sampling {len(asked)} prompts x {options.samples_per_prompt}")
        measured.append(_measure(weights, asked, options))
    base, after = measured
    result = TextResult(
        base, after, tuple(drift_in_words(base, after)), len(asked), options.samples_per_prompt, options.max_new_tokens
    )
    write_json(run / "eval" / TEXT, result.to_dict())
    return result


def _measure(weights: Weights, prompts: Sequence[Prompt], options: TextOptions) -> TextEvaluation:
    packed, tokenizer = load_sampler(weights)
    engine = HfEngine(
        packed,
        tokenizer,
        Sampler(options.max_new_tokens),
        batch_size=options.batch_size,
        token_budget=options.token_budget,
    )
    rollouts = engine.sample(prompts, n=options.samples_per_prompt, seed=options.seed)
    examples = [Example(one.prompt_ids, (one.token_ids,)) for one in rollouts]
    held_out = _chosen(weights.run, tokenizer)
    known = None
    if held_out is not None:
        logprobs, _ = example_logprobs(held_out, packed, None, options.token_budget)
        known = (logprobs, [len(example.completions[0]) for example in held_out])
    return text_evaluation(
        [one.token_ids for one in rollouts],
        [one.text for one in rollouts],
        [one.prompt_id for one in rollouts],
        entropy=example_entropies(examples, packed, options.token_budget),
        truncated=[one.finish == "length" for one in rollouts],
        held_out=known,
        resamples=options.resamples,
    )


def _chosen(run: Path, tokenizer: Any) -> list[Example] | None:
    """Return the held-out chosen completions of a training run; None where it has none."""
    said = read_run_recipe(run)
    if "rounds" in said or (said.get("data") or {}).get("eval") is None:
        return None
    recipe = run_recipe(run)
    assert recipe.data.eval is not None  # the same file says so
    try:
        data: PreferenceData = held_out_pairs(load_held_out(recipe, tokenizer, recipe.data.eval))
    except PrefoptError:
        return None  # labelled data, or files that are gone: the rest is measured all the same
    return [Example(example.prompt, (example.completions[0],)) for example in data.examples]
