"""`prefopt reference`: fills the cache, in parts and again, lists it, clears it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefopt.cli import app
from tests.toys import pair_rows, write_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    write_rows(tmp_path / "pairs.jsonl", pair_rows(24))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: {tiny_model}, dtype: float32}}\ndata: {{train: pairs.jsonl}}\nloss: kto\n"
        f"reference: {{cache_dir: {tmp_path / 'cache'}}}\n"
        f"train: {{output_dir: {tmp_path / 'run'}, examples_per_step: 8, token_budget: 200, num_train_epochs: 2}}\n"
    )
    return path


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_build_status_and_clear(recipe: Path, tmp_path: Path) -> None:
    first = json.loads(invoke("reference", "build", recipe, "--json", "--shard", "0/2"))
    second = json.loads(invoke("reference", "build", recipe, "--json", "--shard", "1/2"))
    assert first["computed"] > 0
    assert second["computed"] > 0
    assert second["bytes"] > first["bytes"]
    said = invoke("reference", "build", recipe)
    assert "0 were computed in 0 packs" in said
    assert f"{second['bytes']:,} bytes of this reference lie in {tmp_path / 'cache'}" in said
    listed = json.loads(invoke("reference", "status", "--folder", tmp_path / "cache", "--json"))["references"]
    assert [row["bytes"] for row in listed] == [second["bytes"]]
    assert "adapter_off, float32 on cpu" in listed[0]["about"]
    assert "0 references removed" in invoke("reference", "clear", "--folder", tmp_path / "cache", "--unused-days", "1")
    assert "1 references removed" in invoke("reference", "clear", "--folder", tmp_path / "cache")
    assert json.loads(invoke("reference", "status", "--folder", tmp_path / "cache", "--json"))["references"] == []
    assert not (tmp_path / "nowhere").exists()
    invoke("reference", "status", "--folder", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("part", ["2/2", "x", "1", "-1/2"])
def test_a_wrong_part_says_what_is_one(recipe: Path, part: str) -> None:
    done = CliRunner().invoke(app, ["reference", "build", str(recipe), "--shard", part])
    assert done.exit_code == 2
    assert "write I/N with I from 0 to N - 1" in " ".join(done.output.replace("│", " ").split())


def test_a_build_that_is_killed_goes_on_by_two_processes_that_torchrun_started(recipe: Path, tmp_path: Path) -> None:
    build = ["reference", "build", str(recipe), "--json"]
    killed = [sys.executable, "-m", "tests.train.killed", "storing half of them", "40", *build]
    done = subprocess.run(killed, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "prefopt", *build],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"},
        )
        for rank in range(2)
    ]  # fmt: skip
    parts = [json.loads(process.communicate(timeout=300)[0]) for process in processes]
    assert all(part["computed"] > 0 for part in parts)
    assert any(part["there"] > 0 for part in parts), "what was stored before the kill is there"
    assert json.loads(invoke("reference", "build", recipe, "--json"))["computed"] == 0
