"""The controlled-sentiment experiment of DPO (arXiv:2305.18290, section 6.1, Figure 2) at the size of the demo.

    python benchmarks/frontier.py --out frontier                 # everything: more than an hour of one core
    python benchmarks/frontier.py --out frontier --only rso      # one of them; again for the rest
    python benchmarks/frontier.py --out toy --model TINY --steps 4 --prompts 4 --samples 2 --new-tokens 8

The demo's model learns from the demo's human pairs of film-review sentences by DPO at four beta, IPO, KTO and SFT on
the liked sentences, each from the same start for as many steps of as many pairs. RAFT (best of n samples by VADER, then
SFT on them) and RSO (samples accepted by VADER and ranked into pairs, then DPO on them) never see the pairs. Then all
answer the same held-out prompts, and VADER's compound score of the samples stands over the sequence KL to the start:
`prefopt eval frontier` for every checkpoint and round.

Held out are the demo's eight prompts, each about eight kinds of film; rounds sample from the same about eight others. A
run that is finished is not trained again, and a point that is measured is not sampled again. Ends in
OUT/frontier.{json,csv,png,svg} and OUT/frontier.md, whose table is printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from prefopt.demo.pairs import PROMPTS, load_sentences, make_pairs, write_rows
from prefopt.demo.run import MODEL
from prefopt.eval.frontier import Frontier, FrontierPoint
from prefopt.recipe import Recipe
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.recipe import RoundsRecipe
from prefopt.train.callbacks import replace_text
from prefopt.workflow import train_run
from prefopt.workflow.frontier import FrontierOptions, frontier_of_runs

LOSSES: dict[str, Any] = {
    "dpo-0.03": {"name": "dpo", "beta": 0.03},
    "dpo-0.1": {"name": "dpo", "beta": 0.1},
    "dpo-0.3": {"name": "dpo", "beta": 0.3},
    "dpo-1": {"name": "dpo", "beta": 1.0},
    "ipo": {"name": "ipo"},
    "kto": {"name": "kto"},
    "sft": {"name": "sft"},
}
ROUNDS: dict[str, dict[str, Any]] = {
    "raft": {"select": {"selector": "top_k", "k": 1}, "loss": {"name": "sft"}},
    "rso": {
        "select": {"selector": "rso", "form": "pairs", "k": 4, "beta": 0.25},
        "loss": {"name": "dpo", "beta": 0.1},
    },
}
METHODS = [*LOSSES, *ROUNDS]
LABELLED = ("kto",)  # a pair is two examples of theirs
LEARNT = ("a comedy", "a love story", "a war film", "a horror film", "a western", "a family film", "an action film",
          "a biography")  # fmt: skip
HELD_OUT = ("a drama", "a thriller", "a documentary", "a science fiction film", "a crime film", "a musical",
            "an animated film", "a historical film")  # fmt: skip


def prompts(kinds: tuple[str, ...], count: int) -> list[dict[str, Any]]:
    """Return the demo's prompts about kinds of film, in turn, as conversations."""
    rows = [
        {"prompt": [{"role": "user", "content": f"{prompt} The film is {kind}."}]}
        for kind in kinds
        for prompt in PROMPTS
    ]
    return rows[:count]


