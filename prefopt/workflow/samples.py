"""Samples to read: before, during and after training, of the same held-out prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefopt.data import PreferenceData
from prefopt.eval import EvalConfig, sampled_kl
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.sampling import generate, generate_ids
from prefopt.train.callbacks import read_metrics, replace_lines
from prefopt.workflow.shading import pieces

Tokens = tuple[int, ...]

PAIRS_PER_PROMPT = 4
"""Held-out pairs that are shown of each sampled prompt, at most."""
_SAMPLED = ("before", "after", "reference")


def sample_texts(
    options: EvalConfig, model: Any, tokenizer: PreTrainedTokenizerBase, data: PreferenceData | None, when: str
) -> list[dict[str, Any]]:
    """Complete the first distinct held-out prompts: [{"prompt": text, when: [completion, ...]}]."""
    prompts = _prompts(options, data)
    if not prompts:
        return []
    texts = generate(
        model,
        tokenizer,
        [list(prompt) for prompt in _repeated(prompts, options)],
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=0,
    )
    n = options.samples_per_prompt
    shown = [tokenizer.decode(list(prompt), skip_special_tokens=True) for prompt in prompts]
    return [{"prompt": text, when: texts[i * n : (i + 1) * n]} for i, text in enumerate(shown)]


def reference_texts(
    options: EvalConfig,
    reference: Reference | None,
    tokenizer: PreTrainedTokenizerBase,
    data: PreferenceData | None,
) -> list[dict[str, Any]]:
    """Complete the same prompts by a reference that is a model of its own: [{"reference": [completion, ...]}].

    Nothing where the reference is what the policy began as: its completions are those before training.
    """
    compared = None if reference is None else reference.live
    if compared is None or (model := compared.separate) is None:
        return []
    found = sample_texts(options, model, tokenizer, data, "reference")
    return [{"reference": sample["reference"]} for sample in found]


def shade(
    options: EvalConfig,
    policy: PackedModel,
    reference: Reference | None,
    tokenizer: PreTrainedTokenizerBase,
    data: PreferenceData | None,
    pairs: PreferenceData | None,
    samples: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return samples with the held-out pairs of their prompts, and what training taught about each word.

    A sample gets `chosen` and `rejected`, texts of the first pairs of its prompt, and beside every list of texts KEY
    a list `KEY_tokens`: of each text its pieces, [text, log pi - log pi_ref in nats]. What was sampled is cut as the
    tokenizer cuts its text. Without a reference that gives log-probs there are texts alone.
    """
    of_prompt: dict[Tokens, list[tuple[Tokens, ...]]] = {}
    for example in pairs.examples if pairs is not None else ():
        of_prompt.setdefault(example.prompt, []).append(example.completions)
    found = []
    for prompt, sample in zip(_prompts(options, data), samples, strict=True):
        sides = {key: [_ids(tokenizer, text) for text in sample.get(key) or ()] for key in _SAMPLED}
        shown = of_prompt.get(prompt, [])[:PAIRS_PER_PROMPT]
        given = {side: [completions[at] for completions in shown] for at, side in enumerate(("chosen", "rejected"))}
        texts = {
            side: [str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in values]
            for side, values in given.items()
            if values
        }
        sides = {key: values for key, values in (sides | given).items() if values}
        asked = [(prompt, ids) for values in sides.values() for ids in values]
        compared = None if reference is None else reference.live
        cut = None if compared is None else pieces(
            policy, compared, tokenizer, asked, token_budget=options.token_budget
        )  # fmt: skip
        shaded: dict[str, Any] = {**sample, **texts}
        if cut is not None:
            rest = iter(cut)
            shaded |= {f"{key}_tokens": [next(rest) for _ in values] for key, values in sides.items()}
        found.append(shaded)
    return found


class SampleWatch:
    """Completes held-out prompts at every evaluation during training: texts to read, and the KL that they show.

    The texts go to a file of JSON Lines, one a prompt and evaluation: {"step", "prompt", "completions"}. Without a
    path they go nowhere.
    """

    def __init__(
        self, path: Path | None, tokenizer: PreTrainedTokenizerBase, data: PreferenceData | None, options: EvalConfig
    ) -> None:
        self.path = path
        self._tokenizer = tokenizer
        self._options = options
        self._prompts = _prompts(options, data)

    def __call__(self, policy: PackedModel, reference: Reference, step: int) -> Mapping[str, float]:
        """Return `kl` and `kl_per_token`, nats; nothing where samples don't show it (temperature, no reference)."""
        if not self._prompts:
            return {}
        options, prompts = self._options, _repeated(self._prompts, self._options)
        with policy.detached():
            completions = generate_ids(
                policy.model,
                self._tokenizer,
                [list(prompt) for prompt in prompts],
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                seed=0,
            )
        if self.path is not None:
            self._keep(self.path, step, completions)
        compared = reference.live  # samples are never asked for again: they don't belong in a cache
        if options.temperature != 1 or compared is None:
            return {}
        kl = sampled_kl(policy, compared, prompts, completions, token_budget=options.token_budget)
        return {} if kl is None else {"kl": kl.per_completion, "kl_per_token": kl.per_token}

    def _keep(self, path: Path, step: int, completions: list[Tokens]) -> None:
        """Write the texts; those of this step and later ones, of a run that was killed behind it, are replaced."""
        n, decode = self._options.samples_per_prompt, self._tokenizer.decode
        records = [record for record in read_metrics(path) if record["step"] < step]
        for i, prompt in enumerate(self._prompts):
            texts = [str(decode(list(c), skip_special_tokens=True)) for c in completions[i * n : (i + 1) * n]]
            shown = decode(list(prompt), skip_special_tokens=True)
            records.append({"step": step, "prompt": shown, "completions": texts})
        replace_lines(path, [json.dumps(record) for record in records])


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _prompts(options: EvalConfig, data: PreferenceData | None) -> list[Tokens]:
    if data is None:
        return []
    return list(dict.fromkeys(example.prompt for example in data))[: options.samples]


def _repeated(prompts: list[Tokens], options: EvalConfig) -> list[Tokens]:
    return [prompt for prompt in prompts for _ in range(options.samples_per_prompt)]
