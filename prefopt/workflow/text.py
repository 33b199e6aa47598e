"""A run's model and the one that it began with, on the same prompts and seeds: how their texts differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.data import Example, PreferenceData
from prefopt.errors import PrefoptError
from prefopt.eval import held_out_pairs
from prefopt.eval.text import TextEvaluation, drift_in_words, text_evaluation
from prefopt.models.adapters import copy_weights
from prefopt.models.scoring import example_entropies, example_logprobs
from prefopt.sampling import Prompt
from prefopt.workflow.directory import keep_evaluation
from prefopt.workflow.finished import run_recipe
from prefopt.workflow.generations import SamplingOptions, as_examples, run_prompts, sample
from prefopt.workflow.inputs import load_held_out
from prefopt.workflow.weights import Loaded, load_weights, read_run_recipe, start_of, weights_of_run

TEXT = "text.json"


@dataclass(frozen=True)
class TextResult:
    """What `eval/text.json` holds."""

    base: TextEvaluation
    tuned: TextEvaluation
    drift: tuple[str, ...]
    prompts: int
    samples_per_prompt: int
    max_new_tokens: int
    no_perplexity: str | None
    """Why there is none; None where there is one."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts,
            "samples_per_prompt": self.samples_per_prompt,
            "max_new_tokens": self.max_new_tokens,
            "temperature": 1.0,
            "base": self.base.to_dict(),
            "tuned": self.tuned.to_dict(),
            "drift": list(self.drift),
            "no_perplexity": self.no_perplexity,
        }


def text_of_run(
    run: Path,
    *,
    prompts: str | Sequence[str] | None = None,
    column: str | None = None,
    limit: int | None = None,
    out: Path | None = None,
    options: SamplingOptions | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> TextResult:
    """Measure the texts of a run and of the model that it began with, and write `eval/text.json`.

    One model is loaded: first as the run began with it, then with the run's weights.

    The perplexity is of the chosen completions of the recipe's `data.eval`; where there are none, it is said why.

    Args:
        run: a directory of `prefopt train` or `prefopt rounds`.
        prompts: what to sample from instead of what the run holds out.
        column: which column of it holds the prompt.
        limit: the first of them.
        out: a file to write to instead.
        options: what is sampled.
        say: is told what is being done.

    Raises:
        RunError: `run` is no run, or has no weights yet.
        DataError: prompts that can't be read.
    """
    options = options or SamplingOptions()
    tuned = weights_of_run(run)[-1]
    asked = run_prompts(run, None, source=prompts, column=column, limit=limit)
    loaded = load_weights(start_of(tuned))
    held_out, why = _chosen(run, loaded.tokenizer)
    measured = []
    for label, folder in (("start", None), (tuned.label, tuned.folder)):
        if folder is not None:
            copy_weights(loaded.packed.model, folder)
        say(f"{label}: sampling {len(asked)} prompts x {options.samples_per_prompt}")
        measured.append(_measure(loaded, asked, held_out, options))
    base, after = measured
    result = TextResult(
        base=base,
        tuned=after,
        drift=tuple(drift_in_words(base, after)),
        prompts=len(asked),
        samples_per_prompt=options.samples_per_prompt,
        max_new_tokens=options.max_new_tokens,
        no_perplexity=why,
    )
    keep_evaluation(out or run / "eval" / TEXT, "text", result.to_dict(), say)
    return result


def _measure(
    loaded: Loaded, prompts: Sequence[Prompt], held_out: Sequence[Example] | None, options: SamplingOptions
) -> TextEvaluation:
    """Return the measures of one model."""
    rollouts = sample(loaded, prompts, options)
    known = None
    if held_out is not None:
        logprobs, _ = example_logprobs(held_out, loaded.packed, None, options.token_budget)
        known = (logprobs, [len(example.completions[0]) for example in held_out])
    return text_evaluation(
        [one.token_ids for one in rollouts],
        [one.text for one in rollouts],
        [one.prompt_id for one in rollouts],
        entropy=example_entropies(as_examples(rollouts), loaded.packed, options.token_budget),
        truncated=[one.finish == "length" for one in rollouts],
        held_out=known,
        resamples=options.resamples,
    )


def _chosen(run: Path, tokenizer: Any) -> tuple[list[Example] | None, str | None]:
    """Return the held-out chosen completions of a training run, or why there are none."""
    said = read_run_recipe(run)
    if "rounds" in said:
        return None, "a run of rounds holds out prompts, not completions"
    if (said.get("data") or {}).get("eval") is None:
        return None, "the run's recipe names no data.eval"
    recipe = run_recipe(run)
    assert recipe.data.eval is not None  # the same file says so
    try:
        data: PreferenceData = held_out_pairs(load_held_out(recipe, tokenizer, recipe.data.eval))
    except PrefoptError as error:  # labelled data, or files that are gone: the rest is measured all the same
        return None, f"data.eval has no chosen completions to read: {error}"
    return [Example(example.prompt, (example.completions[0],)) for example in data.examples], None