def write_inputs(folder: Path, options: argparse.Namespace) -> None:
    """Write pairs and prompts: the same in every call."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(make_pairs(load_sentences()).train, folder / "pairs.jsonl")
    for name, kinds, count in (
        ("held_out", HELD_OUT, options.prompts),
        ("rounds", LEARNT, options.round_prompts),
    ):
        text = "".join(json.dumps(row) + "\n" for row in prompts(kinds, count))
        replace_text(folder / f"{name}.jsonl", text)


def shared(run: Path, options: argparse.Namespace, *, examples: int) -> dict[str, Any]:
    """Return the sections that all runs have in common."""
    return {
        "model": {"name": options.model, "lora": {"r": 16, "alpha": 32}},
        "train": {
            "output_dir": run, "examples_per_step": examples, "token_budget": 4096, "warmup_steps": 3,
            "learning_rate": options.learning_rate, "lr_scheduler_type": "constant_with_warmup",
        },
    }  # fmt: skip


def train(name: str, run: Path, options: argparse.Namespace, console: Console) -> None:
    """Train one loss on the human pairs, with as many checkpoints as points are asked for."""
    common = shared(run, options, examples=options.pairs * (2 if name in LABELLED else 1))
    common["train"] |= {
        "max_steps": options.steps, "save_steps": max(1, options.steps // options.points),
        "save_total_limit": options.points,
    }  # fmt: skip
    recipe = Recipe.model_validate(
        {
            **common,
            "data": {
                "train": str(options.out / "inputs" / "pairs.jsonl"),
                "max_length": options.max_length,
                "group_prompts": False,
            },
            "loss": LOSSES[name],
            # One store for all: the reference is the same model for every loss.
            "reference": {"cache_dir": options.out / "references"} if name != "sft" else {},
            "eval": {"samples": 0},
        }
    )
    train_run(recipe, resume=run.exists(), console=console)


def train_rounds(name: str, run: Path, options: argparse.Namespace, console: Console) -> None:
    """Rounds of: sample, select by VADER, learn what was selected."""
    common = shared(run, options, examples=options.pairs)
    common["train"] |= {"num_train_epochs": options.round_epochs}
    inputs = options.out / "inputs"
    recipe = RoundsRecipe.model_validate(
        {
            **common,
            **ROUNDS[name],
            "prompts": {"train": str(inputs / "rounds.jsonl"), "eval": str(inputs / "held_out.jsonl")},
            "sample": {"n": options.round_samples, "max_new_tokens": options.new_tokens},
            "score": {"kind": "sentiment"},
            "rounds": {"count": options.rounds},
            "eval": {"n": 1},
        }
    )
    run_rounds(recipe, console=console)


def table(frontier: Frontier) -> str:
    """Return the points as a Markdown table, the dominating ones in bold."""
    head = ("point", "reward (VADER)", "KL, nats", "KL by log-ratios", "tokens", "cut")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    lines += [_row(point) for point in frontier.points]
    count = frontier.points[0].completions
    return "\n".join(lines) + (
        f"\n\n{count} samples a point ({frontier.prompts} prompts x {frontier.samples_per_prompt}, at most "
        f"{frontier.max_new_tokens} tokens), 95 % intervals over prompts; in bold the dominating set.\n"
    )


def _row(point: FrontierPoint) -> str:
    def cell(found: Any) -> str:
        return "-" if found.value is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"

    label = f"**{point.label}**" if point.dominating else point.label
    length = "-" if point.length.value is None else f"{point.length.value:.1f}"
    return (
        f"| {label} | {cell(point.reward)} | {cell(point.kl)} | {cell(point.kl_log_ratio)} | {length} | "
        f"{point.truncated:.0%} |"
    )


def finished(run: Path, options: argparse.Namespace) -> bool:
    """Whether a run needs no more training."""
    if run.name in ROUNDS:
        return (run / f"round-{options.rounds - 1:03d}" / "evaluate.json").is_file()
    return (run / "adapter").is_dir()


def main(arguments: list[str] | None = None) -> int:
    """Train what is not trained, measure what is not measured, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and results; kept between calls")
    parser.add_argument("--only", action="append", metavar="NAME", help=f"repeatable: {', '.join(METHODS)}")
    parser.add_argument("--steps", type=int, default=40, help="of every loss on pairs")
    parser.add_argument("--points", type=int, default=2, help="checkpoints of a run, each a point")
    parser.add_argument("--pairs", type=int, default=16, help="of one step")
    parser.add_argument("--max-length", type=int, default=256, help="tokens of a pair's completion and its prompt")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--rounds", type=int, default=3, help="of raft and rso")
    parser.add_argument("--round-prompts", type=int, default=64)
    parser.add_argument("--round-samples", type=int, default=8, help="of each prompt: raft learns 1, rso 2 pairs of 4")
    parser.add_argument("--round-epochs", type=int, default=3, help="over what was selected, a round")
    parser.add_argument("--prompts", type=int, default=64, help="held out; 64 at most")
    parser.add_argument("--samples", type=int, default=4, help="of each held-out prompt")
    parser.add_argument("--new-tokens", type=int, default=24, help="of a sample at most")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-measure", action="store_true", help="train alone")
    options = parser.parse_args(arguments)
    names = options.only or METHODS
    if unknown := [name for name in names if name not in METHODS]:
        parser.error(f"{unknown[0]} is none of {', '.join(METHODS)}")
    torch.set_num_threads(options.threads)
    options.out = options.out.resolve()
    write_inputs(options.out / "inputs", options)
    console, took = Console(stderr=True), {}
    for name in names:
        run, began = options.out / "runs" / name, time.monotonic()
        if finished(run, options):
            continue
        console.print(f"{name}: training", highlight=False)
        if run.exists() and not any(run.glob("*/*.json")) and not any(run.glob("checkpoint-*")):
            shutil.rmtree(run)  # it was ended before anything of it could be gone on with
        if name in ROUNDS:
            train_rounds(name, run, options, console)
        else:
            train(name, run, options, console)
        took[name] = round(time.monotonic() - began)
    if options.no_measure:
        return 0
    runs = [run for name in METHODS if finished(run := options.out / "runs" / name, options)]
    began = time.monotonic()
    frontier = frontier_of_runs(
        runs,
        scorer="sentiment",
        prompts=str(options.out / "inputs" / "held_out.jsonl"),
        out=options.out,
        options=FrontierOptions(
            samples_per_prompt=options.samples, max_new_tokens=options.new_tokens, checkpoints=True
        ),
        say=lambda line: console.print(line, highlight=False, markup=False),
    )
    took["frontier"] = round(time.monotonic() - began)
    replace_text(options.out / "frontier.md", table(frontier))
    print(table(frontier))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    print(json.dumps({"benchmark": "frontier", "seconds": took, "settings": settings, "torch": torch.__version__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
