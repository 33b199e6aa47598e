"""What samples look like, whatever their worth: perplexity, entropy, diversity, refusals, length, and their drift."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prefopt.errors import DataError
from prefopt.eval.intervals import Mean, Share, mean, share
from prefopt.eval.kl import prompt_means

REFUSALS = (
    "i can't", "i cannot", "i can not", "i won't", "i will not", "i am not able to", "i'm not able to",
    "i am unable to", "i'm unable to", "i am sorry", "i'm sorry", "sorry, but", "sorry, i", "i apologize",
    "i must decline", "i have to decline", "as an ai", "as a language model", "as a large language model",
    "unfortunately, i can", "unfortunately i can", "it is not appropriate", "it's not appropriate",
)  # fmt: skip
"""How a completion that counts as a refusal begins, in lower case with straight apostrophes. A heuristic for English: a
refusal in other words is missed, and "I'm sorry to hear that" is taken for one."""
_LEADING = re.compile(r"^[\s\"'*_#>-]+")


@dataclass(frozen=True)
class TextEvaluation:
    """What completions of one model look like; means and shares with 95 % intervals."""

    perplexity: Mean | None
    """Per token of held-out chosen completions; None where there are none. n: completions."""
    entropy: Mean
    """Of the next token at every sampled token, nats; a mean over prompts."""
    distinct_1: float
    """Share of different ones among all runs of one token (distinct-n, arXiv:1510.03055)."""
    distinct_2: float
    distinct_3: float
    duplicates: float
    """Share of completions that repeat another one of their prompt, token by token."""
    refusals: Share
    """Completions that begin as one of `REFUSALS`."""
    length: Mean
    """Tokens, a mean over prompts."""
    truncated: Share
    """Completions that were cut at the longest length."""
    completions: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def text_evaluation(
    tokens: Sequence[Sequence[int]],
    texts: Sequence[str],
    prompts: Sequence[Any],
    *,
    entropy: ArrayLike,
    truncated: ArrayLike,
    held_out: tuple[ArrayLike, ArrayLike] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> TextEvaluation:
    """Measure n completions of a model.

    Args:
        tokens: n, the ids of each.
        texts: n, each without special tokens.
        prompts: n, which prompt each answers.
        entropy: (n,) nats, the mean over its tokens of the entropy of the next token.
        truncated: (n,) bool.
        held_out: log-probs (m,) of held-out completions in nats, and their tokens (m,), for the perplexity.
        resamples: of prompts (of completions, for the perplexity), for the intervals.
        seed: decides the intervals.

    Raises:
        DataError: there is no completion.
    """
    if not tokens:
        raise DataError("There is no completion to measure.")
    resampling = {"resamples": resamples, "seed": seed}
    lengths = [len(row) for row in tokens]
    return TextEvaluation(
        perplexity=None if held_out is None else perplexity(*held_out, **resampling),
        entropy=mean(prompt_means(entropy, prompts), **resampling),
        distinct_1=distinct(tokens, 1),
        distinct_2=distinct(tokens, 2),
        distinct_3=distinct(tokens, 3),
        duplicates=duplicates(prompts, tokens),
        refusals=share([is_refusal(text) for text in texts]),
        length=mean(prompt_means(lengths, prompts), **resampling),
        truncated=share(truncated),
        completions=len(tokens),
    )


def perplexity(logprobs: ArrayLike, tokens: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Mean:
    """Return exp(-sum of log-probs / sum of tokens), with a bootstrap interval over completions.

    Args:
        logprobs: (m,) nats, of whole completions.
        tokens: (m,) their lengths.
        resamples: of completions.
        seed: decides the interval.
    """
    total, count = np.asarray(logprobs, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    n = int(total.size)
    if n == 0:
        return Mean(0, None, None, None)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        rows = rng.integers(0, n, n)
        found.append(-total[rows].sum() / count[rows].sum())
    low, high = np.quantile(np.exp(found), [0.025, 0.975])
    return Mean(n, math.exp(-total.sum() / count.sum()), float(low), float(high))


def distinct(tokens: Iterable[Sequence[int]], n: int) -> float:
    """Return the share of different ones among all runs of n tokens (distinct-n, arXiv:1510.03055).

    It falls with the number of tokens that are looked at: compare equally many completions of like lengths.
    """
    seen: Counter[tuple[int, ...]] = Counter()
    for row in tokens:
        ids = tuple(row)
        seen.update(ids[at : at + n] for at in range(len(ids) - n + 1))
    return len(seen) / total if (total := sum(seen.values())) else 0.0


def duplicates(prompts: Sequence[Any], tokens: Sequence[Sequence[int]]) -> float:
    """Return the share of completions that repeat another one of their prompt, token by token."""
    different = {(prompt, tuple(row)) for prompt, row in zip(prompts, tokens, strict=True)}
    return 1 - len(different) / len(tokens) if tokens else 0.0


def is_refusal(text: str) -> bool:
    """Return whether a completion begins as one of `REFUSALS`: quotes, markup and the kind of apostrophe aside."""
    return _LEADING.sub("", text.replace("\u2019", "'").lower()).startswith(REFUSALS)


def drift_in_words(base: TextEvaluation, tuned: TextEvaluation) -> list[str]:
    """Return what changed from one model to the other, a sentence each; where intervals overlap it says so."""
    said = [
        _change("Perplexity of held-out chosen completions", base.perplexity, tuned.perplexity, ".2f", ""),
        _change("Entropy a token", base.entropy, tuned.entropy, ".2f", " nats"),
        _change("Length", base.length, tuned.length, ".1f", " tokens"),
        _change("Refusals", base.refusals, tuned.refusals, ".1%", ""),
        _change("Samples cut at the longest length", base.truncated, tuned.truncated, ".1%", ""),
        _move("Different pairs of tokens (distinct-2)", base.distinct_2, tuned.distinct_2, ".1%"),
        _move("Samples that repeat another of their prompt", base.duplicates, tuned.duplicates, ".1%"),
    ]
    return [sentence for sentence in said if sentence is not None]


def _change(what: str, base: Mean | Share | None, tuned: Mean | Share | None, form: str, unit: str) -> str | None:
    if base is None or tuned is None or base.value is None or tuned.value is None:
        return None
    assert None not in (base.low, base.high, tuned.low, tuned.high)  # what has a value has an interval
    apart = tuned.low > base.high or tuned.high < base.low  # type: ignore[operator]
    return _move(what, base.value, tuned.value, form, unit, "" if apart else "; the intervals overlap")


def _move(what: str, base: float, tuned: float, form: str, unit: str = "", unsure: str = "") -> str:
    """Say from where to where it went, `unsure` behind it; of what looks equal, that it is."""
    if f"{tuned:{form}}" == f"{base:{form}}":
        return f"{what}: {base:{form}}{unit} before and after."
    word = "rose" if tuned > base else "fell"
    return f"{what} {word} from {base:{form}} to {tuned:{form}}{unit}{unsure}."
