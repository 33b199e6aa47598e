"""The Triton kernels of the fused linear log-prob: what is done to a tile of logits after the vendor's matrix product.

One program does one row, in float32 whatever the tile's dtype, without atomics: the same input gives the same bits.
Only arithmetic that the interpreter shares with the compiler is used: no libdevice, no inline assembly, no `tl.dot`.
Letters: n rows of the tile, v columns, H hidden, V vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def final_logits(x, bias_ptr, columns, inside, scale, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Turn `h W^T` into logits; return them and `1 - tanh^2(z / softcap)`."""
    z = x * scale
    if HAS_BIAS:
        z += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    slope = tl.full(z.shape, 1.0, tl.float32)
    if HAS_SOFTCAP:
        # By exp(-2|u|), which can't overflow; 1 - tanh^2 from it keeps its digits where tanh is 1.
        u = z / softcap
        small = tl.exp(-2.0 * tl.abs(u))
        square = u * u
        series = 1.0 - square * (0.33333334 - square * (0.13333334 - square * (0.05396825 - square * 0.021869488)))
        # 1 - small has no digits left where u is small.
        ratio = tl.where(square < 0.09, tl.abs(u) * series, (1.0 - small) / (1.0 + small))
        slope = 4.0 * small / ((1.0 + small) * (1.0 + small))
        z = softcap * tl.where(u < 0, -ratio, ratio)
    return z, slope


