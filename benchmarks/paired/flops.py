"""What a step must compute, counted, and how fast this process multiplies matrices of those shapes.

Only useful products are counted: nothing for recomputing, padding, casts or masked keys, so a step that wastes work
gets no credit for it.
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

from prefopt.records import Pack

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
    """Count (query, key) pairs of a pack: causal inside a prompt, a completion sees its prompt and its own past.

    With a window, a query sees the keys of at most `window` positions, its own among them.
    """

    def causal(length: int) -> int:
        seen = min(length, window or length)
        return seen * (seen + 1) // 2 + (length - seen) * seen

    if pack.mask is not None:
        return sum(map(causal, pack.mask.sum(1).tolist()))
    total = 0
    for group in pack.layout.groups if pack.layout else ():
        prompt = causal(group.prompt)
        total += prompt + sum(causal(group.prompt + c) - prompt for c in group.completions)
    return total


def windows(config: Any) -> list[int | None]:
    """Return the window of every decoder layer; None for one that sees everything."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]


def count_full(model: nn.Module, pack: Pack, *, attention: int, head: Tensor, reference: bool) -> StepFlops:
    """Count one pack's forward and backward where all weights train: forward, the input's gradient, the weight's."""
    tokens, scored = int(pack.tokens.numel() if pack.mask is None else pack.mask.sum()), int(pack.target.numel())
    base: Counter[Shape] = Counter()
    layers = [(tokens, m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m.weight is not head]
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
    tokens = int(pack.tokens.numel() if pack.mask is None else pack.mask.sum())
    forwards = 2 if reference else 1
    base: Counter[Shape] = Counter()
    adapter = 0
    for name, module in model.named_modules():
        if not isinstance(module, LoraLinear):
            continue
        first = ".layers.0." in name and name.rsplit(".", 1)[-1] in ("q_proj", "k_proj", "v_proj")
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
    pairs = sum(attended(pack, window) for window in windows(config))
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
