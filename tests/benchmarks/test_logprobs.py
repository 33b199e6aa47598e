"""The kernels' benchmark: its processes run, its errors are against float64. Nothing about time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "logprobs.py"
ONE_SWEEP = BENCHMARK.with_name("one_sweep.py")


def test_contenders_are_measured_against_float64_and_drawn(tmp_path):
    command = [sys.executable, str(BENCHMARK), "--shape", "70,16,300", "--repeats", "2", "--threads", "1", "--device",
               "cpu", "--only", "prefopt", "--only", "full logits", "--only", "CCE",
               "--plot", str(tmp_path / "figure.png")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["results"]["70,16,300"]
    for name in ("prefopt", "full logits"):
        error = rows[name]["error"]
        assert 0 < error["logprob"] < 0.02
        assert 0 < error["gradient"] < 0.02
        for ratio in rows[name]["ratio"].values():
            assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert rows["CCE"]["absent"]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_one_sweep_is_compared_with_two(tmp_path):
    command = [sys.executable, str(ONE_SWEEP), "--tokens", "8", "--tokens", "40", "--hidden", "16", "--vocab", "300",
               "--repeats", "2", "--threads", "1"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["results"]
    assert list(found) == ["8", "40"]
    assert all(0 < ratio["min"] <= ratio["median"] <= ratio["max"] for ratio in found.values())


def test_no_benchmark_hides_a_module_that_its_imports_ask_for():
    scripts = {path.stem for path in BENCHMARK.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not scripts & {"kernels", *sys.stdlib_module_names}  # transformers asks for Hugging Face's `kernels`


@pytest.mark.gpu
def test_it_runs_on_a_gpu(tmp_path):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")
    command = [sys.executable, str(BENCHMARK), "--shape", "512,576,49152", "--repeats", "2", "--only", "prefopt"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ratio" in json.loads(done.stdout.splitlines()[-1])["results"]["512,576,49152"]["prefopt"]
