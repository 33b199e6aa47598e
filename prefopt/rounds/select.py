"""From one prompt's scored rollouts to what is trained on: a selector built from the recipe's `select` section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prefopt.errors import DataError, RecipeError
from prefopt.rounds import select_accept, select_pairs
from prefopt.rounds.select_config import ACCEPTING, SelectConfig
from prefopt.rounds.select_records import Candidate, Scored, Selection, is_correct, usable

_STREAM = 0x5E1EC7  # tells the selection's random numbers from all others of the run


def build_selector(config: SelectConfig, *, n: int | None = None, high: float | None = None) -> Selector:
    """Return the selector that a recipe describes.

    Args:
        config: the `select` section.
        n: samples a prompt, to refuse what can't be selected of them.
        high: the highest score that the scorer can give, where it is known.

    Raises:
        RecipeError: `k` is above `n`, pairs are asked of one sample, or rejection has no bound or too low a one.
    """
    if n is not None and config.k is not None and config.k > n:
        raise RecipeError(f"select.k is {config.k}, but a prompt has {n} samples; lower it to at most {n}.")
    if n is not None and n < 2 and config.made_as in ("pairs", "lists"):
        raise RecipeError(f"select.form is {config.made_as}, which one sample a prompt never makes; sample at least 2.")
    if config.k == 1 and config.made_as in ("pairs", "lists"):
        raise RecipeError(
            f"select.k is 1 and select.form {config.made_as}, which one candidate never makes; set k >= 2."
        )
    bound = config.bound if config.bound is not None else high
    if config.selector == "rejection":
        if bound is None or not math.isfinite(bound):
            raise RecipeError(
                "select.bound is not set, and the scorer doesn't say what its highest score is: set select.bound to a "
                "score that none exceeds, or choose select.selector=rso, which needs none."
            )
        if high is not None and bound < high:
            raise RecipeError(
                f"select.bound is {bound:g}, but the scorer gives up to {high:g}: set it to at least that, or leave it "
                "out."
            )
    return Selector(config, bound)


@dataclass(frozen=True)
class Selector:
    """Selects of one prompt's candidates; build it with `build_selector`."""

    config: SelectConfig
    bound: float | None = None
    """What `rejection` compares scores with."""

    def __call__(self, candidates: Sequence[Candidate], generator: np.random.Generator) -> Selection:
        """Return what is trained on; it depends on the candidates and the generator, not on their order.

        Raises:
            DataError: a score is above the bound, or nothing says which candidates are correct.
        """
        pool, failed, duplicates = usable(candidates, keep_duplicates=self.config.keeps_duplicates)
        counts = Selection(candidates=len(candidates), failed=failed, duplicates=duplicates)
        if not pool:
            return replace(counts, reason="no candidate has a score")
        if self.config.selector in ACCEPTING:
            return self._as_form(pool, self._accept(pool, generator), counts)
        if self.config.made_as == "labels":
            labels = tuple((one.index, is_correct(one, self.config.threshold)) for one in pool)
            return replace(counts, labels=labels, passed=sum(label for _, label in labels))
        return _paired(self._pair(pool, generator), pool, counts)

    def of_prompt(self, candidates: Sequence[Candidate], *, seed: int, round_: int, prompt_id: str) -> Selection:
        """Return what is trained on of this prompt in this round; other prompts have no part in it.

        Raises:
            DataError: as the selector itself, with the prompt's id.
        """
        try:
            return self(candidates, generator_of(seed, round_, prompt_id))
        except DataError as error:
            raise DataError(f"Prompt {prompt_id} of round {round_}: {error}") from error

    def _accept(self, pool: Sequence[Scored], generator: np.random.Generator) -> list[Scored]:
        config = self.config
        if config.selector == "rejection":
            assert config.beta is not None
            assert self.bound is not None, "build_selector sees to it"
            return select_accept.rejection(pool, beta=config.beta, bound=self.bound, generator=generator)
        if config.selector == "rso":
            assert config.beta is not None
            assert config.k is not None
            return select_accept.rso(pool, k=config.k, beta=config.beta, generator=generator)
        if config.selector == "top_k":
            assert config.k is not None
            return select_accept.top_k(pool, k=config.k, ties=config.ties, generator=generator)
        return select_accept.threshold(pool, lowest=config.threshold, k=config.k, generator=generator)

    def _pair(self, pool: Sequence[Scored], generator: np.random.Generator) -> list[select_pairs.Pair]:
        config = self.config
        limit = config.pairs_per_prompt or 1
        if config.selector == "correct_vs_incorrect":
            lowest = config.threshold
            return select_pairs.correct_vs_incorrect(pool, lowest=lowest, limit=limit, generator=generator)
        ordered: dict[str, Any] = {"limit": limit, "ties": config.ties, "generator": generator}
        if config.selector == "best_vs_random":
            return select_pairs.best_vs_random(pool, **ordered)
        if config.selector == "west_of_n":
            assert config.confidence is not None
            return select_pairs.west_of_n(pool, confidence=config.confidence, **ordered)
        return select_pairs.best_vs_worst(pool, **ordered)

    def _as_form(self, pool: Sequence[Scored], accepted: Sequence[Scored], counts: Selection) -> Selection:
        """Make accepted candidates what a loss takes."""
        form = self.config.made_as
        found = tuple(one.index for one in accepted)
        if form == "labels":
            taken = set(found)
            labels = tuple((one.index, one.index in taken) for one in pool)
            return replace(counts, labels=labels, passed=len(found))
        if not found:
            return replace(counts, reason="no candidate was accepted")
        if form == "demonstrations":
            return replace(counts, accepted=found, passed=len(found))
        if form == "lists":
            if len(found) < 2 or len({one.score for one in accepted}) < 2:
                return replace(counts, passed=len(found), reason="the accepted candidates don't differ in score")
            return replace(counts, accepted=found, passed=len(found))
        pairs = select_pairs.first_round(accepted, limit=self.config.pairs_per_prompt)
        named = tuple((chosen.index, rejected.index) for chosen, rejected in pairs)
        reason = "" if named else "the accepted candidates don't differ in score"
        return replace(counts, pairs=named, passed=len(found), reason=reason)


