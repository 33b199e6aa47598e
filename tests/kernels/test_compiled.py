"""Every Triton kernel as it ships, compiled for the GPUs that are supported: none of them need be here."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.kernels.problems import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 compiles nothing")


def test_every_kernel_compiles_without_spills_and_within_each_gpus_limits():
    from prefopt.kernels import compiled

    found = list(compiled.check_all(compiled.cases()))
    assert {(u.kernel, u.dtype, u.capability) for u in found} == {(v.name, d, c) for v, d, c in compiled.cases()}
    whole = {u.kernel for u in found if not u.kernel.endswith("ragged")}
    assert len(whole) >= 18
    for capability in compiled.SHARED_LIMIT:
        mine = {(u.kernel, u.dtype) for u in found if u.capability == capability}
        assert {(k, "bfloat16") for k in whole} <= mine
        assert {(k, d) for k in whole if k.startswith(("fold", "slopes", "finish")) for d in compiled.DTYPES} <= mine
        assert {("fused scores", d) for d in compiled.DTYPES} | {("divergence, slopes", "float16")} <= mine
    assert {re.sub(r", (N and V )?ragged$", "", u.kernel) for u in found} == whole
    assert all(u.registers >= 16 and u.instructions > 50 for u in found)  # the tool's output was understood
    assert [(u.kernel, u.dtype, u.capability, u.complaints) for u in found if u.complaints] == []


def test_what_forbids_a_kernel_is_said():
    from prefopt.kernels.compiled import Usage

    fine = Usage("fold", "bfloat16", 89, 16, registers=128, stack=0, shared=1024, instructions=900)  # fmt: skip
    assert fine.complaints == []
    assert replace(fine, stack=8).complaints == ["spills 8 bytes to the stack"]
    assert replace(fine, shared=100 << 10).complaints == ["needs 102400 bytes of shared memory of 101376"]
    assert replace(fine, capability=80, shared=100 << 10).complaints == []
    assert replace(fine, tensor_cores=64).complaints == []
    assert replace(fine, tensor_cores=0).complaints == ["multiplies without tensor cores"]
    assert replace(fine, registers=129).complaints == ["needs 129 registers in each of 512 threads"]


def test_a_spilling_kernel_is_found_out():
    # One warp holds 8,192 columns: 256 elements a thread, more than there are registers.
    from prefopt.kernels import compiled

    (variant, *_) = [v for v in compiled.variants() if v.name == "fold, scores and gradient"]
    narrow = {**variant.shape("bfloat16", 80, False), "num_warps": 1}
    usage = compiled.check(replace(variant, shape=lambda *_: narrow), "bfloat16", 80)
    assert usage.warps == 1
    assert usage.stack > 0
    assert usage.complaints


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_a_product_without_tensor_cores_is_found_out(capability):
    from prefopt.kernels import compiled

    rescale, fused = (next(v for v in compiled.variants() if v.name == name) for name in ("rescale", "fused scores"))
    assert compiled.check(rescale, "bfloat16", capability).tensor_cores is None
    assert compiled.check(replace(rescale, multiplies=True), "bfloat16", capability).complaints == [
        "multiplies without tensor cores"
    ]
    assert compiled.check(fused, "bfloat16", capability).tensor_cores > 0
    assert compiled.check(fused, "float32", capability).tensor_cores is None
