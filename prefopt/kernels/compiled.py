"""Compile every kernel as it ships for GPUs that need not be here, and read what it takes of each.

Triton compiles to machine code without a device; `cuobjdump`, which it ships, says how many registers, how much of the
stack (where registers that don't fit are spilled) and how much shared memory a kernel takes.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from prefopt.kernels import triton_divergence, triton_fused, triton_kernels
from prefopt.kernels.triton_tiles import SLACK, WIDTH, launch
from prefopt.kernels.workspace import GPU_TILE

SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""Compute capability -> bytes of shared memory that one block may use (CUDA C++ Programming Guide, table "Technical
Specifications per Compute Capability"). A kernel above it compiles, and fails when it is launched."""
REGISTERS = 255
"""Of a thread at most, on all of these."""
REGISTER_FILE = 65536
"""Of a block at most."""
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_MODULES = (triton_kernels, triton_fused, triton_divergence)
_INSTRUCTION = 16
"""Bytes of one, on all of these."""
_TENSOR_CORE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@\S+ )?(?:HMMA|HGMMA)\b", re.MULTILINE)
"""What multiplies 16-bit tiles with tensor cores; `HFMA2.MMA` is not one of them."""


@dataclass(frozen=True)
class Variant:
    """A kernel with the constants of one configuration that ships."""

    name: str
    kernel: str
    """Its name, in one of the modules that have kernels."""
    signature: Mapping[str, str]
    """Argument -> Triton's type; `*T` stands for a pointer to the tile's dtype."""
    constants: Mapping[str, Any]
    shape: Callable[[str, int, bool], Mapping[str, int]]
    """(dtype, compute capability, ragged) -> `num_warps`, `num_stages` unless it is Triton's own, and block sizes and
    other constants that depend on these."""
    ragged: bool = False
    """Sizes are no multiples of 16, as in the vocabulary's tail: the launcher compiles another kernel for those."""
    undivided: frozenset[str] = frozenset()
    """Sizes that are no multiples of 16 though the others are."""
    dtypes: tuple[str, ...] = tuple(DTYPES)
    """What it is compiled for; fewer where the others differ by a conversion from what is compiled anyway."""
    multiplies: bool = False
    """It has a product, which tensor cores must take in 16 bits."""


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes of one GPU."""

    kernel: str
    dtype: str
    capability: int
    """Compute capability times ten: 89 is 8.9."""
    warps: int
    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread: 0 unless registers are spilled."""
    shared: int
    """Bytes of a block."""
    instructions: int
    """With those that fill up its last cache line."""
    tensor_cores: int | None = None
    """Instructions among them that multiply with tensor cores; None where there is nothing for these to multiply."""

    @property
    def complaints(self) -> list[str]:
        """What forbids or spoils running it; empty when it is as it should be."""
        found = []
        if self.stack:
            found.append(f"spills {self.stack} bytes to the stack")
        if self.shared > SHARED_LIMIT[self.capability]:
            found.append(f"needs {self.shared} bytes of shared memory of {SHARED_LIMIT[self.capability]}")
        if self.registers > REGISTERS or self.registers * 32 * self.warps > REGISTER_FILE:
            found.append(f"needs {self.registers} registers in each of {32 * self.warps} threads")
        if self.tensor_cores == 0:
            found.append("multiplies without tensor cores")
        return found


def variants() -> Iterator[Variant]:
    """Yield every kernel in the configurations that ship: for whole tiles, and for what has ragged sizes."""
    for variant in itertools.chain(_tiles(), _fused(), _divergences()):
        yield variant
        yield replace(variant, name=f"{variant.name}, ragged", ragged=True, dtypes=("bfloat16",))
        if variant.multiplies:  # N and V are seldom divisible, whatever the hidden size is
            sizes = frozenset({"count", "vocabulary"})
            yield replace(variant, name=f"{variant.name}, N and V ragged", undivided=sizes, dtypes=("bfloat16",))


