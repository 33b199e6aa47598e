"""The recipe of rounds: what it holds, what it refuses and in which words."""

from pathlib import Path

import pytest

from prefopt.errors import RecipeError
from prefopt.recipe import dump_recipe
from prefopt.rounds.recipe import load_rounds
from tests.rounds.toy import write_task


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return write_task(tmp_path_factory.mktemp("recipe"), tiny_model)


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_rounds(recipe, overrides)
    return str(caught.value)


def test_it_holds_what_the_file_says_and_absolute_paths_and_reads_back_the_same(recipe: Path, tmp_path: Path) -> None:
    found = load_rounds(recipe)
    assert (found.rounds.count, found.rounds.policy, found.rounds.reference) == (2, "continues", "fixed")
    assert found.prompts.train == str(recipe.parent / "prompts.jsonl")
    assert found.score.scorers["python"].function == f"{recipe.parent / 'scorer.py'}:letters"  # type: ignore[union-attr]
    (tmp_path / "kept.yaml").write_text(dump_recipe(found))
    assert load_rounds(tmp_path / "kept.yaml") == found


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss=sft", "select={selector: rejection, beta: 1, form: labels}", "rounds.reference=previous"],
         "rounds.reference is previous, but the loss sft compares with no reference"),
        (["select={selector: top_k, k: 2}"], "top_k makes demonstrations, but the loss dpo learns from pairs"),
        (["loss=kto", "select={selector: top_k, k: 2}"], "write select.form=labels"),
        (["select={selector: threshold, form: labels, threshold: 0.5}"], "makes labels, but the loss dpo learns"),
        (["sample.n=1"], "which one sample a prompt never makes"),
        (["loss=sft", "select={selector: top_k, k: 9}"], "select.k is 9, but a prompt has 4 samples"),
        (["select={selector: top_k}"], "select.k is missing"),
        (["rounds.reference=moving"], "reference: {kind: moving, every: STEPS}"),
        (["reference={kind: moving, every: 2}"], "write rounds.reference: moving"),
        (["rounds.reference=previous", "reference.kind=adapter_off"], "which names another one"),
        (["reference=none"], "the loss dpo compares the policy with a reference"),
        (["train.shard_weights=true"], "sampling needs the weights whole"),
        (["train.deepspeed={zero_optimization: {stage: 2}}"], "its engine is made for one training"),
        (["train.eval_strategy=steps"], "rounds hold out prompts and not preferences"),
        (["eval.k=3"], "eval.k is 3, but a prompt has 2 samples"),
        (["eval.temperature=0"], "write eval.n: 1"),
        (["rounds.stop.kl=1", "eval.temperature=0.5"], "KL is measured on samples of the policy itself"),
        (["rounds.replay=1"], "rounds.replay is 1; it must be less than 1"),
        (["rounds.polcy=restarts"], "did you mean 'policy'?"),
        (["prompts.train=nothing.jsonl"], "there is no"),
        (["score={kind: exakt}"], "exact"),
        (["eval.correct=null", "select={selector: correct_vs_incorrect}"], "write select.threshold"),
        (["score={kind: python, function: scorer}"], "file.py:function"),
        (["data.train=pairs.jsonl"], "a recipe has no section data"),
    ],
)  # fmt: skip
def test_what_can_not_work_is_refused_before_a_model_loads(recipe: Path, overrides: list[str], words: str) -> None:
    assert words in refusal(recipe, *overrides)


def test_all_that_contradicts_itself_is_told_at_once_each_with_its_place(recipe: Path) -> None:
    told = refusal(
        recipe, "sample.n=1", "reference=none", "rounds.stop.kl=1", "eval.temperature=0.5", "train.shard_weights=true",
        "rounds.reference=moving",
    )  # fmt: skip
    lines = told.splitlines()
    wanted = ["loss dpo compares", "rounds.stop.kl is set", "which one sample", "rounds.reference is moving",
              "sampling needs the weights whole"]  # fmt: skip
    assert len(lines) == len(wanted)
    for words in wanted:
        [line] = [line for line in lines if words in line]
        assert line.startswith(("override", str(recipe))), "each says where"


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss=sft"],
        ["loss=kto"],
        ["loss=lipo"],
        ["loss=kto", "select={selector: threshold, form: labels, threshold: 0.5}"],
        ["loss=lipo", "select={selector: top_k, k: 3, form: lists}"],
        ["loss=0.8*dpo + 0.2*sft"],
        ["rounds.reference=moving", "reference={kind: moving, every: 2}"],
        ["rounds.reference=previous", "rounds.policy=restarts"],
    ],
)
def test_what_goes_together_is_taken(recipe: Path, overrides: list[str]) -> None:
    load_rounds(recipe, overrides)
