"""What `prefopt eval` leaves in a run's `eval/`, one file a kind, as its commands write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def estimate(value: float, width: float = 0.05) -> dict[str, Any]:
    return {"n": 100, "value": value, "low": value - width, "high": value + width}


def _point(label: str, loss: str, beta: float, kl: float, reward: float, best: bool) -> dict[str, Any]:
    return {
        "label": label, "run": f"/home/somebody/runs/{label}", "step": None, "loss": loss, "beta": beta,
        "reward": {**estimate(reward), "standard_error": 0.03}, "kl": {**estimate(kl, 0.4), "standard_error": 0.2},
        "kl_log_ratio": {**estimate(kl + 0.1, 0.9), "standard_error": 0.4}, "truncated": 0.02,
        "length": estimate(31.0, 1.5), "completions": 400, "dominating": best,
    }  # fmt: skip


def _text(perplexity: float, entropy: float, distinct: float, length: float) -> dict[str, Any]:
    return {
        "perplexity": estimate(perplexity, 1.0), "entropy": estimate(entropy), "distinct_1": distinct - 0.3,
        "distinct_2": distinct, "distinct_3": distinct + 0.1, "duplicates": 0.02, "refusals": estimate(0.1),
        "length": estimate(length), "truncated": estimate(0.2), "completions": 40,
    }  # fmt: skip


def _task(
    task: str, metric: str, base: float, tuned: float, ends: tuple[float, float], *, higher: bool = True
) -> dict[str, Any]:
    return {
        "task": task, "metric": metric, "filter": "none", "higher_is_better": higher, "documents": 500,
        "num_fewshot": 0, "base": {"value": base, "standard_error": 0.02},
        "tuned": {"value": tuned, "standard_error": 0.02},
        "difference": {"value": tuned - base, "low": ends[0], "high": ends[1], "paired": True},
    }  # fmt: skip


EVALS: dict[str, dict[str, Any]] = {
    "winrate": {
        "kind": "winrate", "a": "/home/somebody/runs/dpo", "b": "/home/somebody/runs/sft", "scorer": "sentiment",
        "prompts": 100, "samples_per_prompt": 4, "wins_a": 260, "wins_b": 120, "ties": 20, "failed": 0,
        "raw": estimate(0.675), "length_controlled": estimate(0.641), "length_a": estimate(30.1),
        "length_b": estimate(27.3),
    },
    "rewardbench": {
        "kind": "rewardbench",
        "subsets": {"alpacaeval-easy": {"accuracy": 0.91, "n": 100, "section": "Chat"},
                    "math-prm": {"accuracy": 0.55, "n": 447, "section": "Reasoning"}},
        "sections": {"Chat": 0.91, "Reasoning": 0.55}, "overall": 0.73, "mode": "implicit",
    },
    "frontier": {
        "kind": "frontier", "scorer": "sentiment", "prompts": 100, "samples_per_prompt": 4, "max_new_tokens": 48,
        "temperature": 1.0,
        "points": [_point("dpo 0.1", "dpo", 0.1, 5.0, 0.7, True), _point("dpo 1", "dpo", 1.0, 1.2, 0.4, True),
                   _point("ipo 0.1", "ipo", 0.1, 6.5, 0.6, False)],
    },
    "text": {
        "kind": "text", "prompts": 10, "samples_per_prompt": 4, "max_new_tokens": 48, "temperature": 1.0,
        "base": _text(21.0, 2.5, 0.81, 27.0), "tuned": _text(24.0, 2.1, 0.73, 27.0),
        "drift": ["as the command says it"],
    },
    "harness": {
        "kind": "harness", "lm_eval": "0.4.9", "limit": 500, "chat_template": False,
        "words": ["as the command says it"],
        "measures": [
            _task("arc_easy", "acc", 0.41, 0.43, (-0.01, 0.05)),
            _task("hellaswag", "acc_norm", 0.42, 0.38, (-0.06, -0.02)),
            _task("wikitext", "word_perplexity", 21.0, 24.0, (1.0, 5.0), higher=False),
        ],
    },
    "compare": {
        "kind": "compare", "a": "dpo", "b": "ipo", "n": 800, "source": None, "verdict": "as the command says it",
        "contrasts": [
            {"measure": "reward", "a": estimate(0.91, 0.02), "b": estimate(0.88, 0.02),
             "accuracy": estimate(-0.03, 0.02), "only_a": 40, "only_b": 16, "p": 0.0018, "margin": estimate(-0.2)},
            {"measure": "logprob", "a": estimate(0.6), "b": estimate(0.61), "accuracy": estimate(0.01, 0.02),
             "only_a": 20, "only_b": 28, "p": 0.31, "margin": estimate(0.2)},
        ],
    },
}  # fmt: skip


def write_evals(run: Path) -> Path:
    """Write one file of each kind, and the held-out pairs measured again; return the run."""
    for name, content in EVALS.items():
        (run / "eval" / f"{name}.json").write_text(json.dumps({**content, "prefopt": "0.1.0"}))
    after = json.loads((run / "eval" / "after.json").read_text())
    part = {"low": 0.5, "high": 0.75, "n": 300, "predicted": 0.6, "observed": estimate(0.71)}
    other = {"low": 0.75, "high": 1.0, "n": 500, "predicted": 0.9, "observed": estimate(0.93, 0.02)}
    after["calibration"] = {"against": "raters", "n": 800, "ties": 0, "bins": [part, other], "expected_error": 0.06}
    agreed = {"n": 400, "accuracy": estimate(0.8), "human": estimate(0.75)}
    after["by_agreement"] = [{"low": 0.5, "high": 0.75, **agreed}, {"low": 0.75, "high": 1.0, **agreed}]
    after["metrics"]["auc"] = estimate(0.88)
    (run / "eval" / "after.json").write_text(json.dumps(after))
    again = {"kind": "pairs", "prefopt": "0.1.0", "source": "/home/somebody/hard.jsonl", **after}
    (run / "eval" / "pairs_hard.json").write_text(json.dumps(again))
    return run