def _tiles() -> Iterator[Variant]:
    """Yield the kernels on tiles with their flags, for whole tiles of a usual head."""
    wide, narrow = (functools.partial(_always, launch(columns)) for columns in (GPU_TILE.columns, WIDTH))
    stats = ("top_ptr", "total_ptr", "rescale_ptr", "weighted_ptr", "squares_ptr", "highest_ptr")
    numbers = {"first": "i32", "width": "i32", "row_stride": "i32", "scale": "fp32", "softcap": "fp32"}
    for options, words in (((False, False), ""), ((True, True), ", bias and softcap")):
        flags = dict(zip(("HAS_BIAS", "HAS_SOFTCAP"), options, strict=True))
        tile = {"tile_ptr": "*T", "bias_ptr": "*T", "target_ptr": "*i64"}
        for write, statistics, what in (
            (False, False, "fold, scores"),
            (True, False, "fold, scores and gradient"),
            (False, True, "fold, statistics"),
        ):
            yield Variant(
                what + words, "fold_kernel", {**tile, **dict.fromkeys(stats, "*fp32"), **numbers},
                {"SLACK": SLACK, "WRITE": write, "STATISTICS": statistics, **flags},
                wide,
            )  # fmt: skip
        yield Variant("slopes" + words, "slope_kernel",
                       {**tile, "top_ptr": "*fp32", "share_ptr": "*fp32", **numbers}, flags, wide)  # fmt: skip
        ends = ("top_ptr", "total_ptr", "logprob_ptr", "miss_ptr", "direction_ptr")
        strides = ("hidden_stride", "weight_row_stride", "weight_column_stride", "width")
        yield Variant(
            "finish" + words, "finish_kernel",
            {"hidden_ptr": "*T", "weight_ptr": "*T", "bias_ptr": "*T", "target_ptr": "*i64",
             **dict.fromkeys(ends, "*fp32"), **dict.fromkeys(strides, "i32"), "scale": "fp32", "softcap": "fp32"},
            {"WRITE": True, **flags}, narrow,
        )  # fmt: skip
    rows = {"rows_ptr": "*fp32", "factor_ptr": "*fp32", "width": "i32"}
    yield Variant("rescale", "rescale_kernel", rows, {}, narrow)
    yield Variant("scale rows", "scale_rows_kernel", {"out_ptr": "*T", **rows}, {}, narrow)


def _fused() -> Iterator[Variant]:
    """Yield the kernel that scores alone."""
    sizes = ("count", "width", "vocabulary", "share", "hidden_stride", "weight_row_stride", "weight_column_stride")
    signature = {
        "hidden_ptr": "*T", "weight_ptr": "*T", "bias_ptr": "*T", "target_ptr": "*i64", "tops_ptr": "*fp32",
        "totals_ptr": "*fp32", **dict.fromkeys(sizes, "i32"), "scale": "fp32", "softcap": "fp32",
    }  # fmt: skip
    for plain, words, dtypes in ((True, "", tuple(DTYPES)), (False, ", bias and softcap", ("bfloat16",))):
        yield Variant(
            "fused scores" + words, "fused_kernel", signature,
            {"UPCAST": False, "HAS_BIAS": not plain, "HAS_SOFTCAP": not plain},
            functools.partial(_fused_shape, plain=plain), dtypes=dtypes, multiplies=True,
        )  # fmt: skip


def _divergences() -> Iterator[Variant]:
    """Yield the kernels of divergences: one direction with plain heads, the other with all that a head can have."""
    wide = functools.partial(_always, launch(GPU_TILE.columns))
    pair = ("policy_ptr", "reference_ptr", "bias_p_ptr", "bias_r_ptr")
    sums = ("top_p_ptr", "total_p_ptr", "top_r_ptr", "total_r_ptr", "gaps_ptr")
    known = ("lse_p_ptr", "lse_r_ptr", "value_ptr", "unit_ptr", "rescale_ptr")
    numbers = {"width": "i32", "row_stride": "i32"}
    numbers |= dict.fromkeys(("scale_p", "scale_r", "softcap_p", "softcap_r"), "fp32")
    for plain, words in ((True, ""), (False, ", bias and softcap")):
        flags = dict.fromkeys(("HAS_BIAS_P", "HAS_BIAS_R", "HAS_SOFTCAP_P", "HAS_SOFTCAP_R"), not plain)
        for what, kernel, rows, shape, dtypes in (
            ("divergence, fold", "pair_fold_kernel", sums, wide, ("bfloat16",)),
            ("divergence, slopes", "pair_slope_kernel", known, _pair_slope_shape, ("bfloat16", "float16")),
        ):
            signature = {**dict.fromkeys(pair, "*T"), **dict.fromkeys(rows, "*fp32"), **numbers}
            yield Variant(what + words, kernel, signature, {"FORWARD": plain, **flags}, shape, dtypes=dtypes)


