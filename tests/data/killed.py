"""`python -m tests.data.killed KIND WORKERS STEPS OUT [POINT N]`: a loader that goes on where OUT ends.

Every step appends a line to OUT, its hash and the loader's state. At the N-th time that the process reaches POINT it
kills itself; nothing of it runs after that.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from prefopt.data import (
    Packing,
    PreferenceStream,
    StepLoader,
    StepPlan,
    StreamLoader,
    Weighted,
    encode,
    load_preferences,
    stream,
)
from prefopt.data.read import text
from tests.toys import byte_tokenizer, pair_rows, write_rows
from tests.train.killed import killed_at

KINDS = ("map", "map mixture", "stream", "stream mixture")
POINTS: dict[str, tuple[Any, str]] = {
    "reading a row": (text, "_parse_line"),
    "building packs": (stream, "build_packs"),
    "tokenizing in a worker": (encode.RowEncoder, "__call__"),
    "writing a step": (json, "dumps"),
}


def loader_of(kind: str, folder: Path, workers: int, rank: int = 0, world: int = 1) -> StepLoader | StreamLoader:
    """Return a loader over pairs (two sources, 3 to 1, of a mixture), twelve examples a step."""
    paths = [folder / f"{name}.jsonl" for name in "ab"]
    for seed, path in enumerate(paths):
        if not path.is_file():
            rows = pair_rows(120 - 50 * seed, seed=seed)
            rows[7]["prompt"] = rows[8]["prompt"]
            write_rows(path, rows)
    names = [str(path) for path in paths]
    weights = tuple(Weighted((n,), w) for n, w in zip(names, (3, 1), strict=True)) if "mixture" in kind else ()
    tokenizer = byte_tokenizer()
    if kind.startswith("stream"):
        held = PreferenceStream(names, tokenizer, weights=weights, window=50, workers=workers)
        packing = Packing(500, shared=True, rank=rank, world=world)
        asked = held.for_loss("unpaired", needs_mismatched=True)
        return StreamLoader(asked, packing, examples_per_step=12, seed=0, mismatched=True)
    data = load_preferences(names, tokenizer)
    plan = StepPlan(data, examples_per_step=12, seed=0, mismatched=True, weights=weights)
    return StepLoader(plan, token_budget=500, shared=True, workers=workers, rank=rank, world=world)


def lines_of(out: Path) -> list[dict[str, Any]]:
    """Return the steps that were written whole."""
    text = out.read_text() if out.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def run(loader: StepLoader | StreamLoader, steps: int, out: Path) -> None:
    done = lines_of(out)
    out.write_text("".join(json.dumps(line) + "\n" for line in done))
    if done:
        loader.load_state_dict(done[-1]["state"])
    with out.open("a") as file:
        while len(done) < steps:
            for item in loader:
                digest = hashlib.sha256()
                for pack in item["micro"]:
                    for part in (pack.tokens, pack.score_at, pack.target, pack.pair, pack.labelled, pack.mismatched):
                        digest.update(str(tuple(part.shape)).encode() + part.numpy().tobytes())
                done.append({"step": digest.hexdigest(), "state": loader.state_dict()})
                file.write(json.dumps(done[-1]) + "\n")
                file.flush()
                if len(done) == steps:
                    break


if __name__ == "__main__":
    kind, workers, steps, out, *kill = sys.argv[1:]
    loader = loader_of(kind, Path(out).parent, int(workers))
    if kill:
        owner, name = POINTS[kill[0]]
        setattr(owner, name, killed_at(int(kill[1]), getattr(owner, name)))
    run(loader, int(steps), Path(out))
