"""The kernel that scores without a logit in memory: against the oracle, and where arithmetic is hard."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefopt.kernels import oracle, policy_reference_logprobs, sequence_logprobs, token_statistics
from prefopt.kernels.head import Head
from tests.kernels.problems import INTERPRETED, TOLERANCE, draw, full_logits, problem, truth

triton = pytest.importorskip("triton")
BLOCKS = {"ROWS": 16, "COLUMNS": 16, "DEPTH": 16, "WHOLE": False}
LOW = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture
def kernel():
    """Scores by the kernel in blocks of a given shape, on a GPU as the default device or interpreted."""
    from prefopt.kernels.triton_fused import FusedScores

    if INTERPRETED:
        yield FusedScores
        return
    if not torch.cuda.is_available():
        pytest.skip("Triton's kernels need a CUDA GPU, or TRITON_INTERPRET=1")
    torch.set_default_device("cuda")
    yield FusedScores
    torch.set_default_device(None)


def check(kernel, hidden, head, target, dtype, blocks=None):
    found = kernel(blocks).score(hidden, target, head)
    exact = oracle.token_logprobs(hidden, target, head)
    assert found.logprob.dtype == torch.float32
    assert (found.logprob <= 0).all()
    torch.testing.assert_close(found.logprob.double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(found.miss.double(), -torch.expm1(exact), rtol=1e-3, atol=1e-9)
    return found


@pytest.mark.triton
@settings(
    max_examples=20 if INTERPRETED else 100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    size=st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(1, 70)),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    options=st.tuples(st.sampled_from([1.0, 0.25, -2.0]), st.sampled_from([None, 0.7, 30.0])),
    bias=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_scores_equal_the_oracles_whatever_the_blocks_divide(kernel, size, dtype, options, bias, seed):
    hidden, weight, shift, target = problem(*size, dtype=dtype, bias=bias, seed=seed)
    check(kernel, hidden, Head(weight, shift, *options), target, dtype, BLOCKS)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("size", [(20, 64, 300), (5, 40, 130)], ids=str)
def test_the_blocks_that_ship_score_as_the_oracle_does(kernel, dtype, size):
    # The first size has blocks without masks in 16 bits, the second with them.
    hidden, weight, shift, target = problem(*size, dtype=dtype, bias=True)
    check(kernel, hidden, Head(weight, shift, 1.0, 5.0), target, dtype)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_scores_are_at_least_as_close_to_float64_as_full_logits(kernel, dtype):
    hidden, weight, target = draw(0, dtype, confidence=0.3, weight_size=0.1, n=48, v=700)
    exact = truth(hidden, weight, target)
    squares = [
        (found.double() - exact).square().mean()
        for found in (kernel().score(hidden, target, Head(weight)).logprob, full_logits(hidden, weight, target))
    ]
    assert squares[0] <= 1.1 * squares[1]


@pytest.mark.triton
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_token_that_the_model_is_sure_of_keeps_its_digits(kernel, dtype):
    # Logit gaps of 17.5 to 19: 1 - p is below float32's 6e-8.
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).to(dtype)
    hidden = torch.tensor([[18.0, 0.5], [20.0, 1.0], [19.0, -0.25]]).to(dtype)
    found = kernel().score(hidden, torch.zeros(3, dtype=torch.long), Head(weight))
    exact = oracle.token_logprobs(hidden, torch.zeros(3, dtype=torch.long), Head(weight))
    assert (exact > -6e-8).all()
    torch.testing.assert_close(found.logprob.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.miss.double(), -torch.expm1(exact), rtol=1e-5, atol=0)


@pytest.mark.triton
@pytest.mark.parametrize("offset", [-3e4, 3e4])
def test_logits_far_from_zero_stay_numbers(kernel, offset):
    bias = offset + torch.arange(40.0)
    hidden, weight, target = torch.zeros(40, 2), torch.ones(40, 2), torch.arange(40)
    check(kernel, hidden, Head(weight, bias), target, torch.float32, BLOCKS)


@pytest.mark.triton
@pytest.mark.parametrize("v", [1, 2, 15, 16, 17, 33])
def test_the_vocabularys_tail_and_targets_at_its_edges(kernel, v):
    # All logits are -8: a tail filled up with zeros would take all of the probability.
    hidden, weight = torch.full((3, 2), -4.0), torch.ones(v, 2)
    found = check(kernel, hidden, Head(weight), torch.tensor([v - 1, 0, v - 1]), torch.float32, BLOCKS)
    assert found.logprob.tolist() == pytest.approx([-math.log(v)] * 3, rel=1e-6)


@pytest.mark.triton
def test_splits_in_which_nothing_can_be_said_count_for_nothing(kernel):
    # Tiles of -inf before, between and after the others; a target alone in its tile and one that can't be said.
    hidden, weight, _, _ = problem(3, 4, 80, dtype=torch.float32)
    bias = torch.full((80,), -math.inf)
    bias[16:20] = bias[48] = 0.0
    target = torch.tensor([17, 48, 79])
    found = kernel(BLOCKS).score(hidden, target, Head(weight, bias))
    exact = oracle.token_logprobs(hidden, target, Head(weight, bias))
    torch.testing.assert_close(found.logprob.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_logprob_is_never_positive(kernel, dtype):
    for seed in range(0, 20, 5):
        hidden, weight, target = draw(seed, dtype, confidence=0.1 * seed, weight_size=0.3, n=10, h=16, v=300)
        assert (kernel().score(hidden, target, Head(weight)).logprob <= 0).all()


@pytest.mark.triton
def test_sums_over_a_large_vocabulary_do_not_drift_in_bfloat16(kernel):
    v = 65_536
    hidden, weight = torch.zeros(2, 4, dtype=torch.bfloat16), torch.ones(v, 4, dtype=torch.bfloat16)
    wide = {**BLOCKS, "COLUMNS": 4096}
    got = kernel(wide if INTERPRETED else None).score(hidden, torch.tensor([0, v - 1]), Head(weight)).logprob
    assert got.tolist() == pytest.approx([-math.log(v)] * 2, rel=1e-6)


@pytest.mark.triton
def test_a_nan_is_not_hidden(kernel):
    hidden = torch.tensor([[1.0, math.nan], [1.0, 1.0]])
    token = kernel(BLOCKS).score(hidden, torch.tensor([0, 0]), Head(torch.eye(2)))
    assert token.logprob.isnan().tolist() == [True, False]


@pytest.mark.triton
def test_memory_order_of_the_inputs_does_not_matter(kernel):
    hidden, weight, shift, target = problem(20, 24, 50, dtype=torch.float32, bias=True)
    plain = kernel(BLOCKS).score(hidden, target, Head(weight, shift))
    strided = torch.stack([hidden, -hidden], dim=2)[..., 0]
    for w in (weight.T.contiguous().T, weight.repeat_interleave(2, dim=0)[::2]):
        bias, ids = torch.stack([shift, -shift], 1)[:, 0], torch.stack([target, target.flip(0)], 1)[:, 0]
        assert torch.equal(kernel(BLOCKS).score(strided, ids, Head(w, bias)).logprob, plain.logprob)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_the_same_input_gives_the_same_bits(kernel, dtype):
    hidden, weight, _, target = problem(20, 16, 700, dtype=dtype)
    runs = [kernel().score(hidden, target % 7, Head(weight)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.triton
def test_completions_are_scored_by_name_and_nothing_is_scored_as_nothing(kernel):
    hidden, weight, _, target = problem(6, 8, 30, dtype=torch.float32)
    segment = torch.tensor([0, 0, 0, 1, 1, 1])
    found = sequence_logprobs(hidden, weight, target, segment, 2, backend="fused")
    exact = sequence_logprobs(hidden, weight, target, segment, 2, backend="oracle")
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    none = segment[:0]
    assert sequence_logprobs(hidden[:0], weight, none, none, 2, backend="fused").tolist() == [0, 0]


@pytest.mark.triton
@pytest.mark.parametrize("trains", ["hidden", "weight", "bias"])
def test_more_than_scores_is_refused_in_a_sentence(kernel, trains):
    hidden, weight, bias, target = problem(3, 4, 5, dtype=torch.float32, bias=True)
    {"hidden": hidden, "weight": weight, "bias": bias}[trains].requires_grad_()
    zero = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"scores alone, and was asked for a gradient.*; use 'auto' or 'triton'"):
        sequence_logprobs(hidden, weight, target, zero, 1, bias=bias, backend="fused")
    with torch.no_grad():
        sequence_logprobs(hidden, weight, target, zero, 1, bias=bias, backend="fused")
    with pytest.raises(ValueError, match="gives scores alone, and was asked for statistics; use"):
        token_statistics(hidden, weight, target, bias=bias, backend="fused")
    if trains == "hidden":
        with pytest.raises(ValueError, match="was asked for a gradient"):
            kernel().score_with_direction(hidden, target, Head(weight, bias))
    with pytest.raises(ValueError, match="was asked for two models in one sweep"):
        policy_reference_logprobs(hidden, hidden, weight, target, zero, 1, bias=bias, backend="fused")


@pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 lets the kernel run anywhere")
def test_why_it_is_not_there_is_said():
    hidden, weight, _, target = problem(3, 4, 5, dtype=torch.float32)
    zero = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="backend is 'fused', but hidden is on cpu and its kernels need a CUDA GPU"):
        sequence_logprobs(hidden.cpu(), weight.cpu(), target.cpu(), zero.cpu(), 1, backend="fused")
    with pytest.raises(ValueError, match="backend is 'fused', but its kernels compute in float32"):
        sequence_logprobs(hidden.double(), weight.double(), target, zero, 1, backend="fused")


@pytest.mark.parametrize("tokens", [1, 4096, 1_000_000])
@pytest.mark.parametrize("vocabulary", [1, 49_152, 262_145])
def test_splits_cover_the_vocabulary_and_keep_a_gpu_busy(tokens, vocabulary):
    from prefopt.kernels.triton_fused import PROGRAMS, SQUARE, share_of_a_split

    share = share_of_a_split(tokens, vocabulary, SQUARE)
    splits, row_blocks, tiles = (-(-a // b) for a, b in ((vocabulary, share), (tokens, 128), (vocabulary, 128)))
    assert share % SQUARE["COLUMNS"] == 0
    assert (splits - 1) * share < vocabulary <= splits * share
    assert splits * row_blocks >= min(tiles * row_blocks, PROGRAMS) / 2
    assert splits * tokens <= max(tokens, 2 * PROGRAMS * 128)  # few numbers, whatever the sizes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="products of tensor cores need a CUDA GPU")
@pytest.mark.parametrize("size", [(300, 512, 20_000), (4097, 576, 49_152), (33, 100, 5000)], ids=str)
@pytest.mark.parametrize("options", [(1.0, None), (0.5, 30.0)], ids=str)
def test_scores_on_a_gpu_in_bfloat16(kernel, size, options):
    hidden, weight, shift, target = problem(*size, dtype=torch.bfloat16, bias=options[1] is not None)
    found = kernel().score(hidden, target, Head(weight, shift, *options)).logprob
    exact = oracle.token_logprobs(hidden, target, Head(weight, shift, *options))
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    assert torch.equal(kernel().score(hidden, target, Head(weight, shift, *options)).logprob, found)
