"""The benchmark of losses: it trains, measures and draws. Nothing about what comes out."""

import json

from benchmarks import losses


def test_losses_are_trained_measured_and_drawn(tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["--model", str(tiny_model), "--steps", "2", "--pairs", "2", "--held-out", "6", "--train", "20",
             "--max-length", "2000", "--threads", "1", "--loss", "simpo", "--loss", "kto + 0.5*sft",
             "--plot", "x.png"]  # fmt: skip
    assert losses.main(asked) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    results = json.loads(last)["results"]
    assert list(results) == ["simpo", "kto + 0.5*sft"]
    for found in results.values():
        assert found["pairs"] == 6
        assert found["chosen"] != 0
    drawn = (tmp_path / "x.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    (tmp_path / "saved.json").write_text(last)
    assert losses.main(["--drawn-from", "saved.json", "--plot", "again.png"]) == 0
    assert (tmp_path / "again.png").read_bytes() == drawn
