from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefopt.errors import ModelError
from prefopt.kernels import attention, attention_plan
from prefopt.kernels.attention import SHARED_PROMPT, register, shared_prompt_attention
from prefopt.kernels.shapes import COUNTS, rounded
from prefopt.records import Layout

Shape = Sequence[tuple[int, Sequence[int]]]

SHAPES = st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 8), max_size=5)), min_size=1, max_size=4)
WINDOWS = st.none() | st.integers(1, 12)
CALLER = torch.nn.Identity()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut sequences above 7 tokens into chunks of 3, so that tiny layouts see what long ones do."""
    monkeypatch.setattr(attention_plan, "_LONG", 6)
    monkeypatch.setattr(attention_plan, "_CHUNK", 3)


def brute_force_mask(shape: Shape, window: int | None) -> Tensor:
    """(T, T) bool from the definition: own prompt or own sequence, not ahead, not further back than the window."""
    group, sequence, position = [], [], []
    for g, (prompt, completions) in enumerate(shape):
        group += [g] * (prompt + sum(completions))
        sequence += [-1] * prompt + [c for c, length in enumerate(completions) for _ in range(length)]
        position += [*range(prompt), *(prompt + i for length in completions for i in range(length))]
    g, s, p = (torch.tensor(x) for x in (group, sequence, position))
    related = (g[:, None] == g) & ((s == -1) | (s[:, None] == s))
    distance = p[:, None] - p
    return related & (distance >= 0) & (distance < (window or 10**9))


def dense(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, cap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attention as eager transformers computes it, softmax in at least float32: (1, T, Hq, Dv)."""
    fold = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(fold, 1), value.repeat_interleave(fold, 1)
    scores = query @ key.transpose(2, 3) * scale
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(-1, -1, scores.shape[2], 1)], -1)
    probs = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return (probs[..., : value.shape[2]] @ value).transpose(1, 2)


