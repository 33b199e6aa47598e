"""What a step must compute, counted, and how fast this process multiplies matrices of those shapes.

Only useful products are counted: nothing for recomputing, padding, casts, masked keys or states that nobody reads, so a
step that wastes work gets no credit for it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from prefopt.models.narrowed import last_mlp, unread
from prefopt.models.work import layer_windows
from prefopt.records import Layout, Pack

REPEATS = 7


@dataclass(frozen=True)
class Shape:
    """One matrix product: (rows, inner) times (inner, columns)."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class StepFlops:
    """The products of one step, by where they are."""

    base: Counter[Shape]
    """Frozen linear layers and the head: what the ceiling is measured on."""
    adapter: int
    attention: int

    @property
    def total(self) -> int:
        return sum(shape.flops * times for shape, times in self.base.items()) + self.adapter + self.attention


def attended(pack: Pack, window: int | None = None) -> int:
    """Count (query, key) pairs of a pack: causal inside a prompt, a completion sees its prompt and its own past."""
    rows = () if pack.mask is None else pack.mask.sum(1).tolist()
    layout = Layout.of((length, ()) for length in rows) if pack.layout is None else pack.layout.without_ends()
    return layout.attended(window)


def needed(model: nn.Module, pack: Pack) -> Callable[[nn.Module], int]:
    """Return a function that tells how many of the pack's tokens a linear layer of the model must compute."""
    if pack.layout is None:
        tokens = int(pack.tokens.numel() if pack.mask is None else pack.mask.sum())
        return lambda layer: tokens
    layout, last = pack.layout.without_ends(), last_mlp(model)
    behind = set() if last is None else set(last[1].modules())
    return lambda layer: layout.tokens - (unread(layout) if layer in behind else 0)


def count_full(model: nn.Module, pack: Pack, *, attention: int, head: Tensor, reference: bool) -> StepFlops:
    """Count one pack's forward and backward where all weights train: forward, the input's gradient, the weight's."""
    rows_of, scored = needed(model, pack), int(pack.target.numel())
    base: Counter[Shape] = Counter()
    layers = [(rows_of(m), m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m.weight is not head]
    for rows, weight in (*layers, (scored, head)):
        columns, inner = weight.shape
        base[Shape(rows, inner, columns)] += 2 if reference else 1
        base[Shape(rows, columns, inner)] += 1
        base[Shape(columns, rows, inner)] += 1
    return StepFlops(base, 0, attention)


def count(model: nn.Module, pack: Pack, *, head: Tensor, attention: int, reference: bool) -> StepFlops:
    """Count one pack's forward and backward with LoRA.

    A frozen linear layer multiplies once forward, once more in the reference's pass, and once backward for its
    input, except in the first layer's q, k and v, whose input (a frozen embedding) needs no gradient. The frozen head
    multiplies by the vocabulary and back in the forward pass and not at all backward; a reference only multiplies
    forward.

    Args:
        model: the policy with its adapter.
        pack: the step's pack.
        head: (V, H) weight of the head.
        attention: what `attention_flops` says.
        reference: is the reference's pass part of the step?
    """
    rows_of = needed(model, pack)
    forwards = 2 if reference else 1
    base: Counter[Shape] = Counter()
    adapter = 0
    for name, module in model.named_modules():
        if not isinstance(module, LoraLinear):
            continue
        first = ".layers.0." in name and name.rsplit(".", 1)[-1] in ("q_proj", "k_proj", "v_proj")
        tokens = rows_of(module)
        inner, columns, rank = module.in_features, module.out_features, module.r["default"]
        base[Shape(tokens, inner, columns)] += forwards
        if not first:
            base[Shape(tokens, columns, inner)] += 1
        down, up = 2 * tokens * inner * rank, 2 * tokens * rank * columns
        adapter += down + up + (2 * up + (1 if first else 2) * down)
    scored = int(pack.target.numel())
    vocabulary, hidden = head.shape
    base[Shape(scored, hidden, vocabulary)] += forwards
    base[Shape(scored, vocabulary, hidden)] += 1
    return StepFlops(base, adapter, attention)


def attention_flops(config: Any, pack: Pack, *, reference: bool) -> int:
    """Count scores and values: two products forward, four backward, 2 * query heads * head size FLOPs a pair each."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = sum(attended(pack, window) for window in layer_windows(config))
    return 2 * config.num_attention_heads * head_size * pairs * (2 * (2 if reference else 1) + 4)


def _seconds(product: Callable[[], Tensor]) -> float:
    product()
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        product()
        taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2]


def ceiling(shapes: Counter[Shape]) -> tuple[float, dict[str, float]]:
    """Measure bf16 products of `shapes`; return their FLOP-weighted rate and every shape's own, FLOP/s.

    A weight lies as `nn.Linear` holds it, (out, in): forward multiplies by its transpose, backward by itself. Which one
    a shape is doesn't show in the shape, so the wider side of a product decides nothing: the faster is taken.
    """
    rates: dict[str, float] = {}
    ideal = 0.0
    for shape, times in shapes.items():
        left = torch.randn(shape.rows, shape.inner).bfloat16()
        right = torch.randn(shape.inner, shape.columns).bfloat16()
        turned = right.t().contiguous().t()
        best = min(_seconds(lambda a=left, b=b: a @ b) for b in (right, turned))  # type: ignore[misc]
        rates[f"{shape.rows}x{shape.inner}x{shape.columns}"] = shape.flops / best
        ideal += best * times
    return sum(shape.flops * times for shape, times in shapes.items()) / ideal, rates


def machine_rate(config: Any) -> float:
    """Return the FLOP/s that bf16 products of an MLP's shapes reach right now: how much of the machine there is.

    Other tenants of the processor slow matrix units by a factor of three within minutes; a ratio of two processes
    means something where this was about the same for both.
    """
    rows, hidden, inner = 1024, config.hidden_size, config.intermediate_size
    both = Counter({Shape(rows, hidden, inner): 1, Shape(rows, inner, hidden): 1})
    return ceiling(both)[0]
