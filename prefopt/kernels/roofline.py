"""How long the log-probs of a step must take on a GPU, from what it can multiply and what it can move.

A path is a sequence of phases, each one kernel. A phase takes the longer of two floors: its FLOPs at the rate that such
a kernel reaches, and its bytes at the memory's bandwidth. Nothing is measured here: it is arithmetic, and says so.
Letters: N scored tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from prefopt.kernels.workspace import GPU_TILE

VENDOR = 0.75
"""Share of the peak that the vendor's product reaches on tiles like ours."""
FUSED = 0.67
"""Share that a hand-written product with its epilogue reaches: what the authors of Cut Cross-Entropy (arXiv:2411.09009)
report of theirs on an A100."""
_LOW, _HIGH = 2, 4
"""Bytes of a 16-bit and of a float32 number."""
_WIDEST = 1 << 16
"""Hidden sizes that are looked at are below this one."""


@dataclass(frozen=True)
class Gpu:
    """What a data sheet says."""

    name: str
    teraflops: float
    """Dense bfloat16 products added up in float32, 1e12 FLOP/s."""
    bandwidth: float
    """Of the memory, 1e9 bytes a second."""
    source: str
    memory: int = 0
    """GiB."""


_GA102, _ADA = (f"NVIDIA {name} GPU Architecture whitepaper, appendix A" for name in ("Ampere GA102", "Ada"))
_BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture whitepaper, appendix A"
_HOPPER = "NVIDIA H100 Tensor Core GPU Architecture whitepaper, table 2"
GPUS: Mapping[str, Gpu] = {
    "3080": Gpu("RTX 3080 10GB", 59.5, 760, _GA102, 10),
    "3090": Gpu("RTX 3090", 71.0, 936, _GA102, 24),
    "4080": Gpu("RTX 4080", 97.5, 717, _ADA, 16),
    "4090": Gpu("RTX 4090", 165.2, 1008, _ADA, 24),
    "5080": Gpu("RTX 5080", 112.6, 960, _BLACKWELL, 16),
    "5090": Gpu("RTX 5090", 209.5, 1792, _BLACKWELL, 32),
    "l4": Gpu("L4", 121.0, 300, "NVIDIA L4 data sheet", 24),
    "l40s": Gpu("L40S", 362.0, 864, "NVIDIA L40S data sheet", 48),
    "a6000": Gpu("RTX A6000", 154.8, 768, "NVIDIA Ampere GA102 GPU Architecture whitepaper, appendix C", 48),
    "a100-40": Gpu("A100 40GB SXM", 312.0, 1555, "NVIDIA A100 data sheet", 40),
    "a100": Gpu("A100 80GB SXM", 312.0, 2039, "NVIDIA A100 80GB data sheet", 80),
    "h100": Gpu("H100 SXM", 989.4, 3350, _HOPPER, 80),
    "h200": Gpu("H200 SXM", 989.4, 4800, "NVIDIA H200 data sheet", 141),
}


@dataclass(frozen=True)
class Phase:
    """One kernel, or many of a kind."""

    name: str
    flops: float
    bytes: float
    efficiency: float = 1.0
    """Share of the peak that its products reach."""

    def seconds(self, gpu: Gpu) -> tuple[float, float]:
        """Return the two floors: by arithmetic and by memory."""
        return self.flops / (self.efficiency * gpu.teraflops * 1e12), self.bytes / (gpu.bandwidth * 1e9)


@dataclass(frozen=True)
class Path:
    """One way to compute it."""

    name: str
    phases: tuple[Phase, ...]
    memory: float
    """Bytes beside the inputs and the gradients that are asked for."""

    @property
    def flops(self) -> float:
        return sum(p.flops for p in self.phases)

    @property
    def bytes(self) -> float:
        return sum(p.bytes for p in self.phases)

    def floors(self, gpu: Gpu) -> tuple[float, float]:
        """Return seconds by arithmetic alone and by memory alone, as if phases overlapped perfectly."""
        compute, memory = zip(*(p.seconds(gpu) for p in self.phases), strict=True)
        return sum(compute), sum(memory)

    def seconds(self, gpu: Gpu) -> float:
        """Return the predicted time: phases one after the other, each the longer of its floors."""
        return sum(max(p.seconds(gpu)) for p in self.phases)

    def binds(self, gpu: Gpu) -> str:
        """Return what takes most of the predicted time: `compute` or `memory`."""
        by_memory = sum(max(both) for p in self.phases if (both := p.seconds(gpu))[1] > both[0])
        return "memory" if by_memory > self.seconds(gpu) / 2 else "compute"


