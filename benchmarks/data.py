"""Measure how fast preferences are loaded: cold, warm from the cache, and beside TRL's preprocessing of the same file.

    python benchmarks/data.py                     # 20,000 pairs of some 200 tokens, 3 repeats
    python benchmarks/data.py --rows 2000 --repeats 1
    python benchmarks/data.py --workers 0 --no-trl     # by one process, beside a run without

Every measurement is a process of its own and the sides take turns: a ratio is that of two neighbours, since others
may be busy on the same machine. Seconds are of the load alone, behind imports and the tokenizer; `cpu` is the
processor time that it took. The last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGES = ("tokenizers", "transformers", "datasets", "trl")
COMMON = "the of and to in is was that for it as with on be by at from his he but not are this have an which film"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=24, help="words of a prompt and of each completion")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default=MODEL, help="whose tokenizer; a name or a folder")
    parser.add_argument("--workers", type=int, help="processes of prefopt's load; unset, as data.workers is unset")
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--measure", choices=("prefopt", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def write_pairs(path: Path, rows: int, words: int) -> None:
    """Write pairs of made-up words by Zipf's law, so that most are common and new ones keep coming."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    vocabulary = COMMON.split() + ["".join(draw.choices(letters, k=draw.randint(3, 9))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]

    def text() -> str:
        found = draw.choices(vocabulary, weights, k=words)
        return " ".join(word + ("." if i % 11 == 10 else "") for i, word in enumerate(found)).capitalize() + "."

    with path.open("w") as file:
        for _ in range(rows):
            turns = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
            row = {name: [{"role": role, "content": text()}] for name, role in turns.items()}
            file.write(json.dumps(row) + "\n")


def measure(side: str, file: str, model: str, workers: int | None) -> dict[str, float]:
    """Load the file once; processes that the load starts are counted in `cpu`."""
    from prefopt.models.tokenizer import tokenizer_of

    tokenizer = tokenizer_of(model)
    load = partial(load_with_prefopt, workers=workers) if side == "prefopt" else load_with_trl
    started, before = time.perf_counter(), os.times()
    rows, tokens = load(file, tokenizer)
    seconds, after = time.perf_counter() - started, os.times()
    used = sum(after[:4]) - sum(before[:4])
    return {"seconds": seconds, "cpu": used, "rows": rows, "tokens": tokens}


def load_with_prefopt(file: str, tokenizer: Any, workers: int | None = None) -> tuple[int, int]:
    from prefopt import load_preferences

    data = load_preferences(file, tokenizer, workers=workers)
    return len(data), int(data.prompt_lengths.sum() + data.completion_lengths.sum())


def load_with_trl(file: str, tokenizer: Any) -> tuple[int, int]:
    """Run the preparation of TRL's DPOTrainer, as its constructor does, with a process a core."""
    import datasets
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    dataset = datasets.load_dataset("json", data_files=file, split="train")
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(output_dir=folder, dataset_num_proc=os.cpu_count(), max_length=1024, use_cpu=True)
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer._tokenizer = tokenizer
    prepared = trainer._prepare_dataset(dataset, tokenizer, settings, "train")
    held = sum(len(row[name]) for row in prepared for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return len(prepared), held


def run(side: str, file: Path, home: Path, options: argparse.Namespace) -> dict[str, float]:
    """Measure in a process of its own, whose caches of data lie in `home`."""
    environment = {**os.environ, "PREFOPT_BENCHMARK_CACHE": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
    command = [sys.executable, str(HERE / "data.py"), "--measure", side, "--file", str(file), "--model", options.model]
    command += [] if options.workers is None else ["--workers", str(options.workers)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(f"{side} failed:\n{found.stderr[-3000:]}")
    return dict(json.loads(found.stdout.splitlines()[-1]))


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.measure:
        from prefopt.data import cache

        folder = Path(os.environ["PREFOPT_BENCHMARK_CACHE"])
        cache.default_folder = lambda: folder / "prefopt"
        print(json.dumps(measure(options.measure, options.file, options.model, options.workers)))
        return 0
    with_trl = not options.no_trl and importlib.util.find_spec("trl") is not None
    results: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "pairs.jsonl"
        write_pairs(file, options.rows, options.words)
        for repeat in range(options.repeats):
            home = Path(place) / str(repeat)
            found = {name: run("prefopt", file, home, options) for name in ("cold", "warm")}
            if with_trl:
                found["trl"] = run("trl", file, home, options)
            results.append(found)
            for name, own in found.items():
                rows, tokens = own["rows"] / own["seconds"], own["tokens"] / own["seconds"]
                times = f"{own['seconds']:8.2f} s {own['cpu']:8.2f} s cpu"
                print(f"{name:5} {times} {rows:10.0f} rows/s {tokens:12.0f} tokens/s", flush=True)
    summary = {
        name: {
            "rows_per_second": statistics.median(own[name]["rows"] / own[name]["seconds"] for own in results),
            "tokens_per_second": statistics.median(own[name]["tokens"] / own[name]["seconds"] for own in results),
            "rows_per_cpu_second": statistics.median(own[name]["rows"] / own[name]["cpu"] for own in results),
            "seconds": statistics.median(own[name]["seconds"] for own in results),
        }
        for name in results[0]
    }
    ratios = [own["trl"]["seconds"] / own["cold"]["seconds"] for own in results] if with_trl else []
    installed = [name for name in PACKAGES if importlib.util.find_spec(name) is not None]
    report = {
        "settings": {name: getattr(options, name) for name in ("rows", "words", "repeats", "workers", "model")},
        "tokens_per_row": results[0]["cold"]["tokens"] / results[0]["cold"]["rows"],
        "sides": summary,
        "times_trl": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)} if ratios else None,
        "versions": {name: version(name) for name in installed},
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    raise SystemExit(main())
