"""Loaders killed with SIGKILL go on to the token; and a long file leaves no trace in memory."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.killed import KINDS, POINTS, lines_of, loader_of, run

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40


def start(kind: str, workers: int, out: Path, *kill: str) -> int:
    command = [sys.executable, "-m", "tests.data.killed", kind, str(workers), str(STEPS), str(out), *kill]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, cwd=ROOT)
    killed = done.returncode == -signal.SIGKILL or "A process that prepares data died" in done.stderr
    # The news of a dead worker comes as a signal, which may find the loader anywhere.
    killed = killed or "DataLoader worker" in done.stderr
    assert done.returncode == 0 or (kill and killed), done.stderr
    return done.returncode


def whole(kind: str, folder: Path) -> list[dict[str, object]]:
    out = folder / "whole.jsonl"
    run(loader_of(kind, folder, 0), STEPS, out)
    return lines_of(out)


@pytest.mark.parametrize(
    ("kind", "workers", "point"),
    [
        ("stream mixture", 0, "reading a row"),
        ("stream", 2, "tokenizing in a worker"),
        ("map mixture", 2, "building packs"),
    ],
)
def test_a_killed_loader_goes_on_to_the_token(tmp_path: Path, kind: str, workers: int, point: str) -> None:
    seed = int(time.time())
    print(f"kill seed {seed}")
    draw = random.Random(seed)
    out = tmp_path / "killed.jsonl"
    number = draw.randint(2, 3) if workers else draw.randint(60, 240)
    while start(kind, workers, out, point, str(number)) == 0:  # on a busy machine no worker may come there so often
        number -= 1
        assert workers
        assert number
        out.unlink()
    start(kind, workers, out)
    assert lines_of(out) == whole(kind, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_killed_again_and_again_goes_on_to_the_token(tmp_path: Path, kind: str, workers: int) -> None:
    draw = random.Random(int(time.time()))
    expected = whole(kind, tmp_path)
    kills = 0
    for point in POINTS:
        out = tmp_path / f"{point.replace(' ', '-')}.jsonl"
        most = 300 if point == "reading a row" else 12
        if workers and point != "writing a step":
            most = 4  # each worker comes there a few times only
        for _ in range(6):
            number = draw.randint(1, most)
            kills += start(kind, workers, out, point, str(number)) != 0
        start(kind, workers, out)
        assert lines_of(out) == expected
    print(f"{kind}, {workers} workers: {kills} kills")
    assert kills >= 8


@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_goes_on_to_the_token(tmp_path: Path, kind: str) -> None:
    for rank in range(2):
        out, again = tmp_path / f"{rank}.jsonl", tmp_path / f"{rank}-again.jsonl"
        run(loader_of(kind, tmp_path, 0, rank, 2), STEPS, out)
        run(loader_of(kind, tmp_path, 0, rank, 2), 17, again)
        run(loader_of(kind, tmp_path, 0, rank, 2), STEPS, again)
        assert lines_of(again) == lines_of(out)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_streaming_two_gigabytes_grows_memory_by_less_than_300_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    notes = "x" * 2900  # a column that nothing uses, so that most of the time is not the tokenizer's
    with path.open("w") as file:
        for number in range(700_000):
            row = {"prompt": f"{number}?", "chosen": f" yes {number}", "rejected": f" no {number}", "notes": notes}
            file.write(json.dumps(row) + "\n")
    size = path.stat().st_size
    assert size > 2e9
    code = (
        "import resource; from prefopt.data import *; from tests.toys import byte_tokenizer\n"
        f"stream = PreferenceStream({str(path)!r}, byte_tokenizer())\n"
        "loader = StreamLoader(stream, Packing(8192, True), examples_per_step=64, seed=0)\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 1e6\n"
        "steps, base, top = iter(loader), rss(), 0\n"
        "while loader.state_dict()['at'] is None or not loader.state_dict()['at']['lanes'][0]['passes']:\n"
        "    next(steps); top = max(top, rss())\n"
        "print(top - base)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    grown = float(done.stdout)
    print(f"{size / 1e9:.2f} GB streamed, memory grew by {grown:.0f} MB")
    assert grown < 300
