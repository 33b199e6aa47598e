"""The recipe's `select` section: which of a prompt's rollouts are trained on, and as what."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prefopt.config import Section

SelectorName = Literal[
    "rejection",
    "rso",
    "top_k",
    "threshold",
    "best_vs_worst",
    "best_vs_random",
    "correct_vs_incorrect",
    "west_of_n",
]
Form = Literal["demonstrations", "labels", "pairs", "lists"]
Ties = Literal["random", "shorter", "earlier"]
Duplicates = Literal["drop", "keep"]

READS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "rejection": (("beta",), ("bound",)),
    "rso": (("beta", "k"), ()),
    "top_k": (("k",), ()),
    "threshold": ((), ("threshold", "k")),
    "best_vs_worst": ((), ()),
    "best_vs_random": ((), ()),
    "correct_vs_incorrect": ((), ("threshold",)),
    "west_of_n": (("confidence",), ()),
}
"""Selector -> the keys that it needs, and those that it may have besides; of the keys that not all selectors read."""
ACCEPTING = ("rejection", "rso", "top_k", "threshold")
"""Selectors that accept single candidates; the others make pairs."""


class SelectConfig(Section):
    """How each prompt's scored rollouts become what a loss is trained on."""

    selector: SelectorName = Field(description="How candidates are chosen; docs/selection.md has each.")
    form: Form | None = Field(
        default=None,
        description="What they become: 'demonstrations', 'labels' (accepted or not), 'pairs', or 'lists' with scores. "
        "Unset, pairs of a selector that makes pairs and demonstrations of one that accepts.",
    )
    k: int | None = Field(
        default=None, ge=1, description="Candidates accepted of a prompt, at most: rso, top_k, threshold."
    )
    beta: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Temperature of the reward, in its units: the target is q exp(r / beta). Of rejection and rso.",
    )
    bound: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="A score that none exceeds, for rejection. Unset, the scorer's own largest.",
    )
    threshold: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Lowest score of a correct candidate: threshold, correct_vs_incorrect. Unset, the scorer says "
        "what is correct.",
    )
    confidence: float | None = Field(
        default=None,
        ge=0.5,
        lt=1,
        description="Of west_of_n: lowest probability sigmoid(r_best - r_worst) that the best is preferred.",
    )
    pairs_per_prompt: int | None = Field(
        default=None, ge=1, description="Most pairs of a prompt. Unset, 1; of accepted candidates as many as they make."
    )
    ties: Ties = Field(
        default="random",
        description="Which of candidates with equal scores ranks higher. None is preferred to another.",
    )
    duplicates: Duplicates | None = Field(
        default=None,
        description="What becomes of a candidate with the token ids of an earlier one. Unset, it is left out, but kept "
        "by rejection, which is exact only so.",
    )

    @model_validator(mode="after")
    def _keys_fit_the_selector(self) -> Self:
        needed, allowed = READS[self.selector]
        special = {name for both in READS.values() for names in both for name in names}
        for name in sorted(special):
            given = getattr(self, name) is not None
            if name in needed and not given:
                raise ValueError(f"select.{name} is missing; select.selector={self.selector} needs it")
            if given and name not in needed and name not in allowed:
                readers = [one for one, both in READS.items() if name in both[0] + both[1]]
                raise ValueError(
                    f"select.{name} is set, but select.selector={self.selector} doesn't read it; leave it out, or "
                    f"choose {' or '.join(readers)}"
                )
        if self.form in ("demonstrations", "lists") and self.selector not in ACCEPTING:
            raise ValueError(
                f"select.form is {self.form}, but select.selector={self.selector} makes pairs: leave select.form out, "
                f"or choose one of {', '.join(ACCEPTING)}"
            )
        if self.form == "labels" and self.selector not in (*ACCEPTING, "correct_vs_incorrect"):
            raise ValueError(
                f"select.form is labels, but select.selector={self.selector} makes pairs: leave select.form out, or "
                f"choose one of {', '.join((*ACCEPTING, 'correct_vs_incorrect'))}"
            )
        if self.pairs_per_prompt is not None and self.made_as != "pairs":
            raise ValueError(
                f"select.pairs_per_prompt is set, but the form is {self.made_as}; leave it out, or set "
                "select.form=pairs"
            )
        return self

    @property
    def made_as(self) -> Form:
        """What is made of the chosen candidates."""
        return self.form or ("demonstrations" if self.selector in ACCEPTING else "pairs")

    @property
    def keeps_duplicates(self) -> bool:
        """Whether candidates with equal token ids are all candidates."""
        return (self.duplicates or ("keep" if self.selector == "rejection" else "drop")) == "keep"
