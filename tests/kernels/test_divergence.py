"""Divergences between two models' distributions: by hand, against float64 over the whole vocabulary, gradients too."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from prefopt.kernels import backends, oracle, token_divergences
from prefopt.kernels.divergence import Divergence
from prefopt.kernels.divergence_tiles import TorchPair
from prefopt.kernels.head import Head
from prefopt.kernels.workspace import Tiles
from tests.kernels.problems import INTERPRETED, problem

DIRECTIONS = ("reference_policy", "policy_reference")
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


SMALL = Tiles(rows=3, columns=5, block=2)


@pytest.fixture
def small(tiled):
    """Divergences in small tiles, by each backend in turn."""
    if tiled.name == "torch":
        make = TorchPair
    else:
        from prefopt.kernels.triton_divergence import TritonPair

        make = TritonPair

    def divergences(policy, reference, head, direction, reference_head=None):
        other = reference_head or head
        return Divergence.apply(policy, reference, head, other, direction, partial(make, tiles=SMALL))

    return divergences


@pytest.mark.parametrize("backend", ["auto", "torch", "oracle"])
def test_two_words_by_hand(backend):
    # p = (1/2, 1/2), r = (3/4, 1/4).
    policy, reference = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    head = Head(torch.eye(2))
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    backward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2)
    for direction, by_hand in (("reference_policy", forward), ("policy_reference", backward)):
        found = token_divergences(policy, reference, head, direction, backend=backend)
        assert found.item() == pytest.approx(by_hand, rel=1e-5)
        assert found.dtype == torch.float32


@settings(
    max_examples=20 if INTERPRETED else 120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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
    small, tiled, size, dtype, options, bias, own_head, direction, seed
):
    if tiled.name == "triton" and dtype == torch.float64:
        dtype = torch.float32  # the kernels compute in it
    policy, weight, shift, _ = problem(*size, dtype=dtype, bias=bias, seed=seed)
    reference, weight_r, shift_r, _ = problem(*size, dtype=dtype, bias=bias, seed=seed + 1)
    head = Head(weight, shift, *options)
    other = Head(weight_r, shift_r, 0.5, 4.0) if own_head else head
    leaf, exact = policy.clone().requires_grad_(), policy.double().requires_grad_()
    found = small(leaf, reference, head, direction, other)
    true = oracle.token_divergences(exact, reference, head, other, direction)
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
def test_gradcheck_in_float64(direction, softcap):
    policy, weight, shift, _ = problem(4, 3, 11, bias=True)
    reference = problem(4, 3, 11, seed=1)[0]
    head = Head(weight, shift, 1.5, softcap)
    make = partial(TorchPair, tiles=SMALL)
    assert gradcheck(lambda h: Divergence.apply(h, reference, head, head, direction, make), policy.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_policy_is_nothing_away_from_itself(tiled, dtype, direction):
    policy, weight, _, _ = problem(6 if tiled.interpreted else 40, 16, 9000, dtype=dtype, size=3.0)
    leaf = policy.clone().requires_grad_()
    found = token_divergences(leaf, policy, Head(weight), direction, backend=tiled.name)
    found.sum().backward()
    assert (found == 0).all()
    assert leaf.grad.abs().max() < 1e-6


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_words_that_neither_model_can_say_count_for_nothing(small, direction):
    policy, weight, _, _ = problem(4, 3, 9, dtype=torch.float32)
    reference = problem(4, 3, 9, dtype=torch.float32, seed=1)[0]
    bias = torch.zeros(9)
    bias[6:] = -torch.inf
    leaf = policy.clone().requires_grad_()
    found = small(leaf, reference, Head(weight, bias), direction)
    found.sum().backward()
    less = small(policy, reference, Head(weight[:6]), direction)
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
        ({"policy": torch.zeros(4, 2)}, "policy has shape (4, 2) and head.weight (5, 3)"),
        ({"reference": torch.zeros(4, 3).double()}, "reference has dtype float64 but policy has float32"),
        ({"reference": torch.zeros(4, 3, device="meta")}, "reference is on meta but policy is on cpu"),
        ({"head": Head(torch.zeros(5, 3), torch.zeros(4))}, "head.bias has shape (4,); it must be (5,)"),
        ({"reference_head": Head(torch.zeros(5, 2))}, "and reference_head.weight (5, 2)"),
        ({"reference_head": Head(torch.zeros(6, 3))}, "the heads have 5 and 6 tokens"),
        ({"direction": "forward"}, "direction is 'forward'"),
        ({"backend": "cuda"}, "backend is 'cuda'; it must be 'auto', 'triton', 'fused', 'torch' or 'oracle'"),
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


@pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 lets the kernels run anywhere")
@pytest.mark.parametrize("backend", ["triton", "fused"])
def test_a_backend_that_can_not_is_refused(backend):
    with pytest.raises(ValueError, match=f"backend is '{backend}', but .*; use 'auto' or 'torch'"):
        token_divergences(torch.zeros(1, 2), torch.zeros(1, 2), Head(torch.eye(2)), "reference_policy", backend=backend)


def test_the_kernel_that_gives_scores_alone_is_refused(monkeypatch):
    monkeypatch.setattr(backends, "_absent", lambda device, dtype: "")
    with pytest.raises(ValueError, match="gives scores alone, and was asked for divergences; use 'auto' or 'triton'"):
        token_divergences(torch.zeros(1, 2), torch.zeros(1, 2), Head(torch.eye(2)), "reference_policy", backend="fused")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_differences_of_probabilities_that_float16_can_not_hold_reach_the_gradient(tiled, dtype, direction):
    # 16,384 words with logits of +-2^-12 beside 0: p - r is +-2^-26, and float16 ends at 2^-24. Times weights of +-1 it
    # adds up to tanh(2^-12).
    weight = torch.ones(16_384, 2, dtype=dtype)
    weight[::2, 0] = -1
    policy = torch.tensor([[2.0**-12, 0.0]], dtype=dtype, requires_grad=True)
    reference = torch.zeros(1, 2, dtype=dtype)
    token_divergences(policy, reference, Head(weight), direction, backend=tiled.name).sum().backward()
    assert policy.grad[0].tolist() == pytest.approx([2.0**-12, 0.0], rel=2e-3, abs=1e-6)


def test_the_same_input_gives_the_same_bits(tiled):
    policy, weight, _, _ = problem(6, 16, 700, dtype=torch.float32)
    reference = problem(6, 16, 700, dtype=torch.float32, seed=1)[0]
    runs = []
    for _ in range(2):
        leaf = policy.clone().requires_grad_()
        found = token_divergences(leaf, reference, Head(weight), "reference_policy", backend=tiled.name)
        found.sum().backward()
        runs.append((found.detach(), leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