def generator_of(seed: int, round_: int, prompt_id: str) -> np.random.Generator:
    """Return the random numbers of one prompt's selection: a function of these three alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([_STREAM, seed, round_, int(prompt_id, 16)])))


def target_warning(config: SelectConfig, q: Mapping[str, Any]) -> str | None:
    """Say what accepted samples follow instead of pi exp(r / beta), or return None where they are meant to follow that.

    Args:
        config: the `select` section.
        q: the sampler's distribution, as an engine describes it: temperature, top_p, top_k.
    """
    if config.selector not in ("rejection", "rso"):
        return None
    changes = []
    if q.get("temperature", 1.0) != 1.0:
        changes.append(f"temperature {q['temperature']:g}")
    if q.get("top_p", 1.0) != 1.0:
        changes.append(f"top_p {q['top_p']:g}")
    if q.get("top_k", 0):
        changes.append(f"top_k {q['top_k']}")
    sentences = []
    if q.get("engine") == "file":
        sentences.append(
            f"Samples were made elsewhere, so that the target of {config.selector} is q exp(r / beta), where q is what "
            "they were drawn from, and pi exp(r / beta) of the policy pi only if that is pi."
        )
    if changes:
        sentences.append(
            f"Samples were drawn with {' and '.join(changes)}, so that the target of {config.selector} is "
            "q exp(r / beta), where q is what they were drawn from, and not pi exp(r / beta) of the policy pi."
        )
    if config.selector == "rejection" and not config.keeps_duplicates:
        sentences.append(
            "select.duplicates=drop leaves out repeated samples, so that the accepted ones no longer follow "
            "q exp(r / beta): likely ones are too few."
        )
    return " ".join(sentences) or None


def _paired(pairs: Sequence[select_pairs.Pair], pool: Sequence[Scored], counts: Selection) -> Selection:
    named = tuple((chosen.index, rejected.index) for chosen, rejected in pairs)
    used = len({index for pair in named for index in pair})
    if named:
        return replace(counts, pairs=named, passed=used)
    equal = len({one.score for one in pool}) == 1
    return replace(counts, reason="all candidates have the same score" if equal else "no two make a pair")
