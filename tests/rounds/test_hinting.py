"""Rationalisation: what was never answered right is asked again with the answer, and learned from without it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.data import Example
from prefopt.errors import DataError, RecipeError, RunError
from prefopt.models import PackedModel, load_policy
from prefopt.models.scoring import example_logprobs
from prefopt.rounds.config import RationaliseSection
from prefopt.rounds.events import read_events
from prefopt.rounds.hinting import hinted_prompt
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.recipe import load_rounds
from prefopt.rounds.stage import read_manifest
from prefopt.rounds.status import rounds_status
from prefopt.rounds.tables import read_groups, read_scores
from prefopt.sampling import Prompt, Rollout, read_rollouts
from tests.rounds.toy import contents, write_task

HINT = "rounds.rationalise={hint: '{prompt} ({answer}!)', n: 12}"
OVERRIDES = ["loss=sft", "select={selector: threshold}", "eval.correct=0.4", HINT]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A recipe of one round, selected."""
    recipe = write_task(tmp_path_factory.mktemp("hints"), tiny_model, count=1)
    run_rounds(load_rounds(recipe, OVERRIDES), until="select")
    return recipe


def parts(run: Path) -> tuple[list[Rollout], set[str], list[Rollout], set[tuple[str, int]]]:
    """Return what was sampled, which prompts that answers right, what was sampled with a hint, what of it is right."""
    folder = run / "round-000"
    right = {row.prompt_id for row in read_scores(folder / "scores.parquet") if row.correct}
    hinted = {(row.prompt_id, row.sample) for row in read_scores(folder / "hint-scores.parquet") if row.correct}
    return read_rollouts(folder / "rollouts.parquet"), right, read_rollouts(folder / "hint-rollouts.parquet"), hinted


def test_prompts_that_were_never_answered_right_are_asked_again_and_kept_without_the_hint(
    task: Path, tiny_model: Path
) -> None:
    sampled, right, hinted, _ = parts(task.parent / "run")
    asked = {one.prompt_id: one.prompt_ids for one in sampled}
    assert 0 < len(right) < len(asked), "some are answered right, and some are not"
    assert {one.prompt_id for one in hinted} == asked.keys() - right
    for prompt_id in asked.keys() - right:
        own = [one for one in hinted if one.prompt_id == prompt_id]
        assert [one.sample for one in own] == list(range(4, 16)), "they are counted from those without a hint"
        assert {one.prompt_ids for one in own} == {asked[prompt_id]}, "the hint is in none of them"
    packed = PackedModel(load_policy(str(tiny_model), dtype="float32", lora={"r": 4, "alpha": 8})[0])
    examples = [Example(one.prompt_ids, (one.token_ids,)) for one in hinted]
    policy, _ = example_logprobs(examples, packed, None, 1024)
    assert [one.policy for one in hinted] == pytest.approx(list(policy), abs=1e-4)


def test_what_was_sampled_with_a_hint_follows_the_prompt_with_it(task: Path, tiny_model: Path) -> None:
    """Greedy completions are those that a model gives to the text with the hint in it, one token after the other."""
    run = task.parent / "greedy"
    overrides = [f"train.output_dir={run}", "sample={n: 1, temperature: 0, max_new_tokens: 4}", "eval.correct=2"]
    hint = "rounds.rationalise={hint: '{prompt} ({answer}!)'}"
    with pytest.raises(RunError, match="selected nothing"):
        run_rounds(load_rounds(task, [*OVERRIDES, *overrides, hint]), until="select")
    model, tokenizer = load_policy(str(tiny_model), dtype="float32")
    prompts = {Prompt.of(row["prompt"], {"answer": row["answer"]}).prompt_id: row
               for row in map(json.loads, (task.parent / "prompts.jsonl").read_text().splitlines())}  # fmt: skip
    for one in read_rollouts(run / "round-000/hint-rollouts.parquet"):
        row = prompts[one.prompt_id]
        ids = tokenizer(f"{row['prompt']} ({row['answer']}!)", add_special_tokens=False)["input_ids"]
        for token in one.token_ids:
            with torch.no_grad():
                assert int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids = [*ids, token]


def test_what_is_right_with_a_hint_is_learned_from_behind_the_prompt_alone(task: Path) -> None:
    sampled, _, hinted, right = parts(task.parent / "run")
    groups = read_groups(task.parent / "run/round-000/groups.parquet")
    chosen = {(group.prompt_id, sample): group for group in groups for sample in group.samples}
    late = {key for key in chosen if key[1] >= 4}
    assert late == right
    assert late, "some are right with a hint"
    prompt_ids = {one.prompt_id: one.prompt_ids for one in sampled}
    completions = {(one.prompt_id, one.sample): one.token_ids for one in hinted}
    for key in late:
        assert chosen[key].prompt_ids == prompt_ids[key[0]]
        assert chosen[key].completions == (completions[key],)


