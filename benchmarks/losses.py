"""Train the demo's model on the demo's pairs with several losses, for the same budget, and measure each alike.

    python benchmarks/losses.py --plot docs/figures/losses-trained.png
    python benchmarks/losses.py --loss dpo --loss '0.8*dpo + 0.2*sft' --steps 10
    python benchmarks/losses.py --drawn-from saved.json --plot again.png      # the last line of a run, saved

Every loss starts from the same adapter, sees the same pairs in steps of as many pairs, at one learning rate, with its
default hyper-parameters. Measured on held-out pairs: by the implicit reward's sign, by log-prob a token, and by how
far the log-ratios of chosen and rejected completions moved (against the model that it started from, whether the loss
has a reference or not). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from prefopt import PreferenceTrainer, load_policy, load_preferences, losses
from prefopt.demo.pairs import load_sentences, make_pairs
from prefopt.demo.run import MODEL
from prefopt.eval import evaluate_pairs
from prefopt.models.packed import PackedModel
from prefopt.models.references import build_reference
from prefopt.train.arguments import PreferenceArguments

LOSSES = ("dpo", "ipo", "kto", "simpo", "orpo", "apo_zero")


def train(formula: str, rows: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Train with one loss from the start and return what held-out pairs say of it."""
    loss, began = losses.build(formula), time.monotonic()
    model, tokenizer = load_policy(options.model, lora={"r": 16, "alpha": 32}, seed=0)
    data = load_preferences(rows.train[: options.train], tokenizer, max_length=options.max_length)
    held_out = load_preferences(rows.heldout[: options.held_out], tokenizer, max_length=options.max_length)
    with tempfile.TemporaryDirectory() as folder:
        arguments = PreferenceArguments(
            output_dir=folder,
            # A pair is two labelled examples.
            examples_per_step=options.pairs * (2 if loss.form == "unpaired" else 1),
            token_budget=4096, max_steps=options.steps, learning_rate=options.learning_rate,
            lr_scheduler_type="linear", warmup_steps=3, save_strategy="no", report_to=[], disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        trainer = PreferenceTrainer(model, data, loss, "auto", arguments, tokenizer=tokenizer, group_prompts=False)
        trainer.train()
    packed = PackedModel(model)
    found = evaluate_pairs(packed, build_reference("adapter_off", packed, needed=True), held_out).metrics
    assert found.reward is not None
    assert found.margin is not None
    assert found.chosen_log_ratio is not None
    assert found.rejected_log_ratio is not None
    assert found.displacement is not None
    return {
        "reward": (found.reward.value, found.reward.low, found.reward.high),
        "logprob_per_token": found.logprob_per_token.value,
        "margin": found.margin.value,
        "chosen": found.chosen_log_ratio.value,
        "rejected": found.rejected_log_ratio.value,
        "displacement": found.displacement.value,
        "pairs": found.n,
        "seconds": time.monotonic() - began,
    }


def plot(results: dict[str, dict[str, Any]], file: str) -> None:
    """Draw where chosen and rejected log-ratios went, and the held-out accuracy, a row a loss."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names, places = list(results), range(len(results))
    figure, (moved, right) = plt.subplots(
        1, 2, figsize=(9, 0.8 + 0.5 * len(names)), sharey=True, gridspec_kw={"width_ratios": (3, 2)}
    )
    for place, found in zip(places, results.values(), strict=True):
        moved.plot([found["rejected"], found["chosen"]], [place, place], color="#c9c9c9", linewidth=3, zorder=1)
        value, low, high = found["reward"]
        right.plot([100 * low, 100 * high], [place, place], color="#9db8d2", linewidth=3, zorder=1)
        label = f"{100 * value:.1f}"
        right.annotate(label, (100 * value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    moved.scatter([r["chosen"] for r in results.values()], places, color="#2f6db3", label="chosen", zorder=2)
    moved.scatter([r["rejected"] for r in results.values()], places, color="#d1662b", label="rejected", zorder=2)
    right.scatter([100 * r["reward"][0] for r in results.values()], places, color="#2f5d8a", zorder=2)
    moved.axvline(0, color="#666", linewidth=0.8)
    moved.set_xlabel("mean log-ratio to the model before training, nats")
    right.set_xlabel("held-out pairs ranked right, %")
    moved.set_yticks(places, names)
    moved.set_ylim(len(names) - 0.4, -0.7)
    moved.legend(frameon=False, fontsize=8)
    for axis in (moved, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def main(arguments: list[str] | None = None) -> int:
    """Train with every loss and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", action="append", help=f"repeatable; default {', '.join(LOSSES)}")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=16, help="of one step")
    parser.add_argument("--train", type=int, help="pairs to draw from; default all")
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--max-length", type=int, default=256, help="tokens")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", default="", metavar="FILE", help="write a figure there")
    parser.add_argument("--drawn-from", default="", metavar="FILE", help="train nothing, draw what this one holds")
    options = parser.parse_args(arguments)
    if options.drawn_from:
        plot(json.loads(Path(options.drawn_from).read_text())["results"], options.plot)
        return 0
    torch.set_num_threads(options.threads)
    rows, results = make_pairs(load_sentences()), {}
    print(f"{options.steps} steps of {options.pairs} pairs, {options.held_out} held-out pairs")
    print(f"{'loss':28} {'right':>6} {'interval':>14} {'a token':>8} {'chosen':>8} {'rejected':>8} {'chosen fell':>12}")
    for formula in options.loss or LOSSES:
        found = results[formula] = train(formula, rows, options)
        value, low, high = found["reward"]
        print(
            f"{formula:28} {value:6.1%} {low:6.1%}..{high:6.1%} {found['logprob_per_token']:8.1%} "
            f"{found['chosen']:8.2f} {found['rejected']:8.2f} {found['displacement']:12.1%}",
            flush=True,
        )
    if options.plot:
        plot(results, options.plot)
    settings = {key: value for key, value in vars(options).items() if key != "plot"}
    print(json.dumps({"benchmark": "losses", "results": results, "settings": settings, "torch": torch.__version__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
