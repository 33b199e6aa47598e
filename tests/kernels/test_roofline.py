"""The model of speed against arithmetic by hand."""

from __future__ import annotations

import pytest

from prefopt.kernels.roofline import GPUS, Gpu, Path, Phase, paths, score_alone


def test_a_phase_takes_the_longer_of_its_floors_by_hand():
    gpu = Gpu("toy", teraflops=2.0, bandwidth=100, source="")
    heavy = Phase("product", 6e12, 50e9, efficiency=0.75)  # 4 s of arithmetic, 0.5 s of memory
    light = Phase("fold", 0, 300e9)  # 3 s of memory
    assert heavy.seconds(gpu) == pytest.approx((4.0, 0.5))
    path = Path("both", (heavy, light), 0)
    assert path.seconds(gpu) == pytest.approx(7.0)
    assert path.floors(gpu) == pytest.approx((4.0, 3.5))
    assert path.binds(gpu) == "compute"
    assert Path("fold", (heavy, light, light), 0).binds(gpu) == "memory"


def test_flops_of_every_way_are_those_of_its_products():
    n, h, v = 4096, 4096, 128256
    ways = {path.name: path for group in paths(n, h, v).values() for path in group}
    product = 2 * n * h * v
    assert ways["ours, in one sweep"].flops == 2 * product  # 4NHV
    assert ways["recompute in backward"].flops == 3 * product  # 6NHV
    assert ways["ours, tiles"].flops == ways["one kernel"].flops == product  # 2NHV
    # One tile of 4,096 x 8,192 in 16 bits and the gradient's accumulator in float32.
    assert ways["ours, in one sweep"].memory == 2 * 4096 * 8192 + 4 * n * h
    assert ways["one kernel"].memory == 0


@pytest.mark.parametrize("name", GPUS)
def test_at_a_usual_size_one_sweep_is_the_fastest_everywhere(name):
    with_gradient, _ = paths(4096, 4096, 128256).values()
    ours, recompute, full = (path.seconds(GPUS[name]) for path in with_gradient)
    assert ours < full < recompute or ours < recompute < full
    assert recompute / ours < 1.5  # by FLOPs alone


def test_which_way_to_score_alone_is_faster_by_hand():
    # Arithmetic binds both at (1/0.67 - 1/0.75) 2NHV/P apart; tiles read 2NV bytes more: equal at
    # H = (P/B) / (1/0.67 - 1/0.75), 1,000 TFLOP/s and 3,000 GB/s give 2,093.8.
    gpu = Gpu("toy", teraflops=1000.0, bandwidth=3000, source="")
    wide = score_alone(gpu, 4096, 4096, 131072)
    assert (wide.faster.name, wide.slower.name, wide.hidden) == ("ours, tiles", "one kernel", 2094)
    assert score_alone(gpu, 4096, 2094, 131072).faster.name == "ours, tiles"
    assert score_alone(gpu, 4096, 2093, 131072).faster.name == "one kernel"


def test_one_kernel_is_always_the_faster_one_where_reading_the_weight_binds():
    verdict = score_alone(GPUS["4090"], 16, 4096, 131072)
    assert verdict.faster.name == "one kernel"
    assert verdict.hidden is None