@triton.jit
def _others(  # type: ignore[no-untyped-def]
    at, bias_ptr, target_at, columns, inside, first, scale, softcap,
    HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Load a tile's row at `at` as logits, -inf at the target and past the end; return them and `1 - tanh^2`."""
    x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    z, slope = final_logits(x, bias_ptr, columns, inside, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
    return tl.where(inside & (first + columns != tl.load(target_at)), z, -float("inf")), slope


@triton.jit
def fold_kernel(  # type: ignore[no-untyped-def]
    tile_ptr,  # (n, v) products `h W^T`; with WRITE overwritten by exp(z - top) (1 - tanh^2), 0 at the target
    bias_ptr,  # (V,) shifted to the tile's first column, or anything without HAS_BIAS
    target_ptr,  # (n,) int64
    top_ptr,  # (n,) float32, carried from tile to tile
    total_ptr,  # (n,) float32, carried: sum of exp(z - top) over the others
    rescale_ptr,  # (n,) float32, written: what a sum taken at the old top is multiplied by
    weighted_ptr,  # (n,) float32, carried with STATISTICS: sum of exp(z - top) (z - top) over the others
    squares_ptr,  # (n,) float32, carried with STATISTICS: sum of exp(2 (z - top)) over the others
    highest_ptr,  # (n,) float32, carried with STATISTICS: the largest logit of the others
    first,  # the tile's first column
    width,  # v
    row_stride,
    scale,
    softcap,
    SLACK: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WRITE: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """Fold one tile into the sums of its rows, the target's column left out."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = tile_ptr + row.to(tl.int64) * row_stride + columns
    z, slope = _others(at, bias_ptr, target_ptr + row, columns, inside, first, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
    old = tl.load(top_ptr + row)
    highest = tl.max(z, axis=0)
    # The top moves only when it must: then few rows of the gradient's accumulator are touched between two products.
    top = tl.where(highest > old + SLACK, highest, old)
    rescale = tl.exp(old - top)
    e = tl.exp(z - top)
    total = tl.load(total_ptr + row)
    if STATISTICS:
        tl.store(highest_ptr + row, tl.maximum(tl.load(highest_ptr + row), highest))
        gaps = tl.where(e > 0, z - top, 0.0)
        carried = rescale * (tl.load(weighted_ptr + row) + (old - top) * total)
        tl.store(weighted_ptr + row, tl.where(total > 0, carried, 0.0) + tl.sum(e * gaps, axis=0))
        tl.store(squares_ptr + row, tl.load(squares_ptr + row) * rescale * rescale + tl.sum(e * e, axis=0))
    tl.store(top_ptr + row, top)
    tl.store(rescale_ptr + row, rescale)
    tl.store(total_ptr + row, total * rescale + tl.sum(e, axis=0))
    if WRITE:
        tl.store(at, (e * slope).to(tile_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rescale_kernel(rows_ptr, factor_ptr, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Multiply each row of (n, width) float32 by its factor; rows with factor 1 are not touched."""
    row = tl.program_id(0)
    factor = tl.load(factor_ptr + row)
    if factor != 1.0:
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            at = rows_ptr + row.to(tl.int64) * width + columns
            tl.store(at, tl.load(at, mask=columns < width) * factor, mask=columns < width)


@triton.jit
def finish_kernel(  # type: ignore[no-untyped-def]
    hidden_ptr,  # (n, H), rows contiguous
    weight_ptr,  # (V, H), any strides
    bias_ptr,  # (V,)
    target_ptr,  # (n,) int64
    top_ptr,  # (n,) float32
    total_ptr,  # (n,) float32
    logprob_ptr,  # (n,) float32, written
    miss_ptr,  # (n,) float32, written: 1 - p(target)
    direction_ptr,  # (n, H) float32: sum of exp(z - top) g W over the others -> d logprob / d h
    hidden_stride,
    weight_row_stride,
    weight_column_stride,
    width,  # H
    scale,
    softcap,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WRITE: tl.constexpr,
):
    """Bring the target in: its logit as one dot product in float32, the log-prob, and the direction's last steps."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(target_ptr + row)
    hidden_row = hidden_ptr + row * hidden_stride
    weight_row = weight_ptr + target * weight_row_stride
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        h = tl.load(hidden_row + columns, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight_row + columns.to(tl.int64) * weight_column_stride, mask=inside, other=0.0).to(tl.float32)
        sums += h * w
    product = tl.sum(sums, axis=0)
    one = tl.zeros([1], tl.int64)
    z, slope = final_logits(product + tl.zeros([1], tl.float32), bias_ptr, one + target, one == 0, scale, softcap,
                       HAS_BIAS, HAS_SOFTCAP)  # fmt: skip
    logit, slope = tl.sum(z, axis=0), tl.sum(slope, axis=0)
    top, total = tl.load(top_ptr + row), tl.load(total_ptr + row)
    # top - logit first: exact where the two are close, however large they are.
    gap = (top - logit) + tl.log(total)
    miss = 1.0 / (1.0 + tl.exp(-gap))
    small = tl.exp(tl.minimum(gap, 0.0))
    # log(1 + y) by its series where the sum would lose y.
    series = small * (1.0 - small * (0.5 - small * (0.33333334 - small * (0.25 - small * 0.2))))
    log1p = tl.where(small < 0.01, series, tl.log(1.0 + small))
    far = (logit - top) - tl.log(total + tl.exp(tl.minimum(logit - top, 80.0)))
    # A NaN makes every comparison false and must come out.
    logprob = tl.where(gap > 0, far, tl.where(gap <= 0, -log1p, gap))
    tl.store(logprob_ptr + row, logprob)
    tl.store(miss_ptr + row, tl.where(gap == gap, miss, gap))
    if WRITE:
        share = 1.0 / tl.where(total == 0, 1.0, total)
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = columns < width
            at = direction_ptr + row * width + columns
            w = tl.load(weight_row + columns.to(tl.int64) * weight_column_stride, mask=inside, other=0.0).to(tl.float32)
            others = tl.load(at, mask=inside, other=0.0) * share
            tl.store(at, (w * slope - others) * (miss * scale), mask=inside)


@triton.jit
def slope_kernel(  # type: ignore[no-untyped-def]
    tile_ptr,  # (n, v) products `h W^T`; overwritten by share * exp(z - top) (1 - tanh^2), 0 at the target
    bias_ptr,
    target_ptr,
    top_ptr,
    share_ptr,  # (n,) float32
    first,
    width,
    row_stride,
    scale,
    softcap,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Turn a recomputed tile into the slopes that a trainable head's backward pass multiplies with."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = tile_ptr + row.to(tl.int64) * row_stride + columns
    z, slope = _others(at, bias_ptr, target_ptr + row, columns, inside, first, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
    e = tl.exp(z - tl.load(top_ptr + row)) * tl.load(share_ptr + row) * slope
    tl.store(at, e.to(tile_ptr.dtype.element_ty), mask=inside)


@triton.jit
def scale_rows_kernel(out_ptr, rows_ptr, factor_ptr, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write each row of (n, width) float32 times its factor, rounded to the output's dtype."""
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factor_ptr + row)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        value = tl.load(rows_ptr + row * width + columns, mask=inside, other=0.0) * factor
        tl.store(out_ptr + row * width + columns, value.to(out_ptr.dtype.element_ty), mask=inside)
