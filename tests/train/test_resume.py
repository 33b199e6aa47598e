"""A run killed with SIGKILL and started again ends with the bits of an uninterrupted one."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefopt.train.callbacks import read_metrics
from tests.toys import pair_rows, write_rows
from tests.train.killed import POINTS

ROOT = Path(__file__).resolve().parents[2]

RECIPE = """
model: {{name: {model}, dtype: float32, lora: {{r: 4, alpha: 8}}}}
data: {{train: {data}, max_length: 256{more}}}
loss: {{name: {loss}, beta: 0.1}}
reference: {{{reference}cache_dir: {run}-cache}}
train:
  output_dir: {run}
  examples_per_step: 8
  token_budget: 400
  {length}
  learning_rate: 5e-3
  lr_scheduler_type: linear
  save_strategy: steps
  save_steps: 2
  save_total_limit: 3
  bf16: false
"""

LENGTH = {  # past an epoch's end, and past several windows
    "dpo": "num_train_epochs: 2",
    "kto": "num_train_epochs: 1.2",  # labels are twice as many examples as pairs
    "kto of a stream by workers": "max_steps: 14",
}
DATA = {"kto of a stream by workers": ", streaming: true, window: 20, workers: 2"}
MOVING = "kind: moving, every: 3, mix: 0.25, "
"""Each run has a cache of its own: two runs with one would compare what one of them computed."""


def recipe_for(folder: Path, model: Path, loss: str, run: str, reference: str = "cache: true, ") -> Path:
    data = write_rows(folder / "pairs.jsonl", pair_rows(60))
    path = folder / f"{run}.yaml"
    about = {"loss": loss.split()[0], "length": LENGTH[loss], "more": DATA.get(loss, ""), "reference": reference}
    path.write_text(RECIPE.format(model=model, data=data, run=folder / run, **about))
    return path


MID_STEP = ["backward", "optimizer step", "storing log-probs", "storing half of them"]


def command(recipe: Path, *extra: str) -> list[str]:
    return [sys.executable, "-m", "prefopt", "train", str(recipe), *extra]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def finish(recipe: Path, *extra: str) -> None:
    done = subprocess.run(command(recipe, *extra), capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr


def weights(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def losses(run: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(run / "metrics.jsonl") if "loss" in r}


def kill(recipe: Path, point: str, number: int) -> bool:
    """Run, or go on, until the process kills itself at that point; False when it ended without reaching it."""
    resumes = ["--resume"] if (recipe.parent / recipe.stem).exists() else []
    module = [sys.executable, "-m", "tests.train.killed", point, str(number), "train", str(recipe), *resumes]
    done = subprocess.run(module, capture_output=True, text=True, env=environment(), timeout=300, cwd=ROOT)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


@pytest.fixture(scope="module", params=[*LENGTH])
def uninterrupted(request, tmp_path_factory, tiny_model: Path) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(f"whole-{request.param.replace(' ', '-')}")
    finish(recipe_for(folder, tiny_model, request.param, "whole"))
    return request.param, folder / "whole"


def test_a_run_killed_mid_step_and_mid_checkpoint_ends_with_the_same_bits(uninterrupted, tiny_model: Path) -> None:
    loss, whole = uninterrupted
    seed = int(time.time())
    print(f"kill seed {seed}")
    draw = random.Random(seed)
    recipe = recipe_for(whole.parent, tiny_model, loss, f"killed-{seed}")
    run = whole.parent / f"killed-{seed}"

    assert kill(recipe, draw.choice(MID_STEP), draw.randint(4, 8))
    assert kill(recipe, draw.choice(["saving a file", "sync", "rename"]), draw.randint(1, 3))
    assert list(run.glob(".writing-checkpoint-*")), "the kill hit inside a checkpoint, which it left unfinished"
    finish(recipe, "--resume")

    assert weights(run) == weights(whole)
    assert losses(run) == losses(whole), "every step is logged once, with the loss of the uninterrupted run"


def test_a_reference_that_moves_stands_after_a_kill_where_it_would_have_stood(tmp_path: Path, tiny_model: Path) -> None:
    whole, killed, still = (
        recipe_for(tmp_path, tiny_model, "dpo", name, reference)
        for name, reference in (("whole", MOVING), ("killed", MOVING), ("still", ""))
    )
    finish(whole)
    assert kill(killed, "optimizer step", 12)
    finish(killed, "--resume")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    finish(still)
    assert losses(tmp_path / "still") != losses(tmp_path / "whole"), "it did move"


@pytest.mark.soak
@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_again_and_again_ends_with_the_same_bits(uninterrupted, tiny_model: Path, point: str) -> None:
    """Kill at the first, second, third ... time that each start reaches the point, until one start ends the run."""
    loss, whole = uninterrupted
    name = f"killed-at-{point.replace(' ', '-')}"
    recipe = recipe_for(whole.parent, tiny_model, loss, name)
    kills = 0
    while kill(recipe, point, kills + 1):
        kills += 1
        assert kills < 60
    print(f"{loss}: {kills} kills at '{point}'")
    assert kills >= 3
    assert weights(whole.parent / name) == weights(whole)
    assert losses(whole.parent / name) == losses(whole)


def test_a_torn_checkpoint_is_skipped_with_a_warning_and_the_bits_are_the_same(uninterrupted, tiny_model: Path) -> None:
    loss, whole = uninterrupted
    recipe = recipe_for(whole.parent, tiny_model, loss, "torn")
    run = whole.parent / "torn"
    finish(recipe)
    newest = max(run.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    (newest / "optimizer.pt").write_bytes(b"torn")
    for stale in (run / "adapter" / "adapter_model.safetensors",):
        stale.unlink()
    done = subprocess.run(command(recipe, "--resume"), capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    assert "optimizer.pt has 4 bytes" in done.stderr
    assert weights(run) == weights(whole)


def test_a_run_resumes_only_with_the_recipe_it_began_with(uninterrupted, tiny_model: Path) -> None:
    loss, whole = uninterrupted
    recipe = recipe_for(whole.parent, tiny_model, loss, "whole")
    done = subprocess.run(
        command(recipe, "--resume", "loss.beta=0.7"), capture_output=True, text=True, env=environment(), timeout=300
    )
    assert done.returncode == 2
    assert "loss.beta" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((whole / "environment.json").read_text())
