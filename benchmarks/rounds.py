"""What rounds come to on a real model: a task with and without thinking, and on a base of 4 bits.

    python benchmarks/rounds.py --out runs/benchmark
    python benchmarks/rounds.py --only largest nf4
    python benchmarks/rounds.py --only thinking --rounds 2 --prompts 48

`largest` and `thinking`: IRPO, and as its control imitation of the accepted answers, on the largest of three numbers,
for which the model has four examples in its prompt. `nf4`: IRPO on a base of 4 bits. RSO and RAFT beside offline DPO at
equal KL are a part of `frontier.py`. Every run is one of `prefopt rounds` in its folder below `--out`: started again,
the script goes on where it was, and `prefopt rounds plot` draws them. It prints a table in Markdown with 95 % intervals
over held-out prompts; a run that fails is a line that says why. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from prefopt.errors import PrefoptError
from prefopt.rounds.evaluating import METRICS
from prefopt.rounds.files import read_json, write_text
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.recipe import RoundsRecipe, load_rounds

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SHOTS = 4
"""Worked examples in a prompt."""
Row = dict[str, Any]
Measured = dict[str, Any]


def task_rows(count: int, *, thinking: bool, seed: int) -> Iterator[Row]:
    """Yield prompts, each about three other numbers, behind worked examples that are none of them."""
    draw = random.Random(seed)
    seen: set[tuple[int, ...]] = set()
    examples: list[Row] = []
    while len(seen) < SHOTS + count:
        numbers = draw.sample(range(10, 100), 3)
        if tuple(sorted(numbers)) in seen:
            continue
        seen.add(tuple(sorted(numbers)))
        question = {"role": "user", "content": f"Which is the largest of {numbers[0]}, {numbers[1]} and {numbers[2]}?"}
        if len(seen) <= SHOTS:
            examples += [question, {"role": "assistant", "content": _worked(numbers, thinking=thinking)}]
        else:
            yield {"prompt": [*examples, question], "answer": str(max(numbers))}


def _worked(numbers: Sequence[int], *, thinking: bool) -> str:
    first, second, third = numbers
    larger, largest = max(first, second), max(numbers)
    thought = f"<think>{first}, {second}: {larger}. {larger}, {third}: {largest}.</think> " if thinking else ""
    return f"{thought}{largest}"


def write_task(folder: Path, options: argparse.Namespace, *, thinking: bool) -> list[str]:
    """Write prompts to learn from and held out; returns the overrides that name them."""
    rows = list(task_rows(options.prompts + options.held_out, thinking=thinking, seed=0))
    found = []
    for side, part in (("train", rows[: options.prompts]), ("eval", rows[options.prompts :])):
        path = folder / f"{'thinking' if thinking else 'largest'}-{side}.jsonl"
        write_text(path, "".join(json.dumps(row) + "\n" for row in part))
        found.append(f"prompts.{side}={path.absolute()}")
    return found


def rounds_of(recipe: str, out: Path, options: argparse.Namespace, *overrides: str) -> Callable[[], list[Measured]]:
    """Return what runs a preset, or goes on with it, and gives what was measured at the start and after each round."""

    def run() -> list[Measured]:
        # Unless they are done by a script that ended: what is there stays.
        result = run_rounds(loaded(recipe, out, options, *overrides), console=Console(stderr=True))
        folders = [result.path / "start", *(result.path / f"round-{n:03d}" for n in range(result.rounds))]
        return [dict(read_json(folder / METRICS)) for folder in folders]

    return run


def loaded(recipe: str, out: Path, options: argparse.Namespace, *overrides: str) -> RoundsRecipe:
    """Return a preset with the script's settings in it."""
    common = [f"model.name={options.model}", f"rounds.count={options.rounds}", "reference.cache=false"]
    if options.steps:
        common.append(f"train.max_steps={options.steps}")
    own = [f"train.output_dir={out}", f"sample.n={options.n}", f"eval.n={options.eval_n}"]
    return load_rounds(RECIPES / f"rounds/{recipe}.yaml", [*common, *own, *overrides])


def largest(out: Path, options: argparse.Namespace, *, thinking: bool, nf4: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield IRPO on the verifiable task and its control, by name."""
    rules = "{required: true, if_broken: 0}" if thinking else "null"
    given = [
        *write_task(out / "data", options, thinking=thinking),
        f"score={{kind: numeric, thinking: {rules}}}",
        f"sample.max_new_tokens={48 if thinking else 8}",
    ]
    if nf4:
        given.append("model.quantization=nf4")
    name = f"{'thinking' if thinking else 'largest'}{'-nf4' if nf4 else ''}"
    yield f"{name}: irpo", rounds_of("irpo", out / f"{name}-irpo", options, *given)
    if not nf4:
        control = ["loss=sft", "rounds.reference=fixed"]
        yield f"{name}: imitation", rounds_of("irpo", out / f"{name}-sft", options, *given, *control)


def table(found: dict[str, list[Measured] | str]) -> list[str]:
    """Return the lines of a Markdown table, and of what follows from it."""
    lines = ["| run | after | pass@1 | KL, nats | tokens |", "| --- " * 5 + "|"]
    for name, measured in found.items():
        if isinstance(measured, str):
            lines.append(f"| {name} | {measured} | | | |")
            continue
        for number, one in enumerate(measured):
            cells = [_cell(one.get(key), form) for key, form in _COLUMNS]
            lines.append(f"| {name} | {number} | {' | '.join(cells)} |")
    lines.append("")
    for name, measured in found.items():
        if isinstance(measured, list) and measured[0].get("pass@1") and len(measured) > 1:
            first, last = measured[0]["pass@1"], measured[-1]["pass@1"]
            apart = "apart" if last["low"] > first["high"] else "not apart"
            gain = 100 * (last["value"] - first["value"])
            lines.append(f"{name}: {gain:+.1f} points of pass@1, 95 % intervals {apart}.")
    return lines


_COLUMNS = (("pass@1", ".1%"), ("kl", ".2f"), ("length", ".1f"))


def _cell(value: Any, form: str) -> str:
    if not value or value["value"] is None:
        return ""
    return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


CELLS: dict[str, Callable[[Path, argparse.Namespace], Iterator[tuple[str, Any]]]] = {
    "largest": lambda out, options: largest(out, options, thinking=False),
    "thinking": lambda out, options: largest(out, options, thinking=True),
    "nf4": lambda out, options: largest(out, options, thinking=False, nf4=True),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="a name or a folder")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-rounds"))
    parser.add_argument("--only", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=96, help="to learn from")
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--n", type=int, default=8, help="samples of a prompt")
    parser.add_argument("--eval-n", type=int, default=4, help="samples of a held-out prompt")
    parser.add_argument("--steps", type=int, help="train so many steps a round, and no whole epochs")
    options = parser.parse_args(arguments)
    found: dict[str, list[Measured] | str] = {}
    for cell in options.only:
        for name, run in CELLS[cell](options.out, options):
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                found[name] = run()
            except PrefoptError as error:  # the other runs are of use without it
                found[name] = " ".join(str(error).split())
    print("\n".join(table(found)))
    print(json.dumps({"model": str(options.model), "runs": found}))
    return int(any(isinstance(one, str) for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