def cases() -> list[tuple[Variant, str, int]]:
    """Return what there is to check: every variant, its dtypes, every compute capability."""
    return [(v, dtype, capability) for v in variants() for dtype in v.dtypes for capability in SHARED_LIMIT]


def check(variant: Variant, dtype: str, capability: int) -> Usage:
    """Compile `variant` for tensors of `dtype` (a name in `DTYPES`) and a compute capability; read what it takes."""
    kernel = next(getattr(module, variant.kernel) for module in _MODULES if hasattr(module, variant.kernel))
    types = {k: v.replace("*T", f"*{DTYPES[dtype]}") for k, v in variant.signature.items()}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    blocks = dict(variant.shape(dtype, capability, variant.ragged))
    options = {name: blocks.pop(name) for name in ("num_warps", "num_stages") if name in blocks}
    constants = {**variant.constants, **blocks}
    if not variant.ragged and "weight_column_stride" in signature:
        constants["weight_column_stride"], signature["weight_column_stride"] = 1, "constexpr"
    # As the launcher does for what is divisible by 16: all pointers, and sizes unless they are ragged.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
        or (signature[name] == "i32" and not variant.ragged and name not in variant.undivided)
    }
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(compiled.asm["cubin"])
        usage, sections = (_cuobjdump(flag, cubin.name) for flag in ("-res-usage", "-elf"))
        # Only where it is asked for: disassembling takes longer than compiling.
        disassembled = variant.multiplies and dtype != "float32"
        code = _cuobjdump("-sass", cubin.name) if disassembled else ""
    taken = {k: int(v) for k, v in re.findall(r"(REG|STACK):(\d+)", usage)}
    size = re.findall(r"^\s*[0-9a-f]+\s+[0-9a-f]+\s+([0-9a-f]+)\s.*PROGBITS.*\s\.text\.", sections, re.MULTILINE)
    return Usage(
        kernel=variant.name,
        dtype=dtype,
        capability=capability,
        warps=options["num_warps"],
        registers=taken["REG"],
        stack=taken["STACK"],
        shared=int(compiled.metadata.shared),
        instructions=sum(int(n, 16) for n in size) // _INSTRUCTION,
        tensor_cores=len(_TENSOR_CORE.findall(code)) if disassembled else None,
    )


def check_all(wanted: Sequence[tuple[Variant, str, int]]) -> Iterator[Usage]:
    """Yield `check` of each in order, by a process a core. What Triton compiled before comes from its cache."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        yield from pool.map(check, *zip(*wanted, strict=True))


def _always(blocks: Mapping[str, int], dtype: str, capability: int, ragged: bool) -> Mapping[str, int]:
    """Return the shape of a kernel that has one for everything; a module's function, since processes exchange it."""
    return blocks


def _pair_slope_shape(dtype: str, capability: int, ragged: bool) -> Mapping[str, int]:
    return {**launch(GPU_TILE.columns), "SCALED": dtype == "float16"}


def _fused_shape(dtype: str, capability: int, ragged: bool, *, plain: bool) -> Mapping[str, int]:
    return triton_fused.shape(getattr(torch, dtype), capability // 10, whole=not ragged, plain=plain)


def _cuobjdump(flag: str, path: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, flag, path], check=True, capture_output=True, text=True).stdout
