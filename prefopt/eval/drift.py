"""How far a policy has moved from its reference, estimated on its own samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefopt.data import Example
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.models.scoring import example_logprobs

Tokens = Sequence[int]


@dataclass(frozen=True)
class SampledKL:
    """KL(policy || reference) = E over y ~ policy of log policy(y|x) - log reference(y|x), as a mean over samples.

    A sample that was cut counts as the prefix that it is: the divergence is then that of completions up to there.
    """

    per_completion: float
    """Nats. An estimate; of few samples it may be negative, which the divergence itself never is."""
    per_token: float
    """The sum over all samples divided by their tokens, nats."""
    completions: int


def sampled_kl(
    policy: PackedModel,
    reference: Reference,
    prompts: Sequence[Tokens],
    completions: Sequence[Tokens],
    *,
    token_budget: int | None = None,
) -> SampledKL | None:
    """Estimate the divergence from `completions`, one a prompt, drawn from the policy at temperature 1 and top-p 1.

    Returns None without samples, and for a reference that gives no log-probs.

    Raises:
        ModelError: a log-prob is not finite.
    """
    drawn = [
        Example(tuple(prompt), (tuple(completion),))
        for prompt, completion in zip(prompts, completions, strict=True)
        if len(completion)
    ]
    if not drawn:
        return None
    own, compared = example_logprobs(drawn, policy, reference, token_budget)
    if compared is None:
        return None
    total = float((own - compared).sum())
    tokens = sum(len(example.completions[0]) for example in drawn)
    return SampledKL(total / len(drawn), total / tokens, len(drawn))
