"""How much memory the fused log-probs take beside their inputs and results, in bytes, and how much they compute.

Letters: N scored tokens, H hidden, V vocabulary. What stands here is what `workspace`, `tiles` and `triton_tiles`
allocate: tests count that.
"""

from __future__ import annotations

import torch

from prefopt.kernels.head import accumulation_dtype
from prefopt.kernels.shapes import compiles_by_shape, rounded
from prefopt.kernels.workspace import GPU_TILE, Tiles

_TOGETHER = 2048
"""Rows whose part of the head's gradient is added together (`tiles._Targets`)."""


def scoring(
    tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, *, gpu: bool, capped: bool, gradient: bool
) -> int:
    """Return what scoring N tokens takes beside its results; with `gradient`, the direction is one of them."""
    count = tokens if gpu else _padded(tokens, dtype)
    rows, buffers = _buffers(count, hidden, vocabulary, dtype, gpu=gpu, capped=capped)
    if gpu:
        return buffers
    low, high = dtype.itemsize, accumulation_dtype(dtype).itemsize
    padded = (count * hidden * (low + (high if gradient else 0))) if count > tokens else 0
    # The targets' rows of the weight, their products with the hidden states, and these in the accumulation dtype.
    return buffers + padded + rows * hidden * high * (2 if low == high else 3)


def head_gradient(tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, *, gpu: bool, capped: bool) -> int:
    """Return what the backward pass of a head that trains takes beside its results."""
    rows, buffers = _buffers(tokens, hidden, vocabulary, dtype, gpu=gpu, capped=capped)
    low, high = dtype.itemsize, accumulation_dtype(dtype).itemsize
    d_hidden = tokens * hidden * high
    d_tile = min((GPU_TILE if gpu else _cpu_tiles(dtype)).columns, vocabulary) * hidden * high
    values = min(_TOGETHER, tokens) * hidden * (low + 2 * high)
    return buffers + d_hidden + d_tile + max(values, rows * hidden * high)


def scoring_flops(tokens: int, hidden: int, vocabulary: int, *, gradient: bool) -> float:
    """Return 2NHV, or 4NHV with the gradient of the hidden states."""
    return (4.0 if gradient else 2.0) * tokens * hidden * vocabulary


def _buffers(
    tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, *, gpu: bool, capped: bool
) -> tuple[int, int]:
    """Return the rows of a tile, and the bytes of what `Workspace` and `TritonWorkspace` allocate."""
    tiles = GPU_TILE if gpu else _cpu_tiles(dtype)
    rows, columns = max(1, min(tiles.rows, tokens)), min(tiles.columns, vocabulary)
    low, high = dtype.itemsize, accumulation_dtype(dtype).itemsize
    tile = rows * columns * low
    if gpu:
        return rows, tile
    block = min(tiles.block, rows) * columns * high
    products = max(rows, columns) * hidden * low
    return rows, tile + products + (block if low < high else 0) + (block if capped else 0)


def _cpu_tiles(dtype: torch.dtype) -> Tiles:
    return Tiles.choose(torch.empty(0, 0, dtype=dtype))


def _padded(tokens: int, dtype: torch.dtype) -> int:
    if tokens and compiles_by_shape(torch.device("cpu"), dtype):
        return rounded(tokens)
    return tokens