def paths(tokens: int, hidden: int, vocabulary: int) -> dict[str, tuple[Path, ...]]:
    """Return what is compared: how to score with the gradient of a frozen head, and how to score alone."""
    n, h, v = float(tokens), float(hidden), float(vocabulary)
    product = 2 * n * h * v
    sweeps, tiles = ceil(tokens / GPU_TILE.rows), ceil(vocabulary / GPU_TILE.columns)
    logits = _LOW * n * v
    weight = _LOW * v * h * sweeps
    activations = _LOW * n * h
    tile = _LOW * min(tokens, GPU_TILE.rows) * min(vocabulary, GPU_TILE.columns)
    forward = Phase("logits", product, weight + activations * tiles + logits, VENDOR)
    ours = Path(
        "ours, in one sweep",
        (
            forward,
            Phase("fold in place", 0, 2 * logits),
            # The accumulator is read and written by every tile's product.
            Phase("gradient", product, weight + logits + 2 * _HIGH * n * h * tiles, VENDOR),
            Phase("finish, scale rows", 0, _HIGH * n * h * 3 + 2 * activations),
        ),
        tile + _HIGH * n * h,
    )
    wide = 32768
    recompute = Path(
        "recompute in backward",
        (
            forward,
            Phase("fold", 0, logits),
            Phase("logits again", product, weight + activations * ceil(v / wide) + logits, VENDOR),
            Phase("slopes in place", 0, 2 * logits),
            Phase("gradient", product, weight + logits + 2 * _HIGH * n * h * ceil(v / wide), VENDOR),
        ),
        _LOW * min(tokens, GPU_TILE.rows) * min(vocabulary, wide) + _HIGH * n * h,
    )
    full = Path(
        "full logits",
        (
            Phase("logits", product, _LOW * v * h + activations + logits, VENDOR),
            Phase("log-softmax", 0, logits + 2 * _HIGH * n * v),
            Phase("its gradient", 0, 2 * _HIGH * n * v + logits),
            Phase("gradient", product, _LOW * v * h + logits + activations, VENDOR),
        ),
        2 * logits + 2 * _HIGH * n * v,
    )
    score_tiles = Path("ours, tiles", (forward, Phase("fold", 0, logits)), tile)
    score_fused = Path(
        "one kernel",
        (Phase("products and fold", product, weight + activations, FUSED),),
        0.0,
    )
    score_full = Path("full logits", full.phases[:2], logits + _HIGH * n * v)
    return {
        "scores and gradient": (ours, recompute, full),
        "scores alone": (score_tiles, score_fused, score_full),
    }


@dataclass(frozen=True)
class Verdict:
    """Which of our two ways to score alone is predicted to be the faster one on a GPU, and why."""

    faster: Path
    slower: Path
    hidden: int | None
    """The one kernel is the faster one below this hidden size; None where it is at every one looked at."""


def score_alone(gpu: Gpu, tokens: int, hidden: int, vocabulary: int) -> Verdict:
    """Compare tiles, whose logits are written and read once, with one kernel that keeps them but multiplies slower."""

    def ways(h: int) -> tuple[Path, Path]:
        tiles, fused, _ = paths(tokens, h, vocabulary)["scores alone"]
        return tiles, fused

    def tiles_win(h: int) -> bool:
        tiles, fused = ways(h)
        return tiles.seconds(gpu) <= fused.seconds(gpu)

    # What tiles lose by traffic is the same for every hidden size, and what they win by rate grows with it.
    first = 1 + bisect_left(range(1, _WIDEST), True, key=tiles_win)
    tiles, fused = ways(hidden)
    faster, slower = (tiles, fused) if tiles_win(hidden) else (fused, tiles)
    return Verdict(faster, slower, first if first < _WIDEST else None)
