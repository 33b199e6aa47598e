"""The fused linear log-prob: values and gradients against the oracle, over shapes, tiles, dtypes and options."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from prefopt.kernels import oracle, sequence_logprobs
from prefopt.kernels.head import Head
from prefopt.kernels.logprobs import token_logprobs
from tests.kernels.problems import INTERPRETED, TOLERANCE, problem

SMALL = "torch 3 5 2"


def test_two_tokens_of_three_words_by_hand():
    # Logits of the first token are [1, 2, 0], of the second [0, 0, ln 2]; targets 1 and 2.
    weight = torch.eye(3)
    hidden = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, math.log(2)]])
    first = 2 - math.log(math.e + math.e**2 + 1)
    second = math.log(2 / 4)
    target, segment = torch.tensor([1, 2]), torch.tensor([0, 2])
    each = sequence_logprobs(hidden, weight, target, segment, 4, reduction="none")
    assert each.tolist() == pytest.approx([first, second], rel=1e-6)
    total = sequence_logprobs(hidden, weight, target, segment, 4)
    assert total.tolist() == pytest.approx([first, 0, second, 0], rel=1e-6)
    both = sequence_logprobs(hidden, weight, target, torch.tensor([1, 1]), 2, reduction="mean")
    assert both.tolist() == pytest.approx([0, (first + second) / 2], rel=1e-6)


def test_scale_bias_and_softcap_by_hand():
    # z = 2 * [1, 3] + [1, 0] = [3, 6]; capped at 4: 4 tanh(3/4), 4 tanh(6/4).
    low, high = 4 * math.tanh(0.75), 4 * math.tanh(1.5)
    got = sequence_logprobs(
        torch.tensor([[1.0, 3.0]]),
        torch.eye(2),
        torch.tensor([0]),
        torch.tensor([0]),
        1,
        bias=torch.tensor([1.0, 0.0]),
        logit_scale=2.0,
        softcap=4.0,
    )
    assert got.item() == pytest.approx(low - math.log(math.exp(low) + math.exp(high)), rel=1e-6)


CASES = st.fixed_dictionaries(
    {
        "n": st.integers(0, 17),
        "h": st.integers(1, 9),
        "v": st.integers(1, 23),
        "rows": st.integers(1, 20),
        "columns": st.integers(1, 30),
        "block": st.integers(1, 20),
        "dtype": st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
        "softcap": st.sampled_from([None, 0.7, 30.0]),
        "scale": st.sampled_from([1.0, 0.25, -2.0]),
        "bias": st.booleans(),
        "trains": st.sampled_from(["", "h", "w", "hw", "hb", "b", "hwb"]),
        "seed": st.integers(0, 10_000),
    }
)


@settings(
    max_examples=60 if INTERPRETED else 150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=CASES)
def test_values_and_gradients_equal_the_oracles(tiled, case):
    dtype, trains, options = case["dtype"], case["trains"], (case["scale"], case["softcap"])
    if tiled.name == "triton" and dtype == torch.float64:
        dtype = torch.float32
    n, seed = min(case["n"], 9) if tiled.interpreted else case["n"], case["seed"]
    hidden, weight, shift, target = problem(n, case["h"], case["v"], dtype=dtype, bias=case["bias"], seed=seed)
    upstream = torch.randn(n, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64, device="cpu")
    backend = tiled(case["rows"], case["columns"], case["block"])

    def run(score, cast):
        leaves = {"h": hidden, "w": weight, "b": shift}
        leaves = {k: cast(x).requires_grad_(k in trains) for k, x in leaves.items() if x is not None}
        token = score(leaves["h"], Head(leaves["w"], leaves.get("b"), *options))
        if token.requires_grad:
            token.backward(upstream.to(token))
        return token.detach(), {k: x.grad for k, x in leaves.items() if x.grad is not None}

    truth, true_grads = run(lambda x, head: oracle.token_logprobs(x, target, head), lambda x: x.double().clone())
    token, grads = run(lambda x, head: token_logprobs(x, target, head, backend), lambda x: x.clone())
    assert token.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (token <= 0).all()
    torch.testing.assert_close(token.double(), truth, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert grads.keys() == true_grads.keys()
    for name, grad in grads.items():
        assert grad.dtype == dtype
        assert (grad.double() - true_grads[name]).norm() <= TOLERANCE[dtype] * max(1.0, true_grads[name].norm().item())


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), max_size=6),
    reduction=st.sampled_from(["sum", "mean", "none"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 10_000),
)
def test_reductions_equal_the_oracles_with_empty_segments(lengths, reduction, dtype, seed):
    hidden, weight, _, target = problem(sum(lengths), 4, 11, dtype=dtype, seed=seed)
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.long))
    results, grads = [], []
    for backend in ("torch", "oracle"):
        leaf = hidden.clone().requires_grad_()
        out = sequence_logprobs(leaf, weight, target, segment, len(lengths), reduction=reduction, backend=backend)
        (out * torch.arange(1, out.numel() + 1)).sum().backward()
        assert out.dtype == dtype
        results.append(out.detach())
        grads.append(leaf.grad)
    assert results[0].shape == ((sum(lengths),) if reduction == "none" else (len(lengths),))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("trains", "bias"), [("h", False), ("h", True), ("w", False), ("hw", False), ("hwb", True)])
def test_gradcheck_in_float64(softcap, trains, bias):
    hidden, weight, shift, target = problem(5, 3, 11, bias=bias)
    leaves = [x.requires_grad_(k in trains) for k, x in (("h", hidden), ("w", weight), ("b", shift)) if x is not None]

    def score(*tensors):
        return token_logprobs(tensors[0], target, Head(*tensors[1:2], *(tensors[2:] or (None,)), 1.5, softcap), SMALL)

    assert gradcheck(score, leaves)


@pytest.mark.parametrize("trains_head", [False, True])
def test_a_second_derivative_is_refused(tiled, trains_head):
    hidden, weight, _, target = problem(3, 4, 5, dtype=torch.float32)
    hidden.requires_grad_()
    weight.requires_grad_(trains_head)
    token = token_logprobs(hidden, target, Head(weight), tiled(3, 5, 2))
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.grad(token.sum(), hidden, create_graph=True)
    assert torch.autograd.grad(token.sum(), hidden)[0].abs().sum() > 0  # refusing did no harm


@pytest.mark.parametrize("trains_head", [False, True])
def test_the_graph_can_be_kept_and_walked_twice(tiled, trains_head):
    hidden, weight, _, target = problem(6, 4, 9, dtype=torch.float32)
    hidden.requires_grad_()
    weight.requires_grad_(trains_head)
    token = token_logprobs(hidden, target, Head(weight), tiled(3, 5, 2))
    token.sum().backward(retain_graph=True)
    once = hidden.grad.clone()
    token.sum().backward()
    assert torch.equal(hidden.grad, 2 * once)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_scores_have_the_same_bits_with_and_without_gradient(tiled, dtype, softcap):
    # A reference scored without gradient must equal the policy it was copied from: DPO starts at exactly log 2.
    n = 12 if tiled.interpreted else 2100
    hidden, weight, _, target = problem(n, 16, 9000, dtype=dtype, size=3.0)
    segment = torch.arange(n) // 100
    runs = []
    for train_hidden, train_weight in ((False, False), (True, False), (True, True), (False, True)):
        h, w = hidden.clone().requires_grad_(train_hidden), weight.clone().requires_grad_(train_weight)
        runs.append(sequence_logprobs(h, w, target, segment, 21, softcap=softcap, backend=tiled.name).detach())
    assert all(torch.equal(runs[0], other) for other in runs[1:])


@pytest.mark.parametrize("trains_head", [False, True])
def test_the_same_input_gives_the_same_bits(tiled, trains_head):
    n = 20 if tiled.interpreted else 300
    hidden, weight, _, target = problem(n, 16, 700, dtype=torch.bfloat16)
    target = target % 7  # many tokens share a target, so that the order of additions matters
    outs = []
    for _ in range(3):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trains_head)
        out = sequence_logprobs(h, w, target, torch.zeros(n, dtype=torch.long), 1, backend=tiled.name)
        out.backward()
        outs.append((out.detach(), h.grad, w.grad if trains_head else h.grad))
    for other in outs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outs[0], other, strict=True))


@pytest.mark.parametrize("trains_head", [False, True])
def test_autocast_changes_nothing(trains_head):
    hidden, weight, _, target = problem(9, 8, 31, dtype=torch.float32)
    segment = torch.zeros(9, dtype=torch.long)
    outs = []
    for enabled in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trains_head)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = sequence_logprobs(h, w, target, segment, 1)
            out.backward()
        outs.append((out.detach(), h.grad))
    assert outs[1][0].dtype == torch.float32
    assert torch.equal(outs[0][0], outs[1][0])
    assert torch.equal(outs[0][1], outs[1][1])


def test_under_no_grad_a_head_in_training_is_scored_without_a_graph():
    hidden, weight, _, target = problem(5, 4, 9)
    weight.requires_grad_()
    with torch.no_grad():
        out = sequence_logprobs(hidden, weight, target, torch.zeros(5, dtype=torch.long), 1)
    assert not out.requires_grad


@pytest.mark.parametrize("trains_head", [False, True])
def test_memory_order_of_the_inputs_does_not_matter(trains_head):
    hidden, weight, _, target = problem(10, 6, 21)
    strided = torch.stack([hidden, -hidden], dim=2)[..., 0]
    transposed = weight.T.contiguous().T
    sparse_rows = weight.repeat_interleave(2, dim=0)[::2]
    assert not strided.is_contiguous()
    assert not transposed.is_contiguous()
    grads = []
    for h, w in ((hidden, weight), (strided, transposed), (strided, sparse_rows)):
        h, w = h.detach().requires_grad_(), w.detach().requires_grad_(trains_head)
        token = token_logprobs(h, target, Head(w), SMALL)
        token.sum().backward()
        grads.append((token.detach(), h.grad, w.grad if trains_head else token.detach()))
    for other in grads[1:]:
        for a, b in zip(grads[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_int32_indices_are_taken():
    hidden, weight, _, target = problem(4, 3, 5)
    segment = torch.tensor([0, 0, 1, 1])
    wide = sequence_logprobs(hidden, weight, target, segment, 2)
    narrow = sequence_logprobs(hidden, weight, target.int(), segment.int(), 2)
    assert torch.equal(wide, narrow)


class Params4bit(torch.Tensor):
    """Named as the quantized parameter of bitsandbytes is."""


class DTensor(torch.Tensor):
    """Named as torch's sharded tensor is."""


