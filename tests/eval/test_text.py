"""Perplexity, diversity and refusals by hand; entropy by full logits; drift in words."""

import math

import numpy as np
import pytest
import torch

from prefopt.data import Example
from prefopt.errors import DataError
from prefopt.eval.text import distinct, drift_in_words, duplicates, is_refusal, perplexity, text_evaluation
from prefopt.models.packed import PackedModel
from prefopt.models.scoring import example_entropies
from tests.models.tiny import tiny_causal_lm


def test_perplexity_is_per_token_over_all_completions() -> None:
    found = perplexity([-2.0, -6.0], [1, 3])
    assert found.value == pytest.approx(math.exp(8 / 4))
    assert found.low == found.high == pytest.approx(math.exp(2))  # both have 2 nats a token
    wide = perplexity([-2.0, -12.0] * 20, [1, 3] * 20)
    assert wide.low is not None
    assert wide.low < math.exp(14 / 4) < (wide.high or 0)
    assert perplexity([], []).value is None


def test_diversity_counts_runs_of_tokens_and_repeats_of_a_prompt() -> None:
    rows = [(1, 2, 1, 2), (1, 2), (3,)]
    assert distinct(rows, 1) == pytest.approx(3 / 7)
    assert distinct(rows, 2) == pytest.approx(2 / 4)  # 12 21 12 | 12
    assert distinct(rows, 5) == 0
    assert duplicates(["a", "a", "b"], [(1,), (1,), (1,)]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I\u2019m sorry, but I can't do that.", True),
        ("  **As an AI** language model", True),
        ("I cannot recommend it enough", True),  # the heuristic's price
        ("Certainly. I can't wait!", False),
        ("The film is not appropriate.", False),
        ("", False),
    ],
)
def test_a_refusal_is_known_by_how_it_begins(text: str, refused: bool) -> None:
    assert is_refusal(text) is refused


def test_entropy_is_that_of_full_logits() -> None:
    packed = PackedModel(tiny_causal_lm("llama"))
    rows = [(5, 6, 7), (9,)]
    found = example_entropies([Example((1, 4), tuple(rows))], packed, 1000)
    for row, value in zip(rows, found, strict=True):
        with torch.no_grad():
            log = packed.model(torch.tensor([[1, 4, *row]])).logits.log_softmax(-1)[0, 1:-1]
        assert value == pytest.approx(float(-(log.exp() * log).sum(-1).mean()), abs=1e-6)


def test_drift_is_told_in_words_and_says_when_it_may_be_chance() -> None:
    tokens = [(1, 2, 3)] * 20
    common = {"texts": ["fine"] * 20, "prompts": list(range(20)), "truncated": [False] * 20, "resamples": 100}
    noise = np.random.default_rng(0).normal(size=20)
    base = text_evaluation(tokens, entropy=3 + 0.1 * noise, held_out=([-6.0] * 5, [3] * 5), **common)
    tuned = text_evaluation(
        [(1, 2)] * 20, entropy=2.99 + 0.1 * noise[::-1], held_out=([-3.0] * 5, [3] * 5),
        **{**common, "texts": ["Sorry, I won't."] * 20},
    )  # fmt: skip
    said = drift_in_words(base, tuned)
    assert "Perplexity of held-out chosen completions fell from 7.39 to 2.72." in said
    assert "Length fell from 3.0 to 2.0 tokens." in said
    assert "Refusals rose from 0.0% to 100.0%." in said
    assert any(line.startswith("Entropy") and line.endswith("; the intervals overlap.") for line in said)
    assert "Samples cut at the longest length: 0.0% before and after." in said
    assert said[-2:] == [
        "Different pairs of tokens (distinct-2): 5.0% before and after.",
        "Samples that repeat another of their prompt: 0.0% before and after.",
    ]
    with pytest.raises(DataError, match="no completion"):
        text_evaluation([], [], [], entropy=[], truncated=[])
