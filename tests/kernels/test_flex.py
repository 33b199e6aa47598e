"""The block mask against the definition, entry by entry, and FlexAttention by it against dense attention."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.kernels import flex
from prefopt.kernels.attention import shared_prompt_attention
from prefopt.records import Layout
from tests.kernels.test_attention import CALLER, SHAPES, WINDOWS, brute_force_mask, dense, inputs

CPU = torch.device("cpu")


def realised(mask, block):
    """(T, T) bool: what the block mask lets through, and whether each block is skipped, masked or full (0, 1, 2)."""
    tokens = mask.seq_lengths[0]
    at = torch.arange(tokens)
    entries = mask.mask_mod(0, 0, at[:, None], at[None])
    kinds = torch.zeros(tokens // block, tokens // block, dtype=torch.long)
    tables = ((mask.kv_num_blocks, mask.kv_indices, 1), (mask.full_kv_num_blocks, mask.full_kv_indices, 2))
    for counts, indices, kind in tables:
        for row, count in enumerate(counts[0, 0].tolist()):
            kinds[row, indices[0, 0, row, :count].long()] = kind
    wide = kinds.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return (wide == 2) | ((wide == 1) & entries), kinds


BLOCKS = st.sampled_from([1, 2, 4, 16])


@settings(max_examples=500, deadline=None)
@given(SHAPES, WINDOWS, BLOCKS)
def test_the_block_mask_is_the_definition_entry_by_entry(shape, window, block):
    check_block_mask(shape, window, block)


@pytest.mark.soak
@settings(max_examples=20_000, deadline=None)
@given(SHAPES, WINDOWS, BLOCKS)
def test_no_block_mask_is_another_than_the_definition(shape, window, block):
    check_block_mask(shape, window, block)


def check_block_mask(shape, window, block):
    layout = Layout.of(shape)
    mask = flex.build_block_mask(layout, window, CPU, block)
    allowed, kinds = realised(mask, block)
    tokens = layout.tokens
    assert mask.seq_lengths == (len(allowed),) * 2
    assert len(allowed) == -(-tokens // block) * block
    assert torch.equal(allowed[:tokens, :tokens], brute_force_mask(shape, window))
    assert not allowed[:tokens, tokens:].any()
    assert not allowed[tokens:, :tokens].any()
    assert allowed.any(1).all()  # no row of padding is without a key, which would make it NaN
    some = allowed.view(len(kinds), block, len(kinds), block).any(3).any(1)
    assert torch.equal(kinds > 0, some)  # nothing is computed for nothing


def test_long_sequences_are_mostly_full_blocks_or_none():
    layout = Layout.of([(1024, [512, 512]), (700, [300, 40])])
    _, kinds = realised(flex.build_block_mask(layout, None, CPU), 128)
    assert (kinds[:8, :8] == 2).sum() == 28  # the prompt's 8 x 8 blocks: 28 below the diagonal
    assert (kinds[8:12, :8] == 2).all()
    assert (kinds[12:16, 8:12] == 0).all()  # siblings
    assert (kinds > 0).float().mean() < 0.4


@settings(max_examples=60, deadline=None)
@given(
    SHAPES,
    WINDOWS,
    st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    st.none() | st.floats(0.5, 4),
    st.booleans(),
    st.integers(0, 1000),
)
def test_outputs_are_those_of_dense_attention(shape, window, heads, cap, with_sinks, seed):
    torch.manual_seed(seed)
    layout = Layout.of(shape)
    tensors = [x.detach() for x in inputs(layout.tokens, *heads, value_size=5)]
    sinks = torch.randn(heads[0], dtype=torch.float64) if with_sinks else None
    mask = flex.build_block_mask(layout, window, CPU, 16)
    out = flex.attend(*tensors, mask, scale=0.7, softcap=cap, sinks=sinks, compiled=False)
    expected = dense(*tensors, brute_force_mask(shape, window), 0.7, cap, sinks)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)  # torch's reference works in float32


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_it_is_the_same():
    # For a CPU, where it compiles the forward pass only: the mask function and its tensors are what is tried.
    for shape in ([(100, [40, 37]), (45, [33] * 4)], [(60, [140, 37]), (45, [33] * 5)]):
        layout = Layout.of(shape)
        tensors = [x.detach() for x in inputs(layout.tokens, 4, 2, size=16, value_size=16, dtype=torch.float32)]
        out = flex.attend(*tensors, flex.build_block_mask(layout, 50, CPU), scale=0.3)
        torch.testing.assert_close(out, dense(*tensors, brute_force_mask(shape, 50), 0.3, None, None))


def test_a_cpu_has_no_use_for_it():
    assert flex.unavailable(CPU) == "it is made for CUDA GPUs, not for cpu"


def test_whether_it_works_is_found_out_where_nothing_is_differentiated_too(monkeypatch):
    def attend(query, key, value, mask, **options):
        return query + key + value

    monkeypatch.setattr(flex, "attend", attend)
    with torch.no_grad():
        assert flex._fails.__wrapped__(CPU) == ""
    monkeypatch.setattr(flex, "attend", lambda *a, **k: 1 / 0)
    assert flex._fails.__wrapped__(CPU) == "it can't be compiled here (ZeroDivisionError)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention is compiled for a CUDA GPU")
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_outputs_and_gradients_on_a_gpu(window, cap, with_sinks):
    torch.manual_seed(0)
    shape = [(300, [120, 77]), (45, [33] * 4)]
    layout = Layout.of(shape)
    tensors = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in inputs(
        layout.tokens, 6, 2, size=64, value_size=64, dtype=torch.float32)]  # fmt: skip
    sinks = torch.randn(6, device="cuda", dtype=torch.bfloat16, requires_grad=True) if with_sinks else None
    out, _ = shared_prompt_attention(
        CALLER, *tensors, None, layout=layout, scaling=0.3, sliding_window=window, softcap=cap, s_aux=sinks
    )
    assert any(name[0] == "flex" for name in layout.plans if isinstance(name, tuple))
    exact = [x.detach().double().requires_grad_() for x in tensors]
    exact_sinks = None if sinks is None else sinks.detach().double().requires_grad_()
    truth = dense(*exact, brute_force_mask(shape, window).cuda(), 0.3, cap, exact_sinks)
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, [*tensors, *([] if sinks is None else [sinks])], upstream)
    wanted = torch.autograd.grad(truth, [*exact, *([] if sinks is None else [exact_sinks])], upstream.double())
    for mine, true in zip([out, *found], [truth, *wanted], strict=True):
        assert ((mine.double() - true).norm() / true.norm()).item() < 0.02
