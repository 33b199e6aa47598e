"""Policy and reference in one sweep over the head's weight: each as alone, and equal states equal to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefopt.kernels import oracle, policy_reference_logprobs, sequence_logprobs
from prefopt.kernels.head import Head
from prefopt.kernels.logprobs import _score
from tests.kernels.problems import INTERPRETED, TOLERANCE, problem


@settings(
    max_examples=15 if INTERPRETED else 80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 23)),
    tiles=st.tuples(st.integers(2, 20), st.integers(1, 30), st.integers(1, 20)),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    options=st.sampled_from([(1.0, None), (-2.0, 0.7)]),
    trains=st.sampled_from(["", "h", "hw", "b"]),
    seed=st.integers(0, 10_000),
)
def test_each_is_the_oracles_and_no_gradient_reaches_the_reference(tiled, size, tiles, dtype, options, trains, seed):
    if tiled.name == "triton" and dtype == torch.float64:
        dtype = torch.float32
    policy, weight, bias, target = problem(*size, dtype=dtype, bias=True, seed=seed)
    reference = problem(*size, dtype=dtype, seed=seed + 1)[0].requires_grad_()

    def run(score, cast):
        leaves = [cast(x).requires_grad_(k in trains) for k, x in zip("hwb", (policy, weight, bias), strict=True)]
        mine, other = score(leaves[0], Head(leaves[1], leaves[2], *options))
        assert not other.requires_grad
        if mine.requires_grad:
            mine.sum().backward()
        return mine.detach(), other, [x.grad for x in leaves if x.grad is not None]

    def exact(hidden, head):
        return [oracle.token_logprobs(x, target, head).detach() if x is reference else
                oracle.token_logprobs(x, target, head) for x in (hidden, reference)]  # fmt: skip

    true_mine, true_other, true_grads = run(exact, lambda x: x.double().clone())
    found = run(
        lambda hidden, head: _score(hidden, reference.detach(), target, head, tiled(*tiles)), lambda x: x.clone()
    )
    mine, other, grads = found
    for got, wanted in ((mine, true_mine), (other, true_other)):
        torch.testing.assert_close(got.double(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert len(grads) == len(true_grads)
    for got, wanted in zip(grads, true_grads, strict=True):
        assert (got.double() - wanted).norm() <= TOLERANCE[dtype] * max(1.0, wanted.norm().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("trains_head", [False, True])
def test_equal_hidden_states_get_equal_bits(dtype, trains_head):
    hidden, weight, _, target = problem(300, 64, 9000, dtype=dtype, size=3.0)
    hidden[7] *= 40  # logits that are summed again from their largest
    segment = torch.arange(300) // 25
    both = policy_reference_logprobs(
        hidden.requires_grad_(), hidden, weight.requires_grad_(trains_head), target, segment, 12
    )
    assert torch.equal(both.policy, both.reference)
    assert both.policy.requires_grad
    alone = sequence_logprobs(hidden, weight, target, segment, 12)
    torch.testing.assert_close(both.policy, alone, rtol=1e-5, atol=1e-3)


def test_the_oracle_keeps_gradients_from_the_reference_too():
    policy, weight, _, target = problem(4, 3, 5)
    segment = torch.zeros(4, dtype=torch.long)
    found = policy_reference_logprobs(
        policy, policy.flip(0), weight.requires_grad_(), target, segment, 1, backend="oracle"
    )
    assert found.policy.requires_grad
    assert not found.reference.requires_grad


def test_backends_agree_through_the_public_door():
    policy, weight, bias, target = problem(6, 4, 9, bias=True)
    reference = policy.flip(0)
    segment = torch.tensor([0, 0, 0, 1, 1, 2])
    for reduction in ("sum", "mean", "none"):
        options = {"bias": bias, "softcap": 5.0, "logit_scale": 0.5, "reduction": reduction}
        found = policy_reference_logprobs(policy, reference, weight, target, segment, 3, **options)
        for hidden, got in ((policy, found.policy), (reference, found.reference)):
            alone = sequence_logprobs(hidden, weight, target, segment, 3, backend="oracle", **options)
            torch.testing.assert_close(got, alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("change", [{"dtype": torch.float32}, {"device": "meta"}, "shape"])
def test_a_reference_unlike_the_policy_is_refused(change):
    policy, weight, _, target = problem(4, 3, 5)
    reference = policy[:3] if change == "shape" else policy.to(**change)
    with pytest.raises(ValueError, match=r"reference is .* they must be alike\."):
        policy_reference_logprobs(policy, reference, weight, target, torch.zeros(4, dtype=torch.long), 1)
