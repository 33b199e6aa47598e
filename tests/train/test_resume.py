"""A run killed with SIGKILL and started again ends with the bits of an uninterrupted one."""

import hashlib
import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prefopt.train.callbacks import read_metrics
from tests.toys import pair_rows, write_rows
from tests.train.forks import Ended, Forks
from tests.train.killed import POINTS

RECIPE = """
model: {{name: {model}, dtype: float32{lora}}}
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

LORA = ", lora: {r: 4, alpha: 8}"
KINDS: dict[str, dict[str, str]] = {
    "dpo": {"length": "num_train_epochs: 2"},  # past an epoch's end
    "kto": {"length": "num_train_epochs: 1.2"},  # labels are twice as many examples as pairs
    "kto of a stream by workers": {"length": "max_steps: 14", "more": ", streaming: true, window: 20, workers: 2"},
    "dpo of all weights": {"length": "max_steps: 10", "lora": ", lora: null"},
    "kto by two processes": {"length": "max_steps: 12"},
    "dpo of weights in parts by two processes": {
        "length": "max_steps: 10\n  shard_weights: true",
        "lora": ", lora: null",
    },
}
MOVING = "kind: moving, every: 3, mix: 0.25, "
CACHED = "cache: true, "
"""Each run has a cache of its own: two runs with one would compare what one of them computed."""
MID_STEP = ["backward", "optimizer step"]
STORING = ["storing log-probs", "storing half of them"]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


def is_cached(kind: str) -> bool:
    return "parts" not in kind  # whose ranks compute together or not at all


def recipe_for(folder: Path, model: Path, kind: str, run: str, reference: str | None = None) -> Path:
    data = write_rows(folder / "pairs.jsonl", pair_rows(60))
    path = folder / f"{run}.yaml"
    kept = (CACHED if is_cached(kind) else "") if reference is None else reference
    about = {"loss": kind.split()[0], "lora": LORA, "more": "", "reference": kept, **KINDS[kind]}
    path.write_text(RECIPE.format(model=model, data=data, run=folder / run, **about))
    return path


def ranks_of(kind: str) -> int:
    return 2 if "two processes" in kind else 1


def finish(forks: Forks, recipe: Path, *extra: str, ranks: int = 1) -> Ended:
    done = forks.prefopt(recipe.parent, "train", str(recipe), *extra, ranks=ranks)
    assert done.codes == [0] * ranks, done.err
    return done


def weights(run: Path) -> str:
    (file,) = (file for name in ("adapter", "model") for file in (run / name).glob("*.safetensors"))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def losses(run: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(run / "metrics.jsonl") if "loss" in r}


def kill(forks: Forks, recipe: Path, ranks: int, rank: int, point: str, number: int) -> bool:
    """Run, or go on, until one process kills itself at that point; False when it ended without reaching it."""
    resumes = ["--resume"] if (recipe.parent / recipe.stem).exists() else []
    done = forks.prefopt(recipe.parent, "train", str(recipe), *resumes, ranks=ranks, kill=(rank, point, number))
    if done.codes[rank] == 0:
        assert done.codes == [0] * ranks, done.err
        return False
    assert done.codes[rank] == -signal.SIGKILL, done.err[rank]
    for other in set(range(ranks)) - {rank}:
        assert done.codes[other] == 2, "the others end, with a sentence"
        assert "lost another one" in done.err[other], done.err[other]
    return True


@pytest.fixture(scope="module", params=[*KINDS])
def uninterrupted(request, forks: Forks, tmp_path_factory, tiny_model: Path) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(f"whole-{request.param.replace(' ', '-')}")
    finish(forks, recipe_for(folder, tiny_model, request.param, "whole"), ranks=ranks_of(request.param))
    return request.param, folder / "whole"


def test_a_run_killed_mid_step_and_mid_checkpoint_ends_with_the_same_bits(
    uninterrupted, forks: Forks, tiny_model: Path
) -> None:
    kind, whole = uninterrupted
    seed = int(time.time())
    print(f"kill seed {seed}")
    draw, ranks = random.Random(seed), ranks_of(kind)
    recipe = recipe_for(whole.parent, tiny_model, kind, f"killed-{seed}")
    run = whole.parent / f"killed-{seed}"

    points = MID_STEP + STORING if is_cached(kind) else MID_STEP
    assert kill(forks, recipe, ranks, draw.randrange(ranks), draw.choice(points), draw.randint(4, 8))
    # Rank 0 does most of the writing; another one writes its random state alone.
    assert kill(forks, recipe, ranks, 0, draw.choice(["saving a file", "sync", "rename"]), draw.randint(1, 3))
    assert list(run.glob(".writing-checkpoint-*")), "the kill hit inside a checkpoint, which it left unfinished"
    finish(forks, recipe, "--resume", ranks=ranks)

    assert weights(run) == weights(whole)
    assert losses(run) == losses(whole), "every step is logged once, with the loss of the uninterrupted run"


def test_a_reference_that_moves_stands_after_a_kill_where_it_would_have_stood(
    forks: Forks, tmp_path: Path, tiny_model: Path
) -> None:
    whole, killed, still = (
        recipe_for(tmp_path, tiny_model, "dpo", name, reference)
        for name, reference in (("whole", MOVING), ("killed", MOVING), ("still", ""))
    )
    finish(forks, whole)
    assert kill(forks, killed, 1, 0, "optimizer step", 12)
    finish(forks, killed, "--resume")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    finish(forks, still)
    assert losses(tmp_path / "still") != losses(tmp_path / "whole"), "it did move"


@pytest.mark.soak
@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_again_and_again_ends_with_the_same_bits(
    uninterrupted, forks: Forks, tiny_model: Path, point: str
) -> None:
    """Kill at the first, second, third ... time that each start reaches the point, until one start ends the run."""
    kind, whole = uninterrupted
    if point in STORING and not is_cached(kind):
        pytest.skip("nothing is stored")
    name = f"killed-at-{point.replace(' ', '-')}"
    recipe = recipe_for(whole.parent, tiny_model, kind, name)
    kills, ranks = 0, ranks_of(kind)
    while kill(forks, recipe, ranks, 0, point, kills + 1):
        kills += 1
        assert kills < 200, "a start reaches the point no more often than a whole run does"
    print(f"{kind}: {kills} kills at '{point}'")
    assert kills >= 3
    assert weights(whole.parent / name) == weights(whole)
    assert losses(whole.parent / name) == losses(whole)


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory, tiny_model: Path) -> Path:
    """One uninterrupted run of DPO."""
    folder = tmp_path_factory.mktemp("whole")
    finish(forks, recipe_for(folder, tiny_model, "dpo", "whole"))
    return folder / "whole"


def test_a_torn_checkpoint_is_skipped_with_a_warning_and_the_bits_are_the_same(
    whole: Path, forks: Forks, tiny_model: Path
) -> None:
    recipe = recipe_for(whole.parent, tiny_model, "dpo", "torn")
    run = whole.parent / "torn"
    finish(forks, recipe)
    newest = max(run.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    (newest / "optimizer.pt").write_bytes(b"torn")
    (run / "adapter" / "adapter_model.safetensors").unlink()
    done = finish(forks, recipe, "--resume")
    assert "optimizer.pt has 4 bytes" in done.err[0]
    assert weights(run) == weights(whole)


def test_a_run_of_weights_in_parts_goes_on_in_one_process_with_whole_ones(
    forks: Forks, tmp_path: Path, tiny_model: Path
) -> None:
    kind = "dpo of weights in parts by two processes"
    alone = recipe_for(tmp_path, tiny_model, kind, "alone")
    finish(forks, alone)
    recipe = recipe_for(tmp_path, tiny_model, kind, "parts")
    assert kill(forks, recipe, 2, 1, "optimizer step", 8)
    finish(forks, recipe, "--resume")
    expected = losses(tmp_path / "alone")
    assert losses(tmp_path / "parts") == pytest.approx(expected, rel=1e-3)
    assert len(set(expected.values())) == 10


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(
    first: int, then: int, whole: Path, forks: Forks, tiny_model: Path
) -> None:
    recipe = recipe_for(whole.parent, tiny_model, "dpo", f"from-{first}-to-{then}")
    assert kill(forks, recipe, first, 0, "optimizer step", 8)
    finish(forks, recipe, "--resume", ranks=then)
    run = whole.parent / recipe.stem
    assert losses(run).keys() == losses(whole).keys()
    assert list(losses(run).values()) == pytest.approx(list(losses(whole).values()), rel=1e-3)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_disk_that_is_full_is_a_sentence_and_the_last_good_checkpoint_is_intact(
    ranks: int, whole: Path, forks: Forks, tiny_model: Path
) -> None:
    # A cache writes to the disk too, and says so first.
    recipe = recipe_for(whole.parent, tiny_model, "dpo", f"full-{ranks}", "cache: false, ")
    run = whole.parent / recipe.stem
    assert kill(forks, recipe, ranks, 0, "optimizer step", 4)
    largest = max(file.stat().st_size for file in (run / "checkpoint-2").iterdir())
    for allowed in (largest - 1, 3000):  # the largest file, and one of the first, no longer fit
        done = forks.prefopt(recipe.parent, "train", str(recipe), "--resume", ranks=ranks, full_at=allowed)
        assert set(done.codes) == {2}, done.err
        assert "checkpoint-4 could not be written" in done.err[0]
        assert "Traceback" not in "".join(done.err)
        assert [path.name for path in run.glob("*checkpoint-*")] == ["checkpoint-2"]
    finish(forks, recipe, "--resume", ranks=ranks)
    if ranks == 1:
        assert weights(run) == weights(whole)


def test_a_run_resumes_only_with_the_recipe_it_began_with(whole: Path, forks: Forks, tiny_model: Path) -> None:
    recipe = recipe_for(whole.parent, tiny_model, "dpo", "whole")
    done = forks.prefopt(recipe.parent, "train", str(recipe), "--resume", "loss.beta=0.7")
    assert done.codes == [2]
    assert "loss.beta" in done.err[0]
    assert "Traceback" not in done.err[0]
    assert json.loads((whole / "environment.json").read_text())


def test_weights_in_parts_all_learn_after_they_were_measured(forks: Forks, tmp_path: Path, tiny_model: Path) -> None:
    """A pass without gradient before the optimizer is made leaves nothing whole that ought to be in parts."""
    found = {}
    for name, ranks in (("alone", 1), ("parts", 2)):
        recipe = recipe_for(tmp_path, tiny_model, "dpo of weights in parts by two processes", name, "")
        text = recipe.read_text().replace("name: dpo, beta: 0.1", "name: simpo")
        held_out = write_rows(tmp_path / "held_out.jsonl", pair_rows(4))
        recipe.write_text(text.replace("max_length: 256", f"max_length: 256, eval: {held_out}"))
        finish(forks, recipe, ranks=ranks)
        (file,) = (tmp_path / name / "model").glob("*.safetensors")
        found[name] = load_file(file)
    for name, weight in found["alone"].items():
        assert torch.allclose(found["parts"][name], weight, rtol=0, atol=2e-4), name
    start = load_file(next(tiny_model.glob("*.safetensors")))
    assert start.keys() <= found["parts"].keys()
    assert all((found["parts"][name] - weight).abs().max() > 1e-3 for name, weight in start.items())