BAD = {
    "hidden of three dimensions": ({"hidden": torch.zeros(1, 4, 3)}, "(N, H) and (V, H)"),
    "hidden width": ({"hidden": torch.zeros(4, 2)}, "same H"),
    "empty vocabulary": ({"weight": torch.zeros(0, 3), "target": torch.zeros(4, dtype=torch.long)}, "no rows"),
    "integer hidden": ({"hidden": torch.zeros(4, 3, dtype=torch.long)}, "hidden has dtype int64"),
    "packed weight": ({"weight": torch.zeros(5, 3, dtype=torch.uint8)}, "dequantized"),
    "quantized weight": ({"weight": torch.zeros(5, 3).as_subclass(Params4bit)}, "quantized tensor (Params4bit)"),
    "sharded weight": ({"weight": torch.zeros(5, 3).as_subclass(DTensor)}, "sharded tensor (DTensor)"),
    "other dtype": ({"weight": torch.zeros(5, 3, dtype=torch.bfloat16)}, "weight has dtype bfloat16 but hidden"),
    "other device": ({"weight": torch.zeros(5, 3, device="meta")}, "weight is on meta but hidden is on cpu"),
    "bias shape": ({"bias": torch.zeros(4)}, "bias has shape (4,); it must be (5,)"),
    "target shape": ({"target": torch.zeros(3, dtype=torch.long)}, "target has shape (3,); it must be (4,)"),
    "target dtype": ({"target": torch.zeros(4)}, "target has dtype float32"),
    "target above": ({"target": torch.tensor([0, 1, 5, 2])}, "target holds 5; every entry must be from 0 to 4"),
    "target masked": ({"target": torch.tensor([0, -100, 4, 2])}, "target holds -100"),
    "segment shape": ({"segment": torch.zeros(5, dtype=torch.long)}, "segment has shape (5,)"),
    "segment falls": ({"segment": torch.tensor([0, 1, 0, 1])}, "segment must ascend"),
    "segment above": ({"segment": torch.tensor([0, 1, 1, 2])}, "segment holds 2"),
    "segment below": ({"segment": torch.tensor([-1, 0, 1, 1])}, "segment holds -1"),
    "num_segments": ({"num_segments": -1}, "num_segments is -1"),
    "softcap": ({"softcap": 0.0}, "softcap is 0.0"),
    "softcap nan": ({"softcap": math.nan}, "softcap is nan"),
    "logit_scale": ({"logit_scale": math.inf}, "logit_scale is inf"),
    "reduction": ({"reduction": "means"}, "did you mean 'mean'?"),
    "backend": ({"backend": "cuda"}, "backend is 'cuda'; it must be"),
    "triton": ({"backend": "triton"}, "its kernels need a CUDA GPU; use 'auto' or 'torch'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_argument_is_named_in_a_sentence(name):
    change, message = BAD[name]
    good = {
        "hidden": torch.zeros(4, 3),
        "weight": torch.zeros(5, 3),
        "target": torch.tensor([0, 1, 4, 2]),
        "segment": torch.tensor([0, 0, 1, 1]),
        "num_segments": 2,
    }
    sequence_logprobs(**good)
    with pytest.raises(ValueError) as caught:
        sequence_logprobs(**{**good, **change})
    assert message in str(caught.value)
    assert str(caught.value).endswith(".")
