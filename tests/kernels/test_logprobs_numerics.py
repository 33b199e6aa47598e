"""The fused linear log-prob where arithmetic is hard: the accuracy contract, and traps that have bitten others."""

from __future__ import annotations

import math

import pytest
import torch

from prefopt.kernels import oracle, sequence_logprobs
from prefopt.kernels.head import Head
from prefopt.kernels.logprobs import token_logprobs
from prefopt.kernels.tiles import Tiles, TorchTiles

LOW = [torch.bfloat16, torch.float16, torch.float32]
TILES = TorchTiles(Tiles(rows=64, columns=512, block=32))


def fused(hidden, weight, target):
    return token_logprobs(hidden, target, Head(weight), TILES)


def full_logits(hidden, weight, target):
    """What the contract compares with: full logits in the input's dtype, a float32 log-softmax, autograd."""
    return torch.log_softmax(hidden @ weight.T, -1, dtype=torch.float32).gather(1, target[:, None])[:, 0]


def truth(hidden, weight, target):
    return oracle.token_logprobs(hidden.double(), target, Head(weight.double()))


def run(score, hidden, weight, target, train_weight=False):
    """Return log-probs (N,) and the gradients of their sum, in float64."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_(train_weight)
    token = score(hidden, weight, target)
    grads = torch.autograd.grad(token.sum(), [hidden, weight][: 1 + train_weight])
    return [token.detach().double(), *(g.double() for g in grads)]


def draw(seed, dtype, *, confidence, weight_size, n=128, h=64, v=2001):
    make = torch.Generator().manual_seed(seed)
    weight = torch.randn(v, h, generator=make) * weight_size
    target = torch.randint(0, v, (n,), generator=make)
    hidden = torch.randn(n, h, generator=make) + confidence * weight[target] / weight_size
    return hidden.to(dtype), weight.to(dtype), target


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("weight_size", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("confidence", [0.0, 0.3, 1.0])
def test_logprobs_and_gradients_are_at_least_as_close_to_float64_as_full_logits(dtype, weight_size, confidence):
    squares = torch.zeros(2, 5, dtype=torch.float64)
    for seed in range(6):
        hidden, weight, target = draw(seed, dtype, confidence=confidence, weight_size=weight_size)
        exact = run(truth, hidden.double(), weight.double(), target, train_weight=True)
        frozen, trained = run(fused, hidden, weight, target), run(fused, hidden, weight, target, train_weight=True)
        naive = run(full_logits, hidden, weight, target, train_weight=True)
        # Per token, so that the few tokens with the largest gradients don't stand for all: relative to its own size,
        # with a floor below which float16 has no numbers.
        size = exact[1].norm(dim=1, keepdim=True).clamp(min=1e-4)
        for row, (got, hid, wei) in enumerate(((trained, trained[1], trained[2]), (naive, naive[1], naive[2]))):
            squares[row, 0] += (got[0] - exact[0]).square().sum()
            squares[row, 1] += ((hid - exact[1]) / size).square().sum()
            squares[row, 2] += (wei - exact[2]).square().sum()
        for row, hid in ((0, frozen[1]), (1, naive[1])):
            squares[row, 3] += ((hid - exact[1]) / size).square().sum()
            squares[row, 4] += (hid - exact[1]).square().sum()
    ratio = (squares[0] / squares[1]).sqrt()
    print("error ratios: log-prob, dH trained, dW, dH frozen per token, dH frozen:", [f"{x:.3f}" for x in ratio])
    # 5 %: rounding is luck of the draw. An error of one more rounding to the input's dtype shows as 1.2 to 1.4.
    assert (ratio < 1.05).all(), ratio


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("train_weight", [False, True])
def test_a_confident_token_keeps_its_gradient(dtype, train_weight):
    # Logit gaps of 17.5 to 19: 1 - p is below float32's 6e-8, so 1 - p and W_y - sum p W would be 0.
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).to(dtype)
    hidden = torch.tensor([[18.0, 0.5], [20.0, 1.0], [19.0, -0.25]]).to(dtype)
    target = torch.zeros(3, dtype=torch.long)
    token, grad, *_ = run(fused, hidden, weight, target, train_weight)
    exact_token, exact_grad = run(truth, hidden.double(), weight.double(), target)
    assert (exact_token > -6e-8).all()
    torch.testing.assert_close(token, exact_token, rtol=1e-5, atol=0)
    floor = {torch.float16: 6e-8}.get(dtype, 0)
    torch.testing.assert_close(grad, exact_grad, rtol=1e-2, atol=floor)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_the_confident_tokens_of_a_large_vocabulary_have_small_errors_one_by_one(dtype):
    # The naive difference W_y - sum p W is wrong by 134 % on its worst such token in bfloat16.
    hidden, weight, target = draw(3, dtype, confidence=1.2, weight_size=0.15, n=128, v=5000)
    exact, got = (run(score, hidden, weight, target)[1] for score in (truth, fused))
    size = exact.norm(dim=1)
    keep = size > (1e-4 if dtype == torch.float16 else 1e-12)
    assert keep.sum() > 50
    error = ((got - exact).norm(dim=1) / size)[keep]
    worst = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 1e-5}[dtype]
    assert error.max() < worst


def test_partial_sums_do_not_drift_in_bfloat16():
    # 262,144 equal logits: each probability is below half a bfloat16 unit of the sum after 256 of them.
    v = 262_144
    hidden, weight = torch.zeros(2, 4, dtype=torch.bfloat16), torch.ones(v, 4, dtype=torch.bfloat16)
    got = sequence_logprobs(hidden, weight, torch.tensor([0, v - 1]), torch.tensor([0, 1]), 2)
    assert got.tolist() == pytest.approx([-math.log(v)] * 2, rel=1e-6)


def test_the_gradient_accumulates_many_tiles_without_drift_in_bfloat16():
    # Uniform p over 65,536 words, W all ones but the target's 3: the gradient is 3 - (1 - 1/V) - 3/V = 2 - 2/V.
    v = 65_536
    weight = torch.ones(v, 2, dtype=torch.bfloat16)
    weight[5] = 3
    hidden = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    backend = TorchTiles(Tiles(rows=1, columns=64, block=1))
    token_logprobs(hidden, torch.tensor([5]), Head(weight), backend).sum().backward()
    assert hidden.grad.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("dtype", [*LOW, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [-3e4, 3e4])
@pytest.mark.parametrize("train_weight", [False, True])
def test_logits_far_from_zero_stay_numbers(dtype, offset, train_weight):
    # Every logit is offset + {0, 16, 32}; float16 and bfloat16 hold these three as multiples of 16 or round them to 0.
    bias = (offset + torch.tensor([0.0, 16.0, 32.0])).to(dtype)
    logits = bias.double()
    hidden, weight = torch.zeros(3, 2, dtype=dtype, requires_grad=True), torch.ones(3, 2, dtype=dtype)
    weight.requires_grad_(train_weight)
    target = torch.arange(3)
    token = token_logprobs(hidden, target, Head(weight, bias), TorchTiles(Tiles(2, 2, 1)))
    token.sum().backward()
    torch.testing.assert_close(token.detach().double(), torch.log_softmax(logits, 0), rtol=1e-6, atol=1e-6)
    assert hidden.grad.isfinite().all()


def test_huge_logits_in_float32():
    hidden = torch.tensor([[1e30, -1e30]], requires_grad=True)
    each = [sequence_logprobs(hidden, torch.eye(2), torch.tensor([y]), torch.tensor([0]), 1) for y in (0, 1)]
    assert each[0].item() == 0
    assert each[1].item() == pytest.approx(-2e30)
    each[1].backward()
    assert hidden.grad.tolist() == [[-1.0, 1.0]]


@pytest.mark.parametrize("train_weight", [False, True])
def test_a_vocabulary_padded_with_minus_infinity(train_weight):
    hidden, weight, target = draw(0, torch.float32, confidence=0.0, weight_size=0.2, n=8, h=4, v=10)
    bias = torch.zeros(10)
    bias[7:] = -torch.inf
    target = target % 7
    wide = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(train_weight)]
    token = token_logprobs(wide[0], target, Head(wide[1], bias), TorchTiles(Tiles(8, 3, 8)))
    token.sum().backward()
    exact = run(truth, hidden, weight[:7], target)
    torch.testing.assert_close(token.detach().double(), exact[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(wide[0].grad.double(), exact[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_logprob_is_never_positive(dtype):
    for seed in range(20):
        hidden, weight, target = draw(seed, dtype, confidence=0.1 * seed, weight_size=0.3, n=64, h=16, v=700)
        assert (fused(hidden, weight, target) <= 0).all()


@pytest.mark.parametrize("v", [511, 512, 513, 1024, 1025])
@pytest.mark.parametrize("train_weight", [False, True])
def test_the_vocabularys_tail_and_a_target_in_it(v, train_weight):
    # All logits are -8: a tail filled up with zeros would take all of the probability.
    hidden, weight = torch.full((3, 2), -4.0), torch.ones(v, 2)
    target = torch.tensor([v - 1, 0, v - 1])
    token, grad, *rest = run(fused, hidden, weight, target, train_weight)
    exact = run(truth, hidden.double(), weight.double(), target, train_weight)
    torch.testing.assert_close(token, exact[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, exact[1], rtol=0, atol=1e-5)
    for a, b in zip(rest, exact[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("train_weight", [False, True])
def test_a_vocabulary_of_one_word_is_certain(train_weight):
    token, *grads = run(fused, torch.randn(3, 4), torch.randn(1, 4), torch.zeros(3, dtype=torch.long), train_weight)
    assert token.tolist() == [0, 0, 0]
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("train_weight", [False, True])
def test_no_tokens_give_zero_sums_and_zero_gradients(train_weight):
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(5, 4, requires_grad=train_weight)
    none = torch.zeros(0, dtype=torch.long)
    out = sequence_logprobs(hidden, weight, none, none, 2)
    out.sum().backward()
    assert out.tolist() == [0, 0]
    assert hidden.grad.shape == (0, 4)
    assert not train_weight or (weight.grad == 0).all()
    assert sequence_logprobs(hidden, weight, none, none, 0).shape == (0,)


def test_a_saturated_softcap_has_no_gradient_and_a_finite_value():
    hidden = torch.tensor([[1e4, -1e4]], requires_grad=True)
    out = sequence_logprobs(hidden, torch.eye(2), torch.tensor([1]), torch.tensor([0]), 1, softcap=30.0)
    out.backward()
    assert out.item() == pytest.approx(-60.0)
    assert hidden.grad.tolist() == [[0.0, 0.0]]


def test_a_nan_is_not_hidden():
    hidden = torch.tensor([[1.0, math.nan], [1.0, 1.0]])
    token = fused(hidden, torch.eye(2), torch.tensor([0, 0]))
    assert token.isnan().tolist() == [True, False]


def test_long_sums_do_not_lose_tokens_in_float32():
    # 100,000 tokens at log(1/3): summed in float32 one by one this is wrong in the fifth digit.
    n = 100_000
    hidden, weight = torch.zeros(n, 1), torch.ones(3, 1)
    out = sequence_logprobs(hidden, weight, torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long), 1)
    assert out.item() == pytest.approx(-n * math.log(3), rel=2e-7)
