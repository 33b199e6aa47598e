"""The sections of a rounds recipe that no room below owns: prompts, sampling, the rounds themselves, evaluation."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prefopt.config import Section

VERIFIERS = frozenset({"exact", "regex", "numeric", "math", "reasoning_gym"})
"""Kinds of scorers that say 1 of a right answer."""

PolicyRule = Literal["continues", "restarts"]
ReferenceRule = Literal["fixed", "previous", "moving"]
PromptsRule = Literal["split", "reused"]


class PromptsConfig(Section):
    """Where the prompts come from: to learn from, and held out to measure on."""

    train: str | tuple[str, ...] = Field(description="File, glob, Hugging Face dataset name, or a list of them.")
    eval: str | tuple[str, ...] = Field(description="The same, of prompts that are never trained on.")
    column: str = Field(default="prompt", description="Which column is the prompt: text, or a list of messages.")
    max_tokens: int | None = Field(default=None, ge=1, description="Prompts that are longer can't be used.")
    config: str | None = Field(default=None, description="Configuration of a Hugging Face dataset.")
    split: str = Field(default="train", description="Split of a Hugging Face dataset.")
    eval_split: str | None = Field(default=None, description="Split of a dataset named by eval; else `split`.")
    revision: str | None = Field(default=None, description="Revision (branch, tag or commit) of a dataset.")
    limit: int | None = Field(default=None, ge=1, description="Of train, how many prompts are used: the first ones.")
    eval_limit: int | None = Field(default=None, ge=1, description="The same of eval.")
    max_rejected: float = Field(
        default=0.01, ge=0.0, le=1.0, description="Share of rows that may be unusable before the run fails."
    )


class StopSection(Section):
    """When a run ends before its last round. What is unset never ends it."""

    no_gain: int | None = Field(
        default=None, ge=1, description="Rounds in a row whose held-out mean reward is not above the best before."
    )
    kl: float | None = Field(
        default=None, gt=0, description="Nats a completion of held-out KL to the first reference; more ends the run."
    )
    tokens: int | None = Field(
        default=None, ge=1, description="Tokens sampled to learn from in all; no round begins once they are spent."
    )


class RationaliseSection(Section):
    """How prompts that were never answered right are asked again with the answer (STaR, arXiv:2203.14465)."""

    hint: str = Field(
        default="{prompt}\n\nHint: the answer is {answer}.",
        description="What is asked then; {prompt} stands for the prompt, or what the user says last in it, {answer} "
        "for the row's answer. What is trained on follows the prompt without it.",
    )
    column: str = Field(default="answer", description="The row's column with the answer; of a list, the first one.")
    n: int | None = Field(default=None, ge=1, description="Samples of each such prompt; null: sample.n.")

    @model_validator(mode="after")
    def _check_hint(self) -> Self:
        for name in ("{prompt}", "{answer}"):
            if name not in self.hint:
                raise ValueError(f"rounds.rationalise.hint has no {name}; write where it stands")
        if self.hint.count("{prompt}") > 1:
            raise ValueError("rounds.rationalise.hint has {prompt} more than once; write it once")
        return self


class RoundsConfig(Section):
    """How often it goes round, and what goes over from one round to the next."""

    count: int = Field(default=3, ge=1, description="Rounds: sample, score, select, train, evaluate.")
    policy: PolicyRule = Field(
        default="continues",
        description="Where training starts: continues from the round before, or restarts from the base. Samples come "
        "from the round before in either case.",
    )
    reference: ReferenceRule = Field(
        default="fixed",
        description="What training compares with: the model that the first round began with, that of the previous "
        "round, or a moving one (reference: {kind: moving, every: STEPS}), which begins as the policy does.",
    )
    prompts: PromptsRule = Field(
        default="reused", description="split: each round has its own share of the prompts. reused: each has all."
    )
    replay: float = Field(
        default=0.0, ge=0, lt=1, description="Share of what is trained on that comes from the rounds before."
    )
    shard: int = Field(
        default=32, ge=1, description="Prompts that are sampled and scored as one unit: what a kill costs at most."
    )
    seed: int = Field(default=0, ge=0, description="Of sampling, selection, replay and the split of the prompts.")
    rationalise: RationaliseSection | None = Field(
        default=None,
        description="Ask prompts that were never answered right again with the answer, and learn from what is right "
        "then as if it had not been given; null doesn't.",
    )
    stop: StopSection = Field(default=StopSection(), description="When it ends early.")


class RoundsEvalConfig(Section):
    """How each round is measured on the held-out prompts."""

    n: int = Field(default=4, ge=1, description="Samples a prompt.")
    temperature: float = Field(default=1.0, ge=0, description="Of these samples; KL is only measured at 1.")
    k: int | None = Field(default=None, ge=1, description="Of pass@k; unset, n.")
    correct: float | None = Field(
        default=None, description="Lowest score of a right answer; unset, what the verifiers among the scorers say."
    )
    resamples: int = Field(default=2000, ge=100, description="Bootstrap resamples of each interval.")

    @model_validator(mode="after")
    def _check_k(self) -> Self:
        if self.k is not None and self.k > self.n:
            raise ValueError(f"eval.k is {self.k}, but a prompt has {self.n} samples (eval.n); lower it, or raise n")
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"eval.temperature is 0, so {self.n} samples of a prompt are equal; write eval.n: 1")
        return self
