"""The sizes that data is rounded up to."""

import torch

from prefopt.kernels.shapes import COUNTS, compiles_by_shape, rounded


def test_sizes_are_few_and_little_is_added() -> None:
    sizes = {rounded(n) for n in range(1, 4097)}
    assert len(sizes) < 60
    assert all(0 <= rounded(n) - n < 128 for n in range(1, 4097))
    assert all(rounded(n) <= 1.25 * n for n in range(128, 4097))
    assert {rounded(size) for size in sizes} == sizes


def test_every_number_is_a_sum_of_few_counts() -> None:
    for number in range(1, 129):
        left, parts = number, 0
        while left:
            left -= max(count for count in COUNTS if count <= left)
            parts += 1
        assert parts <= 5


def test_only_16_bit_products_on_a_cpu_compile() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compiles_by_shape(cpu, torch.bfloat16)
    assert not compiles_by_shape(cpu, torch.float32)
    assert not compiles_by_shape(gpu, torch.bfloat16)
