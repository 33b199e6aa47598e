"""Sizes that come again.

On a CPU, oneDNN compiles a kernel for every new shape of a 16-bit matrix product: 1 to 20 ms each, most for sizes that
are no multiple of 32, and a step of fresh lengths asks for a hundred. So sizes that come from data are rounded up to
few, and what was added is computed and thrown away.
"""

from __future__ import annotations

import torch

COUNTS = (1, *(n << k for k in range(6) for n in (2, 3)), 128)
"""Batch sizes of products that a batch is cut into: every number is a sum of few of them."""


def compiles_by_shape(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of a new shape is slow the first time."""
    return device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)


def rounded(size: int) -> int:
    """Return the next size of which there are few: multiples of 32 up to 256, of 64 to 2,048, of 128 above."""
    step = 32 if size <= 256 else 64 if size <= 2048 else 128
    return -(-size // step) * step
