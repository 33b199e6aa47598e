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

RECIPE = """
model: {{name: {model}, dtype: float32, lora: {{r: 4, alpha: 8}}}}
data: {{train: {data}, max_length: 256}}
loss: {{name: {loss}, beta: 0.1}}
train:
  output_dir: {run}
  examples_per_step: 8
  token_budget: 400
  num_train_epochs: {epochs}
  learning_rate: 5e-3
  lr_scheduler_type: linear
  save_strategy: steps
  save_steps: 2
  save_total_limit: 3
  bf16: false
"""

EPOCHS = {"dpo": 2, "kto": 0.8}  # about as many steps: labels are twice as many examples as pairs


def recipe_for(folder: Path, model: Path, loss: str, run: str) -> Path:
    data = write_rows(folder / "pairs.jsonl", pair_rows(60))
    path = folder / f"{run}.yaml"
    path.write_text(RECIPE.format(model=model, data=data, loss=loss, run=folder / run, epochs=EPOCHS[loss]))
    return path


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


def kill_when(process: subprocess.Popen[bytes], condition) -> bool:
    """SIGKILL the process once `condition()` holds; False when it ended before."""
    while process.poll() is None:
        if condition():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


@pytest.fixture(scope="module", params=["dpo", "kto"])
def uninterrupted(request, tmp_path_factory, tiny_model: Path) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(f"whole-{request.param}")
    finish(recipe_for(folder, tiny_model, request.param, "whole"))
    return request.param, folder / "whole"


def test_a_run_killed_mid_step_and_mid_checkpoint_ends_with_the_same_bits(uninterrupted, tiny_model: Path) -> None:
    loss, whole = uninterrupted
    seed = int(time.time())
    print(f"kill seed {seed}")
    draw = random.Random(seed)
    recipe = recipe_for(whole.parent, tiny_model, loss, f"killed-{seed}")
    run = whole.parent / f"killed-{seed}"
    total = max(losses(whole))

    at_step = draw.randint(3, total - 3)
    process = subprocess.Popen(command(recipe), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert kill_when(process, lambda: max(losses(run), default=0) >= at_step), "the run ended before the kill"

    # Now inside the writing of a checkpoint: the folder that is being filled exists, the whole one does not yet.
    process = subprocess.Popen(
        command(recipe, "--resume"), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    kill_when(process, lambda: any(run.glob(".writing-checkpoint-*/*/*")))
    finish(recipe, "--resume")

    assert weights(run) == weights(whole)
    assert losses(run) == losses(whole), "every step is logged once, with the loss of the uninterrupted run"


@pytest.mark.parametrize("uninterrupted", ["dpo"], indirect=True)
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


@pytest.mark.parametrize("uninterrupted", ["dpo"], indirect=True)
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
