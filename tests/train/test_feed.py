"""What a run is fed with: mixtures, streams and prompts in one step, from the recipe to the books of the run."""

import json
from pathlib import Path

import pytest
from rich.console import Console

import prefopt
from prefopt.data import PreferenceStream, Weighted
from prefopt.errors import DataError, RecipeError, RunError
from prefopt.losses import build
from prefopt.recipe import dump_recipe, load_recipe
from prefopt.report import write_report
from prefopt.train import PreferenceArguments, PreferenceTrainer
from prefopt.workflow import train_run
from tests.toys import byte_tokenizer, pair_rows, write_rows


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    rows = pair_rows(40)
    for at in range(0, 40, 2):
        rows[at]["prompt"] = rows[at + 1]["prompt"]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl", [*pair_rows(19, seed=1), {**pair_rows(1)[0], "chosen": None}])
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: {tiny_model}, dtype: float32, lora: {{r: 2}}}}\n"
        "data:\n  train:\n    - {source: a.jsonl, weight: 0.5}\n    - {source: b.jsonl, weight: 0.5}\n"
        "  eval: a.jsonl\n  max_rejected: 0.05\n"
        f"train: {{output_dir: {tmp_path}/run, max_steps: 3, examples_per_step: 8}}\n"
        "eval: {samples: 1, max_new_tokens: 2, resamples: 100}\n"
    )
    return path


def test_a_run_says_what_its_mixture_is_and_what_steering_saves(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_recipe(recipe, ["data.workers=1"])
    assert load_recipe(_written(recipe, dump_recipe(loaded))) == loaded
    result = train_run(loaded, console=Console(width=500))
    said = capsys.readouterr().out
    summary = json.loads((result.path / "data.json").read_text())["train"]
    assert [(share["examples"], share["drawn"]) for share in summary["shares"]] == [(40, 40), (19, 40)]
    assert "mixture: 80 examples an epoch: 40 of" in said
    assert "b.jsonl (each 2.11 times)" in said
    tokens = summary["tokens"]
    saved = f"{1 - tokens['computed'] / tokens['apart']:.1%}"
    assert tokens["computed"] < 0.95 * tokens["apart"]
    assert f"equal prompts in one step save {saved} of the tokens ({tokens['computed']:,} computed" in said
    write_report(result.path)


def _written(beside: Path, text: str) -> Path:
    path = beside.with_name("again.yaml")
    path.write_text(text)
    return path


def test_a_run_on_a_stream_keeps_its_books(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train_run(load_recipe(recipe, ["data.streaming=true", "data.window=200"]), console=Console(width=200))
    assert "data: a stream, read in windows of 200 examples to learn from" in capsys.readouterr().out
    summary = json.loads((result.path / "data.json").read_text())["train"]
    assert (summary["rows_read"], summary["rows_used"], summary["rows_rejected"]) == (60, 59, 1)
    (line,) = (result.path / "rejected_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["source"].endswith("b.jsonl")
    assert result.after is not None
    write_report(result.path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (["data.streaming=true", "train.max_steps=-1"], "nobody knows how long a stream is: write train.max_steps"),
        (["data.train=[{source: nope.jsonl, weight: 1}]"], "there is no .*nope.jsonl"),
        (["data.train=[{source: a.jsonl, weight: -1}]"], r"the weight -1; it must be a number above 0"),
        (["data.train=[{source: a.jsonl}]"], r"a source of a mixture is \{source: NAME, weight: NUMBER\}"),
        (["data.train=[a.jsonl, {source: a.jsonl, weight: 1}]"], "write a weight for each or for none"),
        (["train.over_budget=maybe"], "must be 'own_pack' or 'refuse'"),
        (["data.window=0"], "at least 1"),
    ],
)
def test_a_wrong_mixture_or_stream_is_told_before_anything_loads(recipe: Path, override: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe, override)


def test_a_file_with_two_weights_is_told_before_it_is_read(recipe: Path) -> None:
    path = recipe.parent / "a.jsonl"
    twice = f"data.train=[{{source: {path}, weight: 1}}, {{source: {path}, weight: 2}}]"
    with pytest.raises(DataError, match=r"a\.jsonl is named twice in data\.train; a source has one weight"):
        train_run(load_recipe(recipe, [twice]))


def trainer_on(folder: Path, model: Path, data: object = None, **options: object) -> PreferenceTrainer:
    policy, tokenizer = prefopt.load_policy(str(model), dtype="float32", lora={"r": 2})
    more = {name: options.pop(name) for name in ("group_prompts", "workers", "weights") if name in options}
    settings = {"examples_per_step": 8, "save_strategy": "steps", "save_steps": 2, "max_steps": 2, **options}
    args = PreferenceArguments(output_dir=str(folder), **settings)
    data = data or prefopt.load_preferences(pair_rows(24), tokenizer)
    return PreferenceTrainer(policy, data, build("dpo"), "auto", args, **more)


def test_a_checkpoint_of_another_order_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    trainer_on(tmp_path, tiny_model).train()
    with pytest.raises(RunError, match="was made with other group_prompts"):
        trainer_on(tmp_path, tiny_model, group_prompts=False, max_steps=4).train(resume_from_checkpoint=True)
    with pytest.raises(RunError, match="was made with other weights"):
        weights = (Weighted(("rows",), 1.0),)
        trainer_on(tmp_path, tiny_model, weights=weights, max_steps=4).train(resume_from_checkpoint=True)


def test_an_example_over_the_budget_is_refused_before_the_first_step_where_asked(
    tmp_path: Path, tiny_model: Path
) -> None:
    assert trainer_on(tmp_path, tiny_model, token_budget=60)
    with pytest.raises(DataError, match=r"of 24 examples \(the first is rows:\d+\): the longest needs \d+ tokens"):
        trainer_on(tmp_path, tiny_model, token_budget=60, over_budget="refuse")


def test_a_stream_needs_a_number_of_steps_and_has_workers_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", pair_rows(24))
    stream = PreferenceStream(str(path), byte_tokenizer())
    with pytest.raises(RecipeError, match=r"write train\.max_steps"):
        trainer_on(tmp_path / "run", tiny_model, stream, max_steps=-1)
    with pytest.raises(RecipeError, match="weights and workers of its own"):
        trainer_on(tmp_path / "run", tiny_model, stream, workers=2)
