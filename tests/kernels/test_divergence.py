"""Divergences between two models' distributions: by hand, against float64 over the whole vocabulary, gradients too."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from prefopt.kernels import divergence, oracle, token_divergences
from prefopt.kernels.head import Head
from prefopt.kernels.workspace import Tiles
from tests.kernels.problems import problem

DIRECTIONS = ("reference_policy", "policy_reference")
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def naive(policy, reference, head, other, direction):
    """KL from all log-probs in float64; an entry that both give no probability counts for nothing."""
    p, r = oracle.all_logprobs(policy, head), oracle.all_logprobs(reference, other)
    ahead, behind = (r, p) if direction == "reference_policy" else (p, r)
    return torch.where(ahead > -torch.inf, ahead.exp() * (ahead - behind), 0.0).sum(1)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(divergence, "_tiles", lambda hidden: Tiles(rows=3, columns=5, block=2))


def test_two_words_by_hand():
    # p = (1/2, 1/2), r = (3/4, 1/4).
    policy, reference = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    head = Head(torch.eye(2))
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    backward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2)
    assert token_divergences(policy, reference, head, "reference_policy").item() == pytest.approx(forward, rel=1e-5)
    assert token_divergences(policy, reference, head, "policy_reference").item() == pytest.approx(backward, rel=1e-5)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(0, 8), st.integers(1, 7), st.integers(1, 17)),
    dtype=st.sampled_from(list(TOLERANCE)),
    options=st.tuples(st.sampled_from([1.0, 0.25, -2.0]), st.sampled_from([None, 0.7, 30.0])),
    bias=st.booleans(),
    own_head=st.booleans(),
    direction=st.sampled_from(DIRECTIONS),
    seed=st.integers(0, 10_000),
)
def test_values_and_gradients_equal_those_of_the_whole_vocabulary(
    small_tiles, size, dtype, options, bias, own_head, direction, seed
):
    policy, weight, shift, _ = problem(*size, dtype=dtype, bias=bias, seed=seed)
    reference, weight_r, shift_r, _ = problem(*size, dtype=dtype, bias=bias, seed=seed + 1)
    head = Head(weight, shift, *options)
    other = Head(weight_r, shift_r, *options) if own_head else head
    leaf, exact = policy.clone().requires_grad_(), policy.double().requires_grad_()
    found = token_divergences(leaf, reference, head, direction, reference_head=other)
    true = naive(exact, reference, head, other, direction)
    upstream = torch.linspace(-1, 2, size[0])
    found.backward(upstream.to(found.dtype))
    true.backward(upstream.double())
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert leaf.grad.dtype == dtype
    torch.testing.assert_close(found.double(), true, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    error = (leaf.grad.double() - exact.grad).norm()
    assert error <= TOLERANCE[dtype] * max(1.0, exact.grad.norm().item())


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck_in_float64(small_tiles, direction, softcap):
    policy, weight, shift, _ = problem(4, 3, 11, bias=True)
    reference = problem(4, 3, 11, seed=1)[0]
    head = Head(weight, shift, 1.5, softcap)
    assert gradcheck(lambda h: token_divergences(h, reference, head, direction), policy.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_policy_is_nothing_away_from_itself(dtype, direction):
    policy, weight, _, _ = problem(40, 16, 9000, dtype=dtype, size=3.0)
    leaf = policy.clone().requires_grad_()
    found = token_divergences(leaf, policy, Head(weight), direction)
    found.sum().backward()
    assert (found == 0).all()
    assert leaf.grad.abs().max() < 1e-6


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_words_that_neither_model_can_say_count_for_nothing(small_tiles, direction):
    policy, weight, _, _ = problem(4, 3, 9, dtype=torch.float32)
    reference = problem(4, 3, 9, dtype=torch.float32, seed=1)[0]
    bias = torch.zeros(9)
    bias[6:] = -torch.inf
    leaf = policy.clone().requires_grad_()
    found = token_divergences(leaf, reference, Head(weight, bias), direction)
    found.sum().backward()
    less = token_divergences(policy, reference, Head(weight[:6]), direction)
    torch.testing.assert_close(found, less, rtol=1e-5, atol=1e-6)
    assert leaf.grad.isfinite().all()


def test_one_differentiation_and_only_of_the_policy():
    policy, weight, _, _ = problem(3, 4, 5, dtype=torch.float32)
    weight.requires_grad_()
    reference = policy.clone().requires_grad_()
    found = token_divergences(policy.requires_grad_(), reference, Head(weight), "reference_policy")
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.grad(found.sum(), policy, create_graph=True)
    found.sum().backward()
    assert reference.grad is None
    assert weight.grad is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": torch.zeros(3, 3)}, "with the same N"),
        ({"policy": torch.zeros(4, 2)}, "policy has shape (4, 2) and its head (5, 3)"),
        ({"reference": torch.zeros(4, 3).double()}, "reference is torch.float64"),
        ({"reference_head": Head(torch.zeros(6, 3))}, "the heads have 5 and 6 tokens"),
        ({"direction": "forward"}, "direction is 'forward'"),
    ],
)
def test_a_wrong_argument_is_named_in_a_sentence(change, message):
    good = {"policy": torch.zeros(4, 3), "reference": torch.zeros(4, 3), "head": Head(torch.zeros(5, 3)),
            "direction": "reference_policy"}  # fmt: skip
    token_divergences(**good)
    with pytest.raises(ValueError) as caught:
        token_divergences(**{**good, **change})
    assert message in str(caught.value)
    assert str(caught.value).endswith(".")
