"""A run directory as a real run leaves it: made by the code that writes evaluations, with seeded numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.eval.intervals import mean
from prefopt.eval.pairs import PairEvaluation, PairScores, pair_metrics, slice_pairs

RECIPE = """\
model:
  name: SmolLM2-135M-Instruct
  dtype: bfloat16
  lora: {r: 16, alpha: 32, dropout: 0.0, target_modules: all-linear}
data:
  train: reviews-train.jsonl
  eval: reviews-heldout.jsonl
  max_length: 1024
loss:
  name: dpo
  beta: 0.1
  label_smoothing: 0.0
reference: auto
train:
  output_dir: runs/reviews
  examples_per_step: 32
  learning_rate: 0.0005
  max_steps: 120
eval:
  slice_by: gap
  human: human
"""

SAMPLES = [
    {
        "prompt": [{"role": "user", "content": "Write one sentence from a film review."}],
        "before": [
            "The film is a thrilling adventure that explores the themes of identity, loyalty, and betrayal.",
            "A 2014 film directed by John Smith, which is about a man who looks for his lost brother.",
        ],
        "after": [
            "A warm, funny and beautifully acted film that earns every one of its tears.",
            "One of the most enjoyable and intelligent pictures of the year.",
        ],
    },
    {
        "prompt": "Complete the sentence: The direction is",
        "before": ["unclear, and the director is not the director."],
        "after": ["assured, generous and full of small surprises."],
    },
]


def evaluation(*, trained: bool, seed: int = 0, pairs: int = 800) -> PairEvaluation:
    """Held-out pairs of a model before (policy = reference) or after training."""
    rng = np.random.default_rng(seed)
    gap = rng.uniform(3.0, 7.0, pairs).round(2)
    length = rng.integers(6, 40, (pairs, 2))
    reference = -3.2 * length + rng.normal(0, 5, (pairs, 2))
    shift = np.zeros((pairs, 2))
    if trained:
        shift[:, 0] = rng.normal(1.0 + 1.2 * (gap - 3), 3.5)
        shift[:, 1] = rng.normal(-2.5 - 2.6 * (gap - 3), 4.0)
    scores = PairScores(reference + shift, reference, length)
    human = np.clip(0.84 + 0.035 * (gap - 3) + rng.normal(0, 0.05, pairs), 0, 1)
    return PairEvaluation(
        metrics=pair_metrics(scores, beta=0.1, resamples=300),
        slice_by="gap",
        slices=slice_pairs(scores, gap, [3, 4, 5, 6, 7], human=human, resamples=300),
        human=mean(human, resamples=300),
        pairs=scores,
        fingerprint="3f" * 32,
    )


def training_rows(steps: int, seed: int = 1) -> list[dict[str, Any]]:
    """What the trainer logs: a row a step, and a held-out row every 40 steps."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        learned = 1 - np.exp(-(step - 1) / 25)
        row = {
            "step": step,
            "epoch": step / 60,
            "loss": float(0.693 - 0.52 * learned + rng.normal(0, 0.03) * learned),
            "rewards/accuracies": float(np.clip(0.5 + 0.46 * learned + rng.normal(0, 0.03), 0, 1)) if step > 1 else 0.0,
            "rewards/margins": float(2.2 * learned + rng.normal(0, 0.12) * learned),
            "log_ratios/chosen": float(4 * learned + rng.normal(0, 0.4) * learned),
            "log_ratios/rejected": float(-18 * learned + rng.normal(0, 1.0) * learned),
            "logps/chosen": -70.0,
            "logps/rejected": -80.0,
            "grad_norm": 1.4,
            "learning_rate": 5e-4 * (1 - step / (steps + 1)),
            "tokens": 2100 * step,
            "time": 2.1 * step,
        }
        row |= {f"rewards/{side}": 0.1 * row[f"log_ratios/{side}"] for side in ("chosen", "rejected")}
        rows.append(row)
        if step % 40 == 0:
            kept = ("loss", "rewards/accuracies", "rewards/margins", "log_ratios/chosen", "log_ratios/rejected")
            rows.append({"step": step, "epoch": step / 60, **{f"eval_{key}": row[key] * 0.98 for key in kept}})
    return rows


def write_run(run: Path, *, steps: int = 120, finished: bool = True) -> Path:
    """Write every file of a finished run, or those that a run has while it trains."""
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPE)
    (run / "environment.json").write_text(
        json.dumps(
            {
                "python": "3.11.2",
                "platform": "Linux x86_64",
                "cpu": {"model": "Some CPU", "cores": 2, "bf16": True},
                "gpu": None,
                "packages": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
            }
        )
    )
    summary = {
        "rows_read": 3844,
        "rows_used": 3840,
        "rows_rejected": 2,
        "rejected": {"the completion is empty": 2},
        "rows_left_out": 2,
        "left_out": {"tie": 2},
        "form": "paired",
        "recognised": [
            {"source": "reviews-train.jsonl", "format": "explicit prompt", "why": "prompt, chosen, rejected"}
        ],
        "unit": "tokens",
        "lengths": {
            side: {"mean": 24.31, "p50": 23, "p90": 37, "p95": 40, "p99": 48, "longest": 61}
            for side in ("prompt", "chosen", "rejected")
        },
        "chosen_longer": 0.531,
        "desirable": None,
        "distinct_prompts": 1,
        "duplicates": 0,
        "notes": [],
    }
    held_out = {
        **summary,
        "rows_read": 800,
        "rows_used": 800,
        "rows_rejected": 0,
        "rejected": {},
        "left_out": {},
        "rows_left_out": 0,
        "recognised": [],
    }
    (run / "data.json").write_text(json.dumps({"train": summary, "eval": held_out}))
    row = {"prompt": "Write one sentence", "chosen": "", "rejected": "Dull."}
    rejected = [
        {"source": "reviews-train.jsonl", "line": line, "reason": "the completion is empty", "row": row}
        for line in (118, 2904)
    ]
    (run / "rejected_rows.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rejected))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in training_rows(steps)))
    (run / "eval").mkdir()
    (run / "eval" / "before.json").write_text(json.dumps(evaluation(trained=False).to_dict()))
    if finished:
        # What a program may add to a run: another set of pairs, measured the same way.
        for half in ("before", "after"):
            other = evaluation(trained=half == "after", seed=5, pairs=200).to_dict()
            (run / "eval" / f"by_gap_{half}.json").write_text(json.dumps(other))
        (run / "eval" / "after.json").write_text(json.dumps(evaluation(trained=True).to_dict()))
        (run / "samples.json").write_text(json.dumps(SAMPLES))
        (run / "adapter").mkdir()
    return run
