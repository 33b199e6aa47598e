"""Statistics of a token's whole distribution: by hand, against the oracle, on tokens that the model is sure of."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefopt.kernels import oracle, statistics, token_statistics
from prefopt.kernels.head import Head
from tests.kernels.problems import INTERPRETED, problem

TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def test_three_words_by_hand():
    # p = (1/2, 1/4, 1/4): entropy 1.5 bits, sum of squares 3/8.
    hidden = torch.tensor([[math.log(2), 0.0, 0.0]] * 2)
    found = token_statistics(hidden, torch.eye(3), torch.tensor([0, 2]))
    assert found.logprob.tolist() == pytest.approx([-math.log(2), -math.log(4)], rel=1e-6)
    assert found.entropy.tolist() == pytest.approx([1.5 * math.log(2)] * 2, rel=1e-6)
    assert found.log_sum_p2.tolist() == pytest.approx([math.log(3 / 8)] * 2, rel=1e-6)
    assert found.top1.tolist() == [True, False]


@settings(
    max_examples=40 if INTERPRETED else 150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    size=st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 23)),
    tiles=st.tuples(st.integers(1, 12), st.integers(1, 30), st.integers(1, 12)),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    options=st.tuples(st.sampled_from([1.0, 0.25, -2.0]), st.sampled_from([None, 0.7, 30.0])),
    bias=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_statistics_equal_the_oracles(tiled, size, tiles, dtype, options, bias, seed):
    if tiled.name == "triton" and dtype == torch.float64:
        dtype = torch.float32
    hidden, weight, shift, target = problem(*size, dtype=dtype, bias=bias, seed=seed, size=3.0)
    head = Head(weight, shift, *options)
    found = statistics.of_sums(hidden, target, head, tiled.make(*tiles).sums(hidden, target, head))
    everything = oracle.all_logprobs(hidden, head)
    exact = statistics.naive(everything, target)
    for mine, true in zip(found[:3], exact[:3], strict=True):
        torch.testing.assert_close(mine, true, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    # Where the first two are close, rounding decides.
    best = everything.topk(min(2, size[2]), dim=1).values
    clear = best[:, 0] - best[:, -1] > 0.2 if size[2] > 1 else torch.ones(size[0], dtype=torch.bool)
    assert torch.equal(found.top1[clear], exact.top1[clear])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_token_that_the_model_is_sure_of_keeps_its_digits(tiled, dtype):
    # Gaps of 18 to 20: 1 - p is below float32's 6e-8, and so are the entropy and -log sum p^2.
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).to(dtype)
    hidden = torch.tensor([[18.0, 0.5], [20.0, 1.0]]).to(dtype)
    target = torch.zeros(2, dtype=torch.long)
    found = token_statistics(hidden, weight, target, backend=tiled.name)
    # In float64 the naive sums keep nine digits here.
    exact = statistics.naive(oracle.all_logprobs(hidden.double(), Head(weight.double())), target)
    assert (exact.entropy < 1e-6).all()
    for mine, true in zip(found[:3], exact[:3], strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=0)
    assert found.top1.all()


def test_a_target_that_the_model_can_not_say(tiled):
    hidden, weight = torch.tensor([[1.0, 2.0]]), torch.eye(3, 2)
    head = Head(weight, torch.tensor([0.0, 0.0, -math.inf]))
    target = torch.tensor([2])
    found = statistics.of_sums(hidden, target, head, tiled.make(2, 2, 2).sums(hidden, target, head))
    exact = statistics.naive(oracle.all_logprobs(hidden, head), target)
    assert found.logprob.item() == -math.inf
    torch.testing.assert_close(found.entropy, exact.entropy, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.log_sum_p2, exact.log_sum_p2, rtol=1e-6, atol=0)
    assert not found.top1


def test_no_tokens_have_no_statistics(tiled):
    none = torch.zeros(0, dtype=torch.long)
    found = token_statistics(torch.zeros(0, 4), torch.randn(5, 4), none, backend=tiled.name)
    assert [x.shape for x in found] == [(0,)] * 4


def test_nothing_of_it_asks_for_a_gradient_and_wrong_arguments_are_refused():
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    assert not any(x.requires_grad for x in token_statistics(hidden, weight, torch.tensor([0, 1, 2])))
    with pytest.raises(ValueError, match="target holds 5; every entry must be from 0 to 4"):
        token_statistics(hidden, weight, torch.tensor([0, 5, 2]))
