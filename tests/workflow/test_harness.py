"""lm-evaluation-harness on finished runs: its numbers by hand, and what is told of tasks that can't be run."""

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from prefopt.cli import app
from prefopt.errors import DataError, RecipeError
from prefopt.models import load_policy
from prefopt.workflow.directory import evaluation_json
from prefopt.workflow.finished import load_run
from prefopt.workflow.harness import HarnessOptions, harness_of_run
from prefopt.workflow.harness_tasks import load_tasks
from tests.toys import CHATML

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra lm-eval")

DOCUMENTS = [
    {
        "question": f"{number}: do you like {subject}?",
        "answers": ["yes really", "no", "perhaps so"],
        "right": number % 3,
    }
    for number, subject in enumerate(["tea", "rain", "trains", "chess", "moss", "jazz"])
]
LORA = "lora: {r: 4}, dtype: float32"
TEMPLATE = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOICE = """
task: toy_choice
include: common
output_type: multiple_choice
doc_to_choice: answers
doc_to_target: right
metric_list: [{metric: acc}]
"""
LIKELIHOOD = """
task: toy_likelihood
include: common
output_type: loglikelihood
doc_to_target: "{{answers[right]}}"
metric_list: [{metric: perplexity}]
"""
WRITTEN = """
task: toy_written
include: common
output_type: generate_until
doc_to_target: "{{answers[right]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 3, do_sample: false}
metric_list: [{metric: exact_match}]
"""


GROUP = """
group: toy_group
task: [toy_choice, toy_likelihood]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    (folder / "common").write_text(TEMPLATE.format(data=data))
    for name, text in (("choice", CHOICE), ("likelihood", LIKELIHOOD), ("written", WRITTEN)):
        (folder / f"{name}.yaml").write_text(text)
    return folder


def loglikelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """log p of a continuation's tokens, each by itself, without padding."""
    before = tokenizer(context)["input_ids"]
    tokens = tokenizer(context + continuation)["input_ids"]
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[at - 1, tokens[at]]) for at in range(len(before), len(tokens)))


def both(run: Path, tiny_model: Path) -> list[tuple[Any, Any]]:
    tuned, tokenizer, _ = load_run(run)
    return [load_policy(str(tiny_model), trainable=False, dtype="float32"), (tuned.eval(), tokenizer)]


@needs_harness
def test_the_table_is_the_arithmetic_by_hand_of_both_models(
    train: Callable[..., Path], tiny_model: Path, own: Path
) -> None:
    run = train(LORA)
    found = harness_of_run(run, include=[own], options=HarnessOptions(batch_size=4, resamples=200))
    held = json.loads((run / "eval" / "harness.json").read_text())
    assert held == evaluation_json("harness", found.to_dict())
    choice, likelihood, written = found.compared
    assert [choice.name, likelihood.name, written.name] == [
        "toy_choice acc",
        "toy_likelihood perplexity",
        "toy_written exact_match",
    ]
    for (model, tokenizer), acc, ppl in zip(
        both(run, tiny_model),
        (choice.base, choice.tuned),
        (likelihood.base, likelihood.tuned),
        strict=True,
    ):
        scores = [
            [loglikelihood(model, tokenizer, row["question"], f" {answer}") for answer in row["answers"]]
            for row in DOCUMENTS
        ]
        hits = [max(range(3), key=one.__getitem__) == row["right"] for one, row in zip(scores, DOCUMENTS, strict=True)]
        share = sum(hits) / 6
        assert acc.value == pytest.approx(share)
        # The harness's standard error of a mean: the deviation with n - 1, over the root of n.
        assert acc.standard_error == pytest.approx(math.sqrt(6 * share * (1 - share) / 5 / 6))
        # This kind of task puts nothing between question and answer.
        total = sum(loglikelihood(model, tokenizer, row["question"], row["answers"][row["right"]]) for row in DOCUMENTS)
        assert ppl.value == pytest.approx(math.exp(-total / 6), rel=1e-4)
        assert ppl.standard_error is not None
    assert likelihood.base.value != pytest.approx(likelihood.tuned.value, rel=1e-2)
    assert likelihood.higher_is_better is False
    assert all(one.difference.paired and one.difference.low is not None for one in found.compared)
    assert [one.documents for one in found.compared] == [6, 6, 6]


@needs_harness
def test_a_chat_template_examples_and_a_limit_reach_the_harness(
    train: Callable[..., Path], tiny_model: Path, own: Path
) -> None:
    assert "assistant" in CHATML
    run = train(LORA)
    file = str(own / "likelihood.yaml")
    chat = HarnessOptions(limit=2, chat_template=True, resamples=20)
    [found] = harness_of_run(run, [file], options=chat).compared
    assert (found.documents, found.num_fewshot) == (2, 0)
    [(model, tokenizer), _] = both(run, tiny_model)
    total = sum(
        loglikelihood(
            model,
            tokenizer,
            f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant",
            "\n" + row["answers"][row["right"]],  # the harness counts white space before an answer as part of it
        )
        for row in DOCUMENTS[:2]
    )
    assert found.base.value == pytest.approx(math.exp(-total / 2), rel=1e-4)
    shown = HarnessOptions(limit=0.5, num_fewshot=1, resamples=20)
    [found] = harness_of_run(run, ["toy_likelihood"], include=[own], options=shown).compared
    assert (found.documents, found.num_fewshot) == (3, 1)


