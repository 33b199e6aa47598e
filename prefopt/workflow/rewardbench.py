"""RewardBench's protocol on a run, on the model a recipe names, or on a reward model that was trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.data import DataOptions, tokenize_rows
from prefopt.data.read import plain
from prefopt.data.sources import open_sources
from prefopt.errors import DataError
from prefopt.eval.intervals import Floats
from prefopt.eval.rewardbench import RewardBench, check_subsets, rewardbench
from prefopt.models.scoring import example_logprobs
from prefopt.recipe import load_recipe
from prefopt.rewards.attempts import make_attempt
from prefopt.rewards.kinds import ModelSection
from prefopt.rewards.reward_model import RewardModel
from prefopt.rewards.scorer import ScoreFailure
from prefopt.workflow.directory import REWARD_MODEL, keep_evaluation
from prefopt.workflow.evaluations import evaluation_path
from prefopt.workflow.finished import load_measured, run_recipe

_COLUMNS = ("prompt", "chosen", "rejected", "subset")


@dataclass(frozen=True)
class RewardBenchRun:
    """What a model scored, and by what."""

    scores: RewardBench
    mode: str
    """`implicit reward`: the sum of log-ratios, without beta; `log-prob`: the sum of log-probs, where there is no
    reference; `reward model`: its number."""
    source: str
    """The file of the rows."""

    def to_dict(self) -> dict[str, Any]:
        return {"source": [self.source], "mode": self.mode, **self.scores.to_dict()}


def rewardbench_run(
    run_or_recipe: Path,
    file: str,
    *,
    token_budget: int | None = None,
    out: Path | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> RewardBenchRun:
    """Score rows of RewardBench's schema, and write what was found to `eval/rewardbench.json` of a run, or to `out`.

    No row is left out for its length: what a model can't read is an error.

    Args:
        run_or_recipe: a run of `prefopt train` or `prefopt reward train`, or a recipe file, whose model is scored.
        file: rows with prompt, chosen, rejected and subset; a prompt is text, or messages.
        token_budget: tokens computed at once; None takes `eval.token_budget`.
        out: a file to write to instead.
        say: is told where the scores are kept.

    Raises:
        DataError: the file is missing, a row is not of the schema, or a subset is none of RewardBench's.
        RunError: `run_or_recipe` is a directory but no finished run.
    """
    is_run = run_or_recipe.is_dir()
    recipe = run_recipe(run_or_recipe) if is_run else load_recipe(run_or_recipe)
    rows = _rows(file)
    subsets = [row["subset"] for row in rows]
    check_subsets(subsets)
    if (reward_model := run_or_recipe / REWARD_MODEL).is_dir():
        margins, mode = _by_reward_model(reward_model, rows), "reward model"
    else:
        margins, mode = _by_policy(run_or_recipe, rows, token_budget or recipe.eval.token_budget)
    found = RewardBenchRun(rewardbench(margins, subsets), mode, file)
    path = evaluation_path(run_or_recipe, "rewardbench", None, out)
    keep_evaluation(path, "rewardbench", found.to_dict(), say)
    return found


def _by_policy(run_or_recipe: Path, rows: Sequence[dict[str, Any]], token_budget: int | None) -> tuple[Floats, str]:
    measured = load_measured(run_or_recipe)
    chat = measured.tokenizer.chat_template is not None
    texts = [_conversation(row) if chat else {name: row[name] for name in _COLUMNS[:3]} for row in rows]
    examples = tokenize_rows(texts, measured.tokenizer)
    scores, frozen = example_logprobs(examples, measured.packed, measured.reference, token_budget)
    ratios = (scores if frozen is None else scores - frozen).reshape(-1, 2)
    return ratios[:, 0] - ratios[:, 1], "log-prob" if frozen is None else "implicit reward"


def _by_reward_model(folder: Path, rows: Sequence[dict[str, Any]]) -> Floats:
    model = RewardModel(ModelSection(kind="model", name=str(folder)))
    attempts = [
        make_attempt(tuple(_messages(row["prompt"], "user")), row[side])
        for row in rows
        for side in ("chosen", "rejected")
    ]
    scores = model.score(attempts)
    for place, score in enumerate(scores):
        if isinstance(score, ScoreFailure):
            raise DataError(f"Row {place // 2} can't be scored: {score.reason}")
    numbers = np.array(scores, dtype=np.float64).reshape(-1, 2)
    return np.asarray(numbers[:, 0] - numbers[:, 1])


def _conversation(row: dict[str, Any]) -> dict[str, Any]:
    answers = {side: _messages(row[side], "assistant") for side in ("chosen", "rejected")}
    return {"prompt": _messages(row["prompt"], "user"), **answers}


def _messages(text: str | list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def _rows(file: str) -> list[dict[str, Any]]:
    """Return the rows of a file with the columns that are scored alone. Raises DataError for one that lacks some."""
    found: list[dict[str, Any]] = []
    for named in open_sources(file, DataOptions()):
        with closing(named.read(None)) as rows:
            for raw in rows:
                if raw.row is None:
                    raise DataError(f"{raw.where} can't be read: {raw.problem}.")
                if lacking := [name for name in _COLUMNS if not raw.row.get(name)]:
                    raise DataError(
                        f"{raw.where} has no {lacking[0]}; a row of RewardBench has {', '.join(_COLUMNS)} (and an id)."
                    )
                found.append({name: plain(raw.row[name]) for name in _COLUMNS})
    return found
