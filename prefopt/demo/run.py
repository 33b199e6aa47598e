"""The demo: the main job, whole, on a small real model and real human judgements."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.demo.pairs import Row, load_sentences, make_pairs, write_rows
from prefopt.eval import PairEvaluation, evaluate_pairs, human_agreement
from prefopt.models.adapters import adapter_disabled
from prefopt.models.packed import PackedModel
from prefopt.models.references import build_reference
from prefopt.recipe import Recipe
from prefopt.report import write_report
from prefopt.workflow import INPUTS, RunResult, load_held_out, load_run, train_run
from prefopt.workflow.directory import write_evaluation

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
STEPS = 60
CLEAR_EDGES = (3.0, 3.5, 4.0, 4.5, 8.0)
GAP_EDGES = (0.5, 1.0, 2.0, 3.0, 4.0, 8.0)


@dataclass(frozen=True)
class DemoResult:
    """What the demo showed."""

    path: Path
    before: PairEvaluation
    after: PairEvaluation
    report: Path


def run_demo(output: Path, *, steps: int | None = None, console: Console | None = None) -> DemoResult:
    """Teach SmolLM2-135M-Instruct which of two film-review sentences people liked better.

    Writes pairs into `output/inputs`, trains LoRA by DPO, measures held-out pairs before and after, and the harder
    ones by how far the two sentences' mean ratings lie apart, beside how often one rater agrees with the rest.

    Args:
        output: the run directory, new or empty.
        steps: optimizer steps of 16 pairs.
        console: where progress and results are shown.

    Raises:
        PrefoptError: the directory is taken, or the model can't be had.
    """
    console, output = console or Console(quiet=True), output.resolve()
    recipe = demo_recipe(output, steps or STEPS)
    if not (output / INPUTS).exists():
        _write_inputs(output / INPUTS)
    run = train_run(recipe, console=console)
    by_gap = _measure_by_gap(run)
    report = write_report(run.path)
    assert run.before is not None  # the demo's held-out rows are pairs
    assert run.after is not None
    _show(console, run, by_gap)
    return DemoResult(run.path, run.before, run.after, report)


def demo_recipe(output: Path, steps: int) -> Recipe:
    """Return the demo's recipe: what anybody could have written in a file."""
    inputs = output / INPUTS
    return Recipe.model_validate(
        {
            "model": {"name": MODEL, "lora": {"r": 16, "alpha": 32}},
            "data": {
                "train": str(inputs / "train.jsonl"),
                "eval": str(inputs / "held_out.jsonl"),
                "max_length": 256,
                "group_prompts": False,  # eight prompts: every step may have some of each
            },
            "loss": {"name": "dpo", "beta": 0.1},
            "train": {
                "output_dir": output,
                "examples_per_step": 16,
                "token_budget": 4096,
                "max_steps": steps,
                "learning_rate": 5e-4,
                "lr_scheduler_type": "linear",
                "warmup_steps": 3,
                "save_steps": 25,
                "save_total_limit": 2,
            },
            "eval": {
                "slice_by": "gap",
                "slice_edges": CLEAR_EDGES,
                "human": "human",
                "agreement": "agreement",
                "samples": 4,
                "samples_per_prompt": 2,
                "max_new_tokens": 48,
            },
        }
    )


def _write_inputs(folder: Path) -> None:
    folder.mkdir(parents=True)
    pairs = make_pairs(load_sentences(), per_gap=60)
    for name, rows in (("train", pairs.train), ("held_out", pairs.heldout), ("by_gap", pairs.by_gap)):
        write_rows(_with_human_share(rows), folder / f"{name}.jsonl")


def _with_human_share(rows: list[Row]) -> list[Row]:
    """Add to each row how often one of its raters agrees with the rest on which sentence is better."""
    shares = human_agreement([r["chosen_ratings"] for r in rows], [r["rejected_ratings"] for r in rows]).share
    return [
        {**row, "human": None if math.isnan(share) else round(float(share), 4)}
        for row, share in zip(rows, shares, strict=True)
    ]


def _measure_by_gap(run: RunResult) -> tuple[PairEvaluation, PairEvaluation]:
    """Measure the model before and after on held-out pairs of every difficulty; they never entered training."""
    model, tokenizer, recipe = load_run(run.path)
    data = load_held_out(recipe, tokenizer, str(run.path / INPUTS / "by_gap.jsonl"))
    config = recipe.eval.model_copy(update={"slice_edges": GAP_EDGES})
    packed = PackedModel(model)
    reference = build_reference("adapter_off", packed, needed=True)
    with adapter_disabled(model):
        before = evaluate_pairs(packed, None, data, config)
    after = evaluate_pairs(packed, reference, data, config, beta=recipe.loss.build().beta)
    for name, evaluation in (("before", before), ("after", after)):
        write_evaluation(run.path / "eval" / f"by_gap_{name}.json", "pairs", evaluation.to_dict())
    return before, after


def _show(console: Console, run: RunResult, by_gap: tuple[PairEvaluation, PairEvaluation]) -> None:
    assert run.before is not None
    assert run.after is not None
    for sample in json.loads((run.path / "samples.json").read_text())[:2]:
        table = Table("before", "after", title=Text(sample["prompt"]), show_lines=True, expand=True)
        for before, after in zip(sample["before"], sample["after"], strict=True):
            table.add_row(Text(before), Text(after))
        console.print(table)

    table = Table("held-out pairs", "before", "after", "one rater agrees with the rest", title="prefers the liked one")
    first, last = run.before.metrics, run.after.metrics
    human = run.after.human.value if run.after.human else None
    table.add_row(f"{last.n} clear ones", _share(first.logprob), _share(last.reward), _percent(human))
    for before, after in zip(by_gap[0].slices, by_gap[1].slices, strict=True):
        human = after.human.value if after.human else None
        table.add_row(f"gap {after.label}", _share(before.logprob), _share(after.reward), _percent(human))
    console.print(table)
    console.print(
        "before: the sentence the model gives the higher log-prob; after: the higher implicit reward. Shares are of "
        "pairs without a tie, with 95 % intervals; a gap is the difference of two mean ratings on a scale of 8.",
        style="dim",
    )


def _share(accuracy: object) -> str:
    value, low, high = (getattr(accuracy, name, None) for name in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "-"
    ties = getattr(accuracy, "ties", 0)
    return f"{value:.1%} ({low:.1%} to {high:.1%})" + (f", {ties} ties" if ties else "")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