def inputs(
    tokens: int, heads: int, kv_heads: int, *, size: int = 5, value_size: int = 3, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    def draw(h: int, d: int) -> Tensor:
        return torch.randn(1, tokens, h, d, dtype=dtype).transpose(1, 2).requires_grad_()

    return [draw(heads, size), draw(kv_heads, size), draw(kv_heads, value_size)]


def realised_mask(shape: Shape, window: int | None) -> Tensor:
    """What the attention looked at: equal scores, and values that name their token."""
    layout = Layout.of(shape)
    zero = torch.zeros(1, 1, layout.tokens, 1, dtype=torch.float64)
    names = torch.eye(layout.tokens, dtype=torch.float64)[None, None]
    out, _ = shared_prompt_attention(CALLER, zero, zero, names, None, layout=layout, sliding_window=window)
    return out[0, :, 0]


@settings(max_examples=2000, deadline=None)
@given(SHAPES, WINDOWS)
def test_every_token_sees_its_own_prompt_and_itself_evenly_and_nothing_else(shape: Shape, window: int | None) -> None:
    allowed = brute_force_mask(shape, window).double()
    expected = allowed / allowed.sum(1, keepdim=True)
    torch.testing.assert_close(realised_mask(shape, window), expected, rtol=0, atol=1e-14)


@settings(max_examples=200, deadline=None)
@given(SHAPES, WINDOWS, st.booleans())
def test_tiles_of_few_shapes_see_the_same(shape: Shape, window: int | None, sinks: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_plan, "compiles_by_shape", lambda device, dtype: True)
        allowed = brute_force_mask(shape, window).double()
        expected = allowed / allowed.sum(1, keepdim=True)
        torch.testing.assert_close(realised_mask(shape, window), expected, rtol=0, atol=1e-14)
        plan = attention_plan.build_plan(
            Layout.of(shape), heads=2, kv_heads=1, window=window, sinks=sinks, device=torch.device("cpu"),
            dtype=torch.float64,
        )  # fmt: skip
    for tile in plan.tiles:
        batch, _, _, queries, width = tile.shape
        assert batch in COUNTS
        assert (queries, width) == (rounded(queries), rounded(width))


@settings(max_examples=100, deadline=None)
@given(
    SHAPES,
    WINDOWS,
    st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    st.none() | st.floats(0.5, 4),
    st.booleans(),
    st.sampled_from([0, 100]),
    st.integers(0, 1000),
)
def test_outputs_and_gradients_are_those_of_dense_attention(
    shape: Shape,
    window: int | None,
    heads: tuple[int, int],
    cap: float | None,
    with_sinks: bool,
    keep: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    layout = Layout.of(shape)
    tensors = inputs(layout.tokens, *heads)
    sinks = torch.randn(heads[0], dtype=torch.float64, requires_grad=True) if with_sinks else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_KEEP", keep)  # probabilities computed again, or kept
        out, weights = shared_prompt_attention(
            CALLER, *tensors, None, layout=layout, scaling=0.7, sliding_window=window, softcap=cap, s_aux=sinks
        )
    expected = dense(*tensors, brute_force_mask(shape, window), 0.7, cap, sinks)
    assert weights is None
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    leaves = [*tensors, *([] if sinks is None else [sinks])]
    upstream = torch.randn_like(out)
    for found, wanted in zip(
        torch.autograd.grad(out, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-11)


def test_the_default_scale_is_that_of_the_head_size() -> None:
    shape = [(4, [3, 2])]
    tensors = inputs(9, 2, 1)
    out, _ = shared_prompt_attention(CALLER, *tensors, None, layout=Layout.of(shape))
    torch.testing.assert_close(out, dense(*tensors, brute_force_mask(shape, None), 5**-0.5, None, None))


def error(found: Tensor, exact: Tensor) -> float:
    return float(((found.double() - exact).norm() / exact.norm()).detach())


@pytest.mark.parametrize("cap", [None, 5.0])
def test_in_bfloat16_it_is_as_close_to_the_truth_as_eager_attention(cap: float | None) -> None:
    torch.manual_seed(0)
    shape = [(40, [25, 30, 12]), (60, [20, 35]), (9, [3] * 8)]
    layout, mask = Layout.of(shape), brute_force_mask(shape, None)
    rounded = inputs(layout.tokens, 6, 2, size=64, value_size=64, dtype=torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in rounded]
    upstream = torch.randn(1, layout.tokens, 6, 64, dtype=torch.bfloat16)
    truth = dense(*exact, mask, 0.3, cap, None)
    truths = [truth, *torch.autograd.grad(truth, exact, upstream.double())]
    eager = dense(*rounded, mask, 0.3, cap, None)
    eagers = [eager, *torch.autograd.grad(eager, rounded, upstream)]
    out, _ = shared_prompt_attention(CALLER, *rounded, None, layout=layout, scaling=0.3, softcap=cap)
    ours = [out, *torch.autograd.grad(out, rounded, upstream)]
    for mine, theirs, true in zip(ours, eagers, truths, strict=True):
        assert error(mine, true) < 0.02
        assert error(mine, true) <= 1.1 * error(theirs, true)


def test_changing_one_completion_leaves_all_other_bits_alone() -> None:
    torch.manual_seed(0)
    layout = Layout.of([(7, [5, 4, 5]), (3, [6, 5])])
    tensors = [x.detach() for x in inputs(layout.tokens, 4, 2, dtype=torch.float32)]
    before, _ = shared_prompt_attention(CALLER, *tensors, None, layout=layout)
    changed = slice(12, 16)
    for x in tensors:
        x[:, :, changed] += 100
    after, _ = shared_prompt_attention(CALLER, *tensors, None, layout=layout)
    same = (before == after).all(-1).all(-1)[0]
    assert same.tolist() == [not 12 <= t < 16 for t in range(layout.tokens)]


def test_a_dropped_probability_is_dropped_in_the_gradient_too() -> None:
    torch.manual_seed(0)
    shape = [(30, [20, 20])]
    layout = Layout.of(shape)
    zero = torch.zeros(1, 1, 70, 1, dtype=torch.float64)
    names = torch.eye(70, dtype=torch.float64)[None, None].requires_grad_()
    out, _ = shared_prompt_attention(CALLER, zero, zero, names, None, layout=layout, dropout=0.25)
    probs, allowed = out[0, :, 0].detach(), brute_force_mask(shape, None)
    even = allowed.double() / allowed.sum(1, keepdim=True) / 0.75
    kept = (probs - even).abs() < 1e-12
    assert (kept | (probs == 0)).all()
    assert 0.70 < kept[allowed].double().mean() < 0.80
    (d_names,) = torch.autograd.grad(out, names, torch.eye(70, dtype=torch.float64)[None, :, None])
    torch.testing.assert_close(d_names[0, 0], probs.T)


def test_gradients_with_dropout_are_those_of_the_same_draw() -> None:
    layout = Layout.of([(2, [2, 1])])
    tensors = inputs(5, 2, 1, size=2, value_size=2)

    def loss(*x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return shared_prompt_attention(CALLER, *x, None, layout=layout, dropout=0.4)[0]

    assert torch.autograd.gradcheck(loss, tensors)


def test_plans_are_made_once_and_kept_with_their_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    build = attention.build_plan
    monkeypatch.setattr(attention, "build_plan", lambda *a, **k: made.append(k["window"]) or build(*a, **k))
    first, second = Layout.of([(5, [4, 3])]), Layout.of([(5, [4, 3])])
    tensors = inputs(12, 2, 1)
    for layout, window in [(first, None), (first, None), (first, 4), (first, 9), (second, None), (first, 4)]:
        shared_prompt_attention(CALLER, *tensors, None, layout=layout, sliding_window=window)
    assert made == [None, 4, None]  # a window that reaches all 9 positions is none


def test_little_is_computed_for_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # real chunks
    torch.manual_seed(0)
    lengths = (25 * torch.randn(64).mul(0.4).exp()).long().clamp(min=2).tolist()
    shape = [(45, lengths)]
    needed = int(brute_force_mask(shape, None).sum()) * 9
    options: dict[str, Any] = {"window": None, "sinks": False, "device": torch.device("cpu"), "dtype": torch.bfloat16}
    plan = attention_plan.build_plan(Layout.of(shape), heads=9, kv_heads=3, **options)
    assert plan.scores < 2.5 * needed  # one block for the whole group would be 30 times of it
    long = attention_plan.build_plan(Layout.of([(2000, [])]), heads=9, kv_heads=3, **options)
    assert long.scores < 0.6 * 9 * 2000**2


def test_autocast_decides_the_dtype_as_it_does_for_products() -> None:
    layout = Layout.of([(5, [4, 3])])
    tensors = inputs(12, 2, 1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = shared_prompt_attention(CALLER, *tensors, None, layout=layout)
        expected, _ = shared_prompt_attention(CALLER, *(x.bfloat16() for x in tensors), None, layout=layout)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    assert torch.autograd.grad(out.float().sum(), tensors[0])[0].dtype == torch.float32


def test_a_call_without_layout_is_refused_and_names_the_caller() -> None:
    with pytest.raises(ModelError, match="Identity called shared-prompt attention without the layout"):
        shared_prompt_attention(CALLER, *inputs(5, 1, 1), None)


@pytest.mark.parametrize(
    ("tokens", "mask", "message"),
    [(11, None, "1 rows of 11 tokens"), (12, torch.ones(1, 1, 12, 12), "with a mask")],
)
def test_a_row_that_the_layout_does_not_describe_is_refused(tokens: int, mask: Tensor | None, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        shared_prompt_attention(CALLER, *inputs(tokens, 1, 1), mask, layout=Layout.of([(5, [4, 3])]))


def test_registering_twice_is_registering_once_and_makes_no_mask() -> None:
    register()
    register()
    assert ALL_ATTENTION_FUNCTIONS[SHARED_PROMPT] is shared_prompt_attention
    assert SHARED_PROMPT not in ALL_MASK_ATTENTION_FUNCTIONS
