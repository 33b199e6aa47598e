"""lm-evaluation-harness on a run's model and on the one that it began with, in one table."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefopt.errors import DataError, RecipeError
from prefopt.eval.harness import Comparison, Estimate, difference, harness_in_words
from prefopt.models.adapters import copy_weights
from prefopt.models.modes import evaluating
from prefopt.workflow.directory import keep_evaluation
from prefopt.workflow.harness_tasks import load_tasks
from prefopt.workflow.weights import load_weights, start_of, weights_of_run

HARNESS = "harness.json"
_SEED = 1234
"""Of the examples that a task shows first, the same for both models; the harness's own default."""
_DRAWS = 1000
"""Of the harness's own bootstrap, for standard errors that have no formula."""
_CORPUS = frozenset({"bleu", "chrf", "chrfpp", "ter"})
_CORPUS_DRAWS = 100
"""Of measures of a whole corpus, which take long; the harness does the same."""


@dataclass(frozen=True)
class HarnessOptions:
    """How the tasks are put to both models."""

    limit: float | None = None
    """The first documents of every task: how many, or below 1 which share."""
    num_fewshot: int | None = None
    batch_size: int = 8
    chat_template: bool = False
    resamples: int = 2000


@dataclass(frozen=True)
class HarnessResult:
    """What `eval/harness.json` holds, beside its kind and version."""

    harness: str
    """The version of lm-evaluation-harness."""
    options: HarnessOptions
    compared: tuple[Comparison, ...]
    words: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "lm_eval": self.harness,
            "limit": self.options.limit,
            "chat_template": self.options.chat_template,
            "measures": [one.to_dict() for one in self.compared],
            "words": list(self.words),
        }


def harness_of_run(
    run: Path,
    tasks: Sequence[str] = (),
    *,
    include: Sequence[Path] = (),
    out: Path | None = None,
    options: HarnessOptions | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> HarnessResult:
    """Put tasks to a run's model and to the one that it began with, and write `eval/harness.json`.

    One model is loaded, in the dtype that it trained in: first as the run began with it, then with the run's weights.

    Args:
        run: a directory of `prefopt train` or `prefopt rounds`.
        tasks: names that the harness knows, patterns, or YAML files; none is every task of `include`.
        include: YAML files and folders of own tasks.
        out: the file to write instead.
        options: how they are put.
        say: is told what is being done.

    Raises:
        RunError: `run` is no run, or has no weights yet.
        RecipeError: the harness is not installed, or a task is unknown or can't be run here.
        DataError: a task can't be read, or its data is not there.
    """
    options = options or HarnessOptions()
    if options.limit is not None and options.limit <= 0:
        raise RecipeError(f"--limit is {options.limit:g}; write a number of documents, or a share between 0 and 1.")
    weights = weights_of_run(run)[-1]
    loaded = load_tasks(tasks, include, num_fewshot=options.num_fewshot, say=say)
    began = load_weights(start_of(weights))
    policy, tokenizer = began.packed.model, began.tokenizer
    if options.chat_template and tokenizer.chat_template is None:
        raise RecipeError("--apply-chat-template: the model's tokenizer has no chat template; leave the option out.")
    measured = []
    for label, folder in (("start", None), (weights.label, weights.folder)):
        if folder is not None:
            copy_weights(policy, folder)
        say(f"{label}: {', '.join(loaded['tasks'])}")
        measured.append(_measure(policy, tokenizer, loaded, options))
    base, tuned = measured
    compared = tuple(_compared(base, tuned, loaded["tasks"], options))
    result = HarnessResult(version("lm_eval"), options, compared, harness_in_words(compared))
    keep_evaluation(out or run / "eval" / HARNESS, "harness", result.to_dict(), say)
    return result


def _measure(policy: Any, tokenizer: Any, loaded: dict[str, Any], options: HarnessOptions) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=_SEED)
    # The harness prints to where results go.
    with redirect_stdout(sys.stderr), _random_state(), evaluating(policy), torch.no_grad(), _untouched(policy):
        try:
            found: dict[str, Any] = evaluate(
                lm=_model(policy, tokenizer, options.batch_size),
                task_dict=loaded,
                limit=options.limit,
                bootstrap_iters=_DRAWS,
                apply_chat_template=options.chat_template,
                fewshot_as_multiturn=options.chat_template,
            )
        except (RuntimeError, MemoryError, OSError):  # of the machine, not of the tasks
            raise
        except Exception as error:  # whatever a task's own code raises
            raise DataError(
                f"The harness can't measure {', '.join(loaded['tasks'])}: {type(error).__name__}: {error}"
            ) from error
    return found


def _model(policy: Any, tokenizer: Any, batch_size: int) -> Any:
    """Return the harness's door to a model that is loaded already."""
    from lm_eval.models.huggingface import HFLM

    log = logging.getLogger("lm_eval.models.huggingface")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of options that a model which is loaded already doesn't heed; none is given
    try:
        # Log-probs in bfloat16 are 0.03 nats apart around -5: enough to tie answers and to turn some of them round.
        return HFLM(pretrained=policy, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
    finally:
        log.setLevel(level)


@contextmanager
def _untouched(policy: Any) -> Iterator[None]:
    """Keep the harness from tying weights anew, which fails where a tied head trains as a copy of its own."""
    vars(policy)["tie_weights"] = lambda: None
    try:
        yield
    finally:
        del vars(policy)["tie_weights"]


@contextmanager
def _random_state() -> Iterator[None]:
    """Inside, all global random numbers begin as the harness's own command has them; afterwards as they were."""
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(_SEED)
        torch.manual_seed(_SEED)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


def _compared(
    base: Mapping[str, Any], tuned: Mapping[str, Any], tasks: Mapping[str, Any], options: HarnessOptions
) -> Iterator[Comparison]:
    for name, before in base["results"].items():
        after = tuned["results"][name]
        for key, value in before.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            task, documents = tasks.get(name), None  # a group is no task, and nothing is said of its documents
            if task is not None:
                documents = (_documents(base, name, metric, filtered), _documents(tuned, name, metric, filtered))
            one, other = _estimate(before, metric, filtered), _estimate(after, metric, filtered)
            yield Comparison(
                task=name,
                metric=metric,
                filter=filtered,
                higher_is_better=base["higher_is_better"].get(name, {}).get(metric),
                documents=before.get("sample_count", {}).get(key, before["sample_len"]),
                num_fewshot=base["n-shot"].get(name),
                base=one,
                tuned=other,
                difference=difference(
                    one,
                    other,
                    documents,
                    None if task is None else task.aggregation().get(metric),
                    resamples=_CORPUS_DRAWS if metric in _CORPUS else options.resamples,
                ),
            )


def _estimate(results: Mapping[str, Any], metric: str, filtered: str) -> Estimate:
    error = results.get(f"{metric}_stderr,{filtered}")
    return Estimate(float(results[f"{metric},{filtered}"]), float(error) if isinstance(error, int | float) else None)


def _documents(results: Mapping[str, Any], task: str, metric: str, filtered: str) -> dict[int, Any]:
    """Return what each document contributes to a measure, by its number."""
    samples = results["samples"][task]
    return {one["doc_id"]: one[metric] for one in samples if one["filter"] == filtered and metric in one}