def test_it_is_done_once_and_a_changed_hint_asks_again_without_sampling_anew(task: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(task.parent / "run", run)

    def stages(*overrides: str) -> list[str]:
        before = len(read_events(run))
        run_rounds(load_rounds(task, [*OVERRIDES, f"train.output_dir={run}", *overrides]), until="select")
        return [event["stage"] for event in read_events(run)[before:] if event["event"] == "begin"]

    shutil.rmtree(run / "round-000")
    shutil.copytree(task.parent / "run/round-000", run / "round-000")
    (run / "round-000/hint-scores.parquet").unlink()
    with pytest.warns(UserWarning, match="hint-scores.parquet is missing"):
        assert stages() == ["hint-score"]
    assert contents(run) == contents(task.parent / "run")
    [first] = rounds_status(run).rounds
    _, _, hinted, right = parts(run)
    assert (first.hinted, first.hinted_right) == (len(hinted), pytest.approx(len(right) / len(hinted)))
    assert first.done == ("sample", "score", "select")
    assert any(f"hinted    {len(hinted)} rollouts" in line for line in rounds_status(run).lines())
    assert stages("rounds.rationalise={hint: 'It is {answer}. {prompt}', n: 12}") == [
        "hint-sample", "hint-score", "select"
    ]  # fmt: skip
    assert stages("rounds.rationalise=null")[-1] == "select"
    manifest = read_manifest(run / "round-000/select.json")
    assert manifest is not None
    assert set(manifest.inputs) == {"rollouts", "scores"}
    assert rounds_status(run).rounds[0].hinted is None


def test_nothing_is_asked_again_where_all_was_answered_right(task: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_rounds(load_rounds(task, [*OVERRIDES, f"train.output_dir={run}", "eval.correct=0"]), until="train")
    assert read_rollouts(run / "round-000/hint-rollouts.parquet") == []
    manifest = read_manifest(run / "round-000/train.json")
    assert manifest is not None
    assert manifest.counts["examples"] == 32


def test_the_hint_goes_into_what_the_user_said_last_and_nothing_is_written_twice() -> None:
    section = RationaliseSection(hint="{prompt} [{answer}]")
    turns: Any = ({"role": "user", "content": "a {answer}?"}, {"role": "assistant", "content": "b"},
                  {"role": "user", "content": "c {prompt} {answer}?"})  # fmt: skip
    prompt = Prompt.of(turns, {"answer": ["x", "y"]})
    found = hinted_prompt(prompt, section)
    assert found.prompt == (*turns[:2], {"role": "user", "content": "c {prompt} {answer}? [x]"})
    assert (found.prompt_id, found.row) == (prompt.prompt_id, prompt.row)
    assert hinted_prompt(Prompt.of("1 + 1 =", {"answer": 2}), section).prompt == "1 + 1 = [2]"
    with pytest.raises(DataError, match="in the column 'answer', and one has right"):
        hinted_prompt(Prompt.of("1 + 1 =", {"right": 2}), section)
    with pytest.raises(DataError, match="what the user said last"):
        hinted_prompt(Prompt.of([{"role": "system", "content": "s"}], {"answer": 2}), section)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rounds.rationalise={}", "eval.correct=null"], "no scorer is a verifier"),
        (["rounds.rationalise={}", "select={selector: rso, k: 2, beta: 1, form: pairs}"], "takes candidates as drawn"),
        (
            ["rounds.rationalise={}", "sample={engine: file, path: prompts.jsonl}", "rounds.count=1"],
            "sample.engine is file",
        ),
        (["rounds.rationalise={hint: 'It is {answer}.'}"], "has no {prompt}"),
        (["rounds.rationalise={hint: '{prompt} {prompt} {answer}.'}"], "more than once"),
    ],
)
def test_where_it_can_not_work_it_is_refused(task: Path, overrides: list[str], words: str) -> None:
    if any("path: prompts" in one for one in overrides):
        overrides = [one.replace("prompts.jsonl", str(task.parent / "prompts.jsonl")) for one in overrides]
    with pytest.raises(RecipeError) as caught:
        load_rounds(task, overrides)
    assert words in str(caught.value)
