"""The token that a uniform number stands for: the model's distribution, sharpened or cut as the settings say."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from prefopt.errors import ModelError, RecipeError
from prefopt.sampling.draw import Sampler, sample_seed, uniforms

VOCABULARY = 601  # three chunks, the last one short
GRID = 4000


def logits(rows: int = 1) -> Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2


def shares(sampler: Sampler, scores: Tensor) -> Tensor:
    """(V,) what the sampler draws on an even grid of uniform numbers: each share within 1 / GRID."""
    grid = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    drawn = torch.cat([sampler.draw(scores.expand(2000, -1), part) for part in grid.split(2000)])
    return torch.bincount(drawn, minlength=VOCABULARY) / GRID


@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        ({}, []),
        ({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)]),
        ({"top_k": 7}, [TopKLogitsWarper(7)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"temperature": 1.7, "top_k": 40, "top_p": 0.7},
         [TemperatureLogitsWarper(1.7), TopKLogitsWarper(40), TopPLogitsWarper(0.7)]),
    ],
)  # fmt: skip
def test_tokens_are_drawn_from_what_temperature_top_k_and_top_p_leave(
    settings: dict[str, Any], warpers: list[Any]
) -> None:
    expected = logits()
    for warper in warpers:
        expected = warper(torch.zeros(1, 1, dtype=torch.int64), expected)
    found = shares(Sampler(1, **settings), logits())
    assert (found - expected.softmax(-1)[0]).abs().max() <= 1.5 / GRID
    assert found[expected[0].isinf()].sum() == 0


def test_temperature_zero_takes_the_likeliest() -> None:
    scores = logits(5)
    assert torch.equal(Sampler(1, temperature=0).draw(scores, torch.rand(5).double()), scores.argmax(-1))


def test_the_ends_of_the_interval_are_tokens_that_are_possible() -> None:
    scores = torch.full((2, VOCABULARY), -torch.inf)
    scores[:, 300], scores[:, 305] = 1.0, -29.0
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert Sampler(1).draw(scores, edges).tolist() == [300, 305]
    scores[:, 305] = -torch.inf
    assert Sampler(1).draw(scores, edges).tolist() == [300, 300]
    assert Sampler(1, top_p=1e-9).draw(logits(1), edges[1:]).item() == logits(1).argmax()


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    scores, uniform = logits(6), torch.rand(6, generator=torch.Generator().manual_seed(1)).double()
    sampler = Sampler(1, temperature=0.9, top_k=50, top_p=0.9)
    alone = [sampler.draw(scores[i : i + 1], uniform[i : i + 1]).item() for i in range(6)]
    assert sampler.draw(scores, uniform).tolist() == alone


def test_random_numbers_are_those_of_the_samples_own_seed() -> None:
    seeds = [sample_seed(run, key, number) for run, key, number in itertools.product([0, 1], ["a", "b"], [0, 1])]
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    both = uniforms(seeds[:2], 5)
    assert torch.equal(both[1:], uniforms(seeds[1:2], 5))
    assert torch.equal(both[:, :3], uniforms(seeds[:2], 3))
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -1}, "top_k is -1"),
    ],
)
def test_a_setting_out_of_range_is_a_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Sampler(**{"max_new_tokens": 1, **settings})


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_drawn_from_logits_that_are_no_numbers(temperature: float, value: float) -> None:
    scores = logits(2)
    scores[1, 7] = value
    with pytest.raises(ModelError, match="no finite numbers"):
        Sampler(2, temperature=temperature).draw(scores, torch.full((2,), 0.5, dtype=torch.float64))
