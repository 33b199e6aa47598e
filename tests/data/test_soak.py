"""Many pairs: they stay on disk, and loading them takes a memory that doesn't grow with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
LOAD = """
import json, sys
from pathlib import Path
from prefopt.data import StepPlan, cache, load_preferences
from tests.data import toy_tokenizers as toys


def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


cache.SMALL = 0
cache.default_folder = lambda: Path(sys.argv[1])
tokenizer = toys.chatml()
load_preferences([{"prompt": "a", "chosen": " b", "rejected": " c"}], tokenizer)
before = anonymous()
data = load_preferences(sys.argv[2], tokenizer)
loaded = anonymous() - before
summary = data.summary.to_dict()
tokens = int(data.prompt_lengths.sum() + data.completion_lengths.sum())
plan = StepPlan(data, examples_per_step=32, seed=0)
groups = sum(len(plan.groups(0, step)) for step in range(0, plan.steps_per_epoch, max(1, plan.steps_per_epoch // 50)))
print(json.dumps([loaded, anonymous() - before, len(data), tokens, data.fingerprint, groups, summary["rows_used"]]))
"""


def load(folder, source):
    command = [sys.executable, "-c", LOAD, str(folder), str(source)]
    found = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def write_many(path, count):
    filler = "and I think that the best tea is green tea, which is a great tea " * 2
    with path.open("w") as file:
        for i in range(count):
            row = {
                "prompt": f"{i}: what is the tea? {filler}",
                "chosen": f" Yes {i % 97}. {filler}",
                "rejected": " No.",
            }
            file.write(json.dumps(row) + "\n")
    return path


def check_memory(tmp_path, count, bytes_a_row):
    source = write_many(tmp_path / "many.jsonl", count)
    cold, warm = load(tmp_path / "cache", source), load(tmp_path / "cache", source)
    assert cold[2:] == warm[2:]
    assert cold[2] == count
    # A step plan of a map-style data set holds numbers of each row (order, lengths, places); tokens and texts stay out.
    for loaded, used, *_ in (cold, warm):
        assert loaded < 120 * MIB + bytes_a_row * count, f"{loaded / MIB:.0f} MiB"
        assert used < 120 * MIB + 2 * bytes_a_row * count, f"{used / MIB:.0f} MiB"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_a_few_pairs_on_disk_are_loaded_and_planned_alike_cold_and_warm(tmp_path):
    check_memory(tmp_path, 3000, 400)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_a_million_pairs_stay_on_disk(tmp_path):
    check_memory(tmp_path, 1_000_000, 400)
