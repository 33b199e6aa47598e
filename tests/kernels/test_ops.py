"""The operators that torch's compiler takes whole: their declarations, whole graphs, CUDA graphs, same bits."""

from __future__ import annotations

import pytest
import torch

from prefopt.kernels import ops, policy_reference_logprobs, sequence_logprobs, token_statistics
from tests.kernels.problems import problem

SEGMENT = [0, 0, 1, 1, 1, 3]


def inputs(dtype=torch.float32, trains_head=False):
    hidden, weight, bias, target = problem(6, 8, 41, dtype=dtype, bias=True)
    segment = torch.tensor(SEGMENT, device=hidden.device)
    tensors = (hidden.requires_grad_(), weight.requires_grad_(trains_head), bias.requires_grad_(trains_head))
    return tensors, target, segment


def completions(hidden, weight, bias, target, segment):
    return sequence_logprobs(hidden, weight, target, segment, 4, bias=bias, softcap=20.0, logit_scale=0.5)


def both(hidden, weight, bias, target, segment):
    found = policy_reference_logprobs(hidden, hidden * 0.9, weight, target, segment, 4, bias=bias, reduction="mean")
    return found.policy - found.reference


def with_gradients(function, tensors, target, segment):
    """Return the value and the gradients of a sum in which every completion counts differently."""
    value = function(*tensors, target, segment)
    factor = torch.arange(1.0, 5.0, device=value.device)
    leaves = [x for x in tensors if x.requires_grad]
    return value.detach(), *torch.autograd.grad((value * factor).sum(), leaves)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("trains", [(), (0,), (0, 2, 3), (2,), (3,)])
@pytest.mark.parametrize("op", [ops.token_scores, ops.token_directions])
def test_declarations_hold(op, trains, reference):
    hidden, weight, bias, target = problem(5, 4, 11, dtype=torch.float64, bias=True)
    if op is ops.token_directions and trains not in ((), (0,)):
        pytest.skip("it is for frozen heads")
    given = [hidden, hidden.clone() if reference else None, weight, bias, target, 0.5, 3.0, "torch 2 4 1"]
    torch.library.opcheck(op, [x.requires_grad_() if place in trains else x for place, x in enumerate(given)])


def test_declarations_of_what_has_no_gradient_hold():
    hidden, weight, bias, target = problem(5, 4, 11, dtype=torch.bfloat16, bias=True)
    *scores, _ = ops.token_scores(hidden, None, weight, bias, target, 0.5, 3.0, "torch")
    upstream = torch.ones(5)
    for needs in ([True, True, True], [False, True, False], [True, False, True]):
        given = (hidden, weight, bias, target, 0.5, 3.0, "torch", scores, upstream, needs)
        torch.library.opcheck(ops.head_gradients, given)
    torch.library.opcheck(ops.token_statistics, (hidden, weight, bias, target, 0.5, 3.0, "torch"))
    torch.library.opcheck(ops.scale_rows, (torch.ones(5, 4), upstream, torch.bfloat16, "torch"))
    torch.library.opcheck(ops.checked_indices, (target.int(), torch.zeros_like(target), 11, 1))


@pytest.mark.parametrize("trains_head", [False, True])
@pytest.mark.parametrize("function", [completions, both])
def test_the_compiler_takes_it_in_one_graph(function, trains_head):
    tensors, target, segment = inputs(trains_head=trains_head)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = with_gradients(function, tensors, target, segment)
    found = with_gradients(compiled, tensors, target, segment)
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_a_backend_by_name_goes_into_a_graph(tiled):
    hidden, weight, _, target = problem(6, 8, 41, dtype=torch.float32)
    segment = torch.tensor(SEGMENT, device=hidden.device)

    def scored(hidden):
        return sequence_logprobs(hidden, weight, target, segment, 4, backend=tiled.name)

    torch.compiler.reset()
    found = torch.compile(scored, fullgraph=True, backend="aot_eager")(hidden)
    torch.testing.assert_close(found, scored(hidden))


def test_sizes_and_numbers_may_change_between_calls_of_a_graph():
    weight, target = problem(1, 8, 41, dtype=torch.float32)[1], torch.arange(9)

    def scored(hidden, scale, cap):
        n = hidden.shape[0]
        return sequence_logprobs(hidden, weight, target[:n], target[:n] // 2, 5, logit_scale=scale, softcap=cap)

    torch.compiler.reset()
    compiled = torch.compile(scored, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, scale, cap in ((6, 1.0, 20.0), (9, 0.5, 20.0), (3, 0.25, 5.0)):
        hidden = problem(n, 8, 41, dtype=torch.float32)[0].requires_grad_()
        values = [f(hidden, scale, cap) for f in (compiled, scored)]
        grads = [torch.autograd.grad(value.sum(), hidden)[0] for value in values]
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*grads)


def test_statistics_go_into_a_graph():
    hidden, weight, bias, target = problem(6, 8, 41, dtype=torch.float32, bias=True)

    def statistics(hidden):
        return token_statistics(hidden, weight, target, bias=bias)

    torch.compiler.reset()
    found = torch.compile(statistics, fullgraph=True, backend="aot_eager")(hidden.requires_grad_())
    for mine, theirs in zip(found, statistics(hidden), strict=True):
        assert not mine.requires_grad
        torch.testing.assert_close(mine, theirs)


def test_a_wrong_target_is_named_from_a_compiled_graph_too():
    tensors, target, segment = inputs()
    compiled = torch.compile(completions, fullgraph=True, backend="aot_eager")
    compiled(*tensors, target, segment)
    with pytest.raises(ValueError, match="target holds 41"):
        compiled(*tensors, target + (41 - target) * (torch.arange(6) == 3), segment)


# ---- on a GPU ----


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


@pytest.mark.gpu
@pytest.mark.parametrize("trains_head", [False, True])
def test_compiled_for_a_gpu(gpu, trains_head):
    tensors, target, segment = inputs(torch.bfloat16, trains_head)
    torch.compiler.reset()
    compiled = torch.compile(completions, fullgraph=True)
    expected = with_gradients(completions, tensors, target, segment)
    for mine, theirs in zip(with_gradients(compiled, tensors, target, segment), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("trains_head", [False, True])
def test_a_cuda_graph_replays_it(gpu, trains_head):
    tensors, target, segment = inputs(torch.bfloat16, trains_head)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # kernels are compiled, and the allocator has its memory, before the capture
        for _ in range(3):
            with_gradients(completions, tensors, target, segment)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = with_gradients(completions, tensors, target, segment)
    with torch.no_grad():
        tensors[0].mul_(-1.5)
        target.copy_((target + 7) % 41)
    graph.replay()
    for mine, theirs in zip(captured, with_gradients(completions, tensors, target, segment), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("trains_head", [False, True])
def test_same_bits_every_time_on_a_gpu(gpu, trains_head):
    hidden, weight, _, target = problem(700, 96, 20_011, dtype=torch.bfloat16)
    segment = torch.arange(700, device=hidden.device) // 50
    tensors = hidden.requires_grad_(), weight.requires_grad_(trains_head)

    def run():
        value = sequence_logprobs(*tensors, target, segment, 14)
        return value.detach(), *torch.autograd.grad(value.sum(), [x for x in tensors if x.requires_grad])

    first = run()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
