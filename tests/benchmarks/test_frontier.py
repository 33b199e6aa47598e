"""The sentiment experiment: runs are trained once, measured together and told. Nothing about what came out."""

import json

import pytest

from benchmarks import frontier


@pytest.mark.soak
def test_runs_are_trained_once_and_stand_in_one_table(tmp_path, tiny_model, capsys):
    common = ["--out", str(tmp_path), "--model", str(tiny_model), "--steps", "2", "--pairs", "2", "--prompts", "3",
              "--samples", "2", "--new-tokens", "5", "--rounds", "1", "--round-prompts", "4", "--round-samples", "8",
              "--round-epochs", "1", "--threads", "1", "--max-length", "400"]  # fmt: skip
    assert frontier.main([*common, "--only", "dpo-1", "--only", "raft", "--only", "kto"]) == 0
    printed = capsys.readouterr().out.splitlines()
    held = json.loads((tmp_path / "frontier.json").read_text())
    assert [point["label"] for point in held["points"]] == [
        "start", "dpo-1 step 1", "dpo-1 step 2", "kto step 1", "kto step 2", "raft round 1"
    ]  # fmt: skip
    assert all(point["completions"] == 6 for point in held["points"])
    assert sum(line.startswith("| ") for line in printed) == 2 + 6
    assert set(json.loads(printed[-1])["seconds"]) == {"dpo-1", "raft", "kto", "frontier"}
    assert (tmp_path / "frontier.md").read_text().count("\n| ") == 1 + 6

    before = (tmp_path / "runs" / "dpo-1" / "metrics.jsonl").stat().st_mtime_ns
    assert frontier.main([*common, "--only", "dpo-1", "--only", "sft"]) == 0
    assert (tmp_path / "runs" / "dpo-1" / "metrics.jsonl").stat().st_mtime_ns == before
    again = json.loads((tmp_path / "frontier.json").read_text())["points"]
    assert len(again) == 8
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])["seconds"]) == {"sft", "frontier"}
