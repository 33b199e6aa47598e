"""Rounds that are killed at any instant and started again end with the bits of rounds that were not."""

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prefopt.rounds.events import read_events
from prefopt.rounds.files import read_json
from tests.rounds.toy import contents, write_task
from tests.train.forks import Forks

ROUNDS = 3


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(forks: Forks, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder of a run that nothing interrupted, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("rounds")
    done = forks.prefopt(folder, "rounds", str(write_task(folder, tiny_model, "whole", count=ROUNDS)))
    assert done.codes == [0], done.err
    events = read_events(folder / "whole")
    return folder, events[-1]["time"] - events[0]["time"]


def run_with_kills(
    forks: Forks, folder: Path, model: Path, kills: int, seconds: float, draw: random.Random
) -> tuple[Path, int]:
    """Run, killing so many times at random instants, and then to the end; returns the run and how many kills hit it."""
    name = f"killed-{draw.randrange(10**9)}"
    recipe = write_task(folder, model, name, count=ROUNDS)
    for met in range(kills):
        # Each start goes on where the last one was, so that kills come to everything in turn.
        after = draw.uniform(0.02, 1.5 * seconds / (kills + 1))
        done = forks.prefopt(folder, "rounds", str(recipe), kill_after=after)
        if done.codes == [0]:
            return folder / name, met
        assert done.codes == [-signal.SIGKILL], done.err
    done = forks.prefopt(folder, "rounds", str(recipe))
    assert done.codes == [0], done.err
    return folder / name, kills


def kill_and_compare(forks: Forks, whole: tuple[Path, float], model: Path, kills: int, at_once: int) -> Path:
    """Kill so many times in all, and compare each run that went on with the one that nothing interrupted."""
    folder, seconds = whole
    seed = int(time.time())
    print(f"kill seed {seed}")
    draw, left, run = random.Random(seed), kills, folder
    while left > 0:
        run, met = run_with_kills(forks, folder, model, min(left, at_once), seconds, draw)
        assert contents(run) == contents(folder / "whole")
        left -= met
    return run


def test_rounds_killed_at_random_instants_end_with_the_same_contents(
    whole: tuple[Path, float], forks: Forks, tiny_model: Path
) -> None:
    run = kill_and_compare(forks, whole, tiny_model, 3, 3)
    assert len([name for name in contents(run) if "/train/" in name]) == ROUNDS
    assert not list(run.rglob(".*-shards")), "what was kept for a resume is cleared away"


@pytest.mark.soak
def test_rounds_killed_25_times_end_with_the_same_contents(
    whole: tuple[Path, float], forks: Forks, tiny_model: Path
) -> None:
    kill_and_compare(forks, whole, tiny_model, 25, 5)


def test_two_processes_do_a_whole_round_as_one_does(whole: tuple[Path, float], forks: Forks, tiny_model: Path) -> None:
    folder, _ = whole
    recipe = write_task(folder, tiny_model, "two", count=1)
    done = forks.prefopt(folder, "rounds", str(recipe), ranks=2)
    assert done.codes == [0, 0], done.err
    assert done.out[0].strip() == str(folder / "two")
    assert not done.out[1], "one of them says what came of it"
    one, two = contents(folder / "whole"), contents(folder / "two")
    assert two.keys() == {name for name in one if name.startswith(("start/", "round-000/"))}
    trained = {name for name in two if name.startswith(("round-000/train", "round-000/eval"))}
    assert {name: two[name] for name in two.keys() - trained} == {name: one[name] for name in two.keys() - trained}
    assert "round-000/sample/rollouts.parquet" in two.keys() - trained
    # Gradients are summed in another order, so what is trained is the same up to rounding.
    adapters = [
        load_file(folder / name / "round-000/train/adapter/adapter_model.safetensors") for name in ("whole", "two")
    ]
    assert adapters[0].keys() == adapters[1].keys()
    for name, weights in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], weights, atol=1e-4, rtol=1e-3)
    measured = [read_json(folder / name / "round-000/metrics.json") for name in ("whole", "two")]
    assert measured[0].keys() == measured[1].keys()
    assert measured[1]["kl"]["value"] != 0
    starts = [event for event in read_events(folder / "two") if event["event"] == "start"]
    assert [event["processes"] for event in starts] == [2]


@pytest.mark.soak
def test_a_disk_that_is_full_ends_the_run_with_a_sentence_and_it_goes_on_afterwards(
    whole: tuple[Path, float], forks: Forks, tiny_model: Path
) -> None:
    folder, _ = whole
    recipe = write_task(folder, tiny_model, "full", count=1)
    done = forks.prefopt(folder, "rounds", str(recipe), full_at=2500)
    assert done.codes == [2], done.err
    assert "can't be written" in done.err[0] or "could not be written" in done.err[0]
    assert "Traceback" not in done.err[0]
    done = forks.prefopt(folder, "rounds", str(recipe), "--until", "select")
    assert done.codes == [0], done.err
    one, full = contents(folder / "whole"), contents(folder / "full")
    assert full
    assert all(full[name] == one[name] for name in full)


def test_status_says_what_a_whole_run_came_to(whole: tuple[Path, float], forks: Forks) -> None:
    folder, _ = whole
    done = forks.prefopt(folder, "rounds", "status", str(folder / "whole"), "--json")
    said = json.loads(done.out[0])
    assert [one["name"] for one in said["rounds"]] == ["start", "0", "1", "2"]
    assert all(len(one["done"]) == 5 for one in said["rounds"][1:])
    assert said["rounds"][0]["kl"]["value"] == 0
    for one in said["rounds"][1:]:
        assert one["rollouts"] == 32
        assert 0 < one["reward"] < 1
        assert one["seconds"] > 0
        assert one["kl"]["value"] != 0
    shown = forks.prefopt(folder, "rounds", "status", str(folder / "whole"))
    assert "round 2: whole" in shown.out[0]
    assert "  sampled   32 rollouts of 8 prompts" in shown.out[0]
    refused = forks.prefopt(folder, "rounds", "status", str(folder))
    assert refused.codes == [2]
    assert "is no run of rounds" in refused.err[0]
