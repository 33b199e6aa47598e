"""The benchmark of `prefopt eval pairs`: both sides find the same numbers. Nothing about their times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "eval_pairs.py"


@pytest.mark.soak
def test_both_sides_find_the_same_log_probs(tmp_path, tiny_model):
    command = [sys.executable, str(BENCHMARK), "--pairs", "3", "--repeats", "1", "--model", str(tiny_model),
               "--dtype", "float32", "--batch", "2", "--prompt-words", "8"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARK.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["complaints"] == []
    assert 0 < report["furthest"] < 1e-3 or report["furthest"] == 0
    assert report["accuracy"]["ours"] == report["accuracy"]["naive"]