@needs_harness
def test_the_command_tells_a_group_of_a_model_that_trained_whole(train: Callable[..., Path], own: Path) -> None:
    run = train("dtype: float32, lora: null")
    (own / "group.yaml").write_text(GROUP)
    said = ["eval", "harness", str(run), "--include-path", str(own), "--tasks", "toy_group", "--limit", "5"]
    printed = CliRunner().invoke(app, [*said, "--json"])
    assert printed.exit_code == 0, printed.output
    measures = {(one["task"], one["metric"]): one for one in json.loads(printed.stdout)["measures"]}
    assert set(measures) == {("toy_group", "acc"), ("toy_choice", "acc"), ("toy_likelihood", "perplexity")}
    likelihood = measures["toy_likelihood", "perplexity"]
    assert likelihood["base"]["value"] != pytest.approx(likelihood["tuned"]["value"], rel=1e-2)
    group, choice = measures["toy_group", "acc"], measures["toy_choice", "acc"]
    assert (group["base"], group["tuned"], group["documents"]) == (choice["base"], choice["tuned"], 5)
    # The harness says nothing of single documents of a group.
    assert (group["difference"]["paired"], choice["difference"]["paired"]) == (False, True)
    half = 1.959964 * math.hypot(group["base"]["standard_error"], group["tuned"]["standard_error"])
    assert group["difference"]["high"] == pytest.approx(group["difference"]["value"] + half)


@needs_harness
def test_a_tied_head_that_trained_as_a_copy_stays_one(
    train: Callable[..., Path], tiny_model: Path, own: Path, tmp_path: Path
) -> None:
    tied = tmp_path / "tied"
    model, tokenizer = load_policy(str(tiny_model), trainable=False, dtype="float32")
    config = type(model.config).from_dict(model.config.to_dict() | {"tie_word_embeddings": True})
    type(model)(config).save_pretrained(tied)
    tokenizer.save_pretrained(tied)
    run = train("lora: {r: 4, modules_to_save: [lm_head]}, dtype: float32", tied)
    [found] = harness_of_run(run, ["toy_likelihood"], include=[own], options=HarnessOptions(resamples=20)).compared
    tuned, tokenizer, _ = load_run(run)
    total = sum(
        loglikelihood(tuned.eval(), tokenizer, row["question"], row["answers"][row["right"]]) for row in DOCUMENTS
    )
    assert found.tuned.value == pytest.approx(math.exp(-total / 6), rel=1e-4)


@needs_harness
def test_what_is_wrong_with_a_task_is_told_before_a_model_loads(own: Path, tmp_path: Path) -> None:
    (own / "gone.yaml").write_text(
        CHOICE.replace("toy_choice", "gone").replace("include: common", "include: elsewhere")
    )
    (own / "elsewhere").write_text(TEMPLATE.format(data=tmp_path / "nowhere.jsonl"))
    (own / "hub.yaml").write_text("task: hub\ndataset_path: nobody/nothing-of-the-kind\ntest_split: test\n")
    (own / "column.yaml").write_text(CHOICE.replace("toy_choice", "column") + 'doc_to_text: "{{query}}"\n')
    for name, what in (
        ("gone", "The data of the task 'gone' is not on this machine"),
        ("hub", "The data of the task 'hub' is not on this machine"),
        ("column", "The task 'column' can't be loaded: 'query' is undefined"),
    ):
        with pytest.raises(DataError, match=what):
            load_tasks([name], [own])
    (own / "column.yaml").write_text(CHOICE.replace("toy_choice", "coded") + "unsafe_code: true\n")
    with pytest.raises(RecipeError, match="'coded' runs code that the model writes"):
        load_tasks(["coded"], [own])
    (own / "column.yaml").write_text("task: [unclosed")
    with pytest.raises(DataError, match=r"column.yaml is no task of the harness"):
        load_tasks([], [own])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no task"):
        load_tasks([], [empty])
    with pytest.raises(RecipeError, match="Nothing says what to measure"):
        load_tasks([])


@needs_harness
def test_an_unknown_task_is_told_with_the_nearest_names(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import tasks

    class OwnOnly(tasks.TaskManager):
        """Without the thousands of tasks that the harness brings, which take long to read."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options | {"include_defaults": False})

    monkeypatch.setattr(tasks, "TaskManager", OwnOnly)
    with pytest.raises(RecipeError, match=r"no task 'toy_chioce'; did you mean 'toy_choice'"):
        load_tasks(["toy_chioce"], [own])
    with pytest.raises(RecipeError, match=r"no task 'quite another'; lm-eval ls tasks"):
        load_tasks(["quite another"], [own])


@needs_harness
@pytest.mark.soak
def test_the_tasks_that_the_harness_brings_are_known() -> None:
    with pytest.raises(RecipeError, match=r"no task 'arc_eesy'; did you mean 'arc_easy'"):
        load_tasks(["arc_eesy"])


def test_without_the_harness_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'prefopt\[lm-eval\]'"):
        load_tasks(["arc_easy"])
