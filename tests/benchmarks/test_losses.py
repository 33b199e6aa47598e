"""The benchmark of losses: it trains, measures and draws. Nothing about what comes out."""

import importlib.util
import json
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "losses.py"


def test_losses_are_trained_measured_and_drawn(tmp_path, tiny_model, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("benchmark_of_losses", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setattr("sys.path", [*sys.path])  # which it changes
    spec.loader.exec_module(benchmark)
    monkeypatch.chdir(tmp_path)
    asked = ["--model", str(tiny_model), "--steps", "2", "--pairs", "2", "--held-out", "6", "--train", "20",
             "--max-length", "2000", "--threads", "1", "--loss", "simpo", "--loss", "kto + 0.5*sft",
             "--plot", "x.png"]  # fmt: skip
    assert benchmark.main(asked) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    results = json.loads(last)["results"]
    assert list(results) == ["simpo", "kto + 0.5*sft"]
    for found in results.values():
        assert found["pairs"] == 6
        assert found["chosen"] != 0
    drawn = (tmp_path / "x.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    (tmp_path / "saved.json").write_text(last)
    assert benchmark.main(["--drawn-from", "saved.json", "--plot", "again.png"]) == 0
    assert (tmp_path / "again.png").read_bytes() == drawn
