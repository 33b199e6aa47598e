"""The benchmark of losses: it trains, measures and draws. Nothing about what comes out."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "losses.py"


def test_losses_are_trained_measured_and_drawn(tmp_path, tiny_model):
    command = [sys.executable, str(BENCHMARK), "--model", str(tiny_model), "--steps", "2", "--pairs", "2",
               "--held-out", "6", "--train", "20", "--max-length", "2000",
               "--threads", "1", "--loss", "simpo", "--loss", "kto + 0.5*sft", "--plot", "x.png"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    results = json.loads(last)["results"]
    assert list(results) == ["simpo", "kto + 0.5*sft"]
    for found in results.values():
        assert found["pairs"] == 6
        assert found["chosen"] != 0
    drawn = (tmp_path / "x.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    (tmp_path / "saved.json").write_text(last)
    again = [sys.executable, str(BENCHMARK), "--drawn-from", "saved.json", "--plot", "again.png"]
    assert subprocess.run(again, cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "again.png").read_bytes() == drawn
