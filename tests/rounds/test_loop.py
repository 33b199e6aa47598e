"""Rounds in one process: what is done stays, what changed is made again, and no more than that."""

import json
import shutil
from pathlib import Path

import pytest

from prefopt.errors import DataError, RecipeError, RunError
from prefopt.rounds.engines import _for_vllm
from prefopt.rounds.events import Events, read_events
from prefopt.rounds.figure import _points, draw_rounds
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.recipe import load_rounds
from prefopt.rounds.run import Run
from prefopt.rounds.selecting import GROUPS
from prefopt.rounds.stage import read_manifest
from prefopt.rounds.status import rounds_status
from prefopt.rounds.tables import preferences, read_groups, read_scores
from prefopt.sampling import read_rollouts
from prefopt.train.ranks import ALONE
from tests.rounds.toy import contents, write_task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A recipe of two rounds, which have run."""
    recipe = write_task(tmp_path_factory.mktemp("task"), tiny_model)
    result = run_rounds(load_rounds(recipe))
    assert (result.rounds, result.stopped) == (2, None)
    return recipe


def again(task: Path, folder: Path, *overrides: str, until: str | None = None) -> tuple[Path, list[tuple[int, str]]]:
    """Go on in a copy of the run with changes; returns it and what was done."""
    run = folder / "run"
    shutil.copytree(task.parent / "run", run)
    before = len(read_events(run))
    run_rounds(load_rounds(task, [f"train.output_dir={run}", *overrides]), until=until)  # type: ignore[arg-type]
    begun = [event for event in read_events(run)[before:] if event["event"] == "begin"]
    return run, [(event["round"], event["stage"]) for event in begun]


def test_a_run_that_is_whole_stays_as_it_is_wherever_it_lies(task: Path, tmp_path: Path) -> None:
    run, done = again(task, tmp_path)
    assert done == []
    assert contents(run) == contents(task.parent / "run")


def test_what_only_a_resume_needs_is_cleared_away_also_when_a_kill_left_it(task: Path, tmp_path: Path) -> None:
    left = ("round-000/.sample-shards", "round-001/.eval-score-shards", "round-000/train/checkpoint-2")
    assert not any((task.parent / "run" / name).exists() for name in left)
    torn = tmp_path / "torn"
    shutil.copytree(task.parent / "run", torn)
    for name in left:
        (torn / name).mkdir()
    run_rounds(load_rounds(task, [f"train.output_dir={torn}"]))
    assert not any((torn / name).exists() for name in left)
    assert contents(torn) == contents(task.parent / "run")


def test_a_changed_selector_selects_again_without_sampling_again(task: Path, tmp_path: Path) -> None:
    run, done = again(task, tmp_path, "select.selector=best_vs_random", until="select")
    assert done == [(0, "select")]
    old, new = contents(task.parent / "run"), contents(run)
    assert {name for name in old if old[name] != new[name]} == {f"round-000/select/{GROUPS}"}
    start, first, second = rounds_status(run).rounds
    assert start.held_out is not None
    assert first.done == ("sample", "score", "select"), "what was made of the old selection is not said to be done"
    assert (first.examples, first.held_out, second.done) == (None, None, ())


def test_a_changed_scorer_file_scores_again_without_sampling_again(task: Path, tmp_path: Path) -> None:
    for name in ("run.yaml", "prompts.jsonl", "held_out.jsonl", "scorer.py"):
        shutil.copy(task.parent / name, tmp_path / name)
    (tmp_path / "scorer.py").write_text((tmp_path / "scorer.py").read_text() + "\n# as before\n")
    shutil.copytree(task.parent / "run", tmp_path / "run")
    run_rounds(load_rounds(tmp_path / "run.yaml", [f"train.output_dir={tmp_path / 'run'}"]), until="select")
    scored = read_manifest(tmp_path / "run/round-000/score.json")
    before = read_manifest(task.parent / "run/round-000/score.json")
    assert scored is not None
    assert before is not None
    assert scored.key != before.key
    assert scored.outputs == before.outputs, "it says the same of the same answers"
    done = [(e["round"], e["stage"]) for e in read_events(tmp_path / "run") if e["event"] == "begin"]
    assert done[-1] == (0, "score"), "the same scores are selected from as before"


def test_another_number_of_rounds_keeps_those_that_are_there(task: Path, tmp_path: Path) -> None:
    _, done = again(task, tmp_path, "rounds.count=3", until="sample")
    assert done == [(2, "sample")]


def test_until_evaluate_ends_after_one_more_round(task: Path, tmp_path: Path) -> None:
    run, done = again(task, tmp_path, "rounds.count=4", until="evaluate")
    assert {number for number, _ in done} == {2}
    assert len(rounds_status(run).rounds) == 1 + 3


def test_a_torn_file_is_made_again_with_a_warning_and_holds_the_same(task: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    torn.mkdir()
    shutil.copytree(task.parent / "run", torn / "run")
    path = torn / "run/round-000/rollouts.parquet"
    path.write_bytes(path.read_bytes()[:-7] + b"1234567")
    shutil.copy(task, torn / "run.yaml")
    recipe = load_rounds(task, [f"train.output_dir={torn / 'run'}"])
    with pytest.warns(UserWarning, match=r"rollouts\.parquet is damaged, so sample is done again"):
        run_rounds(recipe)
    assert contents(torn / "run") == contents(task.parent / "run")
    assert [e["stage"] for e in read_events(torn / "run") if e["event"] == "begin"][-1] == "sample"


def test_rollouts_scores_and_groups_speak_of_the_same_completions(task: Path) -> None:
    folder = task.parent / "run/round-001"
    rollouts = {(one.prompt_id, one.sample): one for one in read_rollouts(folder / "rollouts.parquet")}
    scores = {(row.prompt_id, row.sample): row for row in read_scores(folder / "scores.parquet")}
    assert len(rollouts) == 32
    assert rollouts.keys() == scores.keys()
    for key, row in scores.items():
        text = rollouts[key].text
        assert row.score == sum(c.isascii() and c.isalpha() for c in text) / max(1, len(text))
        assert row.correct == (row.score >= 0.5)
    groups = read_groups(folder / GROUPS)
    assert groups
    for group in groups:
        own = [scores[group.prompt_id, sample].score for sample in group.samples]
        assert list(group.scores) == own
        everyone = [row.score for (prompt_id, _), row in scores.items() if prompt_id == group.prompt_id]
        assert own == [max(everyone), min(everyone)]  # type: ignore[type-var]
        assert group.completions == tuple(rollouts[group.prompt_id, sample].token_ids for sample in group.samples)
    data = preferences("pairs", groups)
    assert [(one.prompt, one.completions) for one in data] == [(one.prompt_ids, one.completions) for one in groups]


def test_the_first_round_samples_from_its_own_reference_and_the_second_from_what_the_first_trained(task: Path) -> None:
    first, second = (read_rollouts(task.parent / f"run/round-00{number}/rollouts.parquet") for number in (0, 1))
    assert all(one.policy == one.reference for one in first)
    assert any(one.policy != one.reference for one in second)


def test_the_policy_continues_and_is_compared_with_the_start(task: Path) -> None:
    from safetensors.torch import load_file

    from prefopt.train.callbacks import read_metrics

    rewards = []
    for number in (0, 1):
        records = read_metrics(task.parent / f"run/round-00{number}/train/metrics.jsonl")
        rewards.append(abs(records[0]["rewards/chosen"]) + abs(records[0]["rewards/rejected"]))
    assert rewards[0] == 0, "the policy is its reference"
    assert rewards[1] > 1e-3, "the policy has moved from the reference, which is still the start"
    adapters = [
        load_file(task.parent / f"run/round-00{number}/train/adapter/adapter_model.safetensors") for number in (0, 1)
    ]
    assert adapters[0].keys() == adapters[1].keys()


def test_a_run_ends_early_by_its_rule_and_says_so(task: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(task.parent / "run", run)
    result = run_rounds(load_rounds(task, [f"train.output_dir={run}", "rounds.stop.tokens=5"]))
    assert result.rounds == 1
    assert "tokens were sampled" in str(result.stopped)
    assert any("tokens were sampled" in line for line in rounds_status(run).lines())


def shares(task: Path, *overrides: str) -> list[set[str]]:
    """Return the prompts of each round, by what they ask."""
    run = Run(load_rounds(task, overrides), ALONE, Events(None), print)
    return [{str(prompt.prompt) for prompt in run.round_prompts(number)} for number in range(run.recipe.rounds.count)]


def test_prompts_that_are_split_go_to_one_round_each(task: Path, tmp_path: Path) -> None:
    overrides = [f"train.output_dir={tmp_path / 'run'}", "rounds.prompts=split", "rounds.count=2"]
    run_rounds(load_rounds(task, overrides), until="sample")
    first, second = shares(task, *overrides)
    sampled = {one.prompt_id for one in read_rollouts(tmp_path / "run/round-000/rollouts.parquet")}
    assert len(sampled) == len(first)
    assert not first & second
    assert len(first | second) == 8
    assert shares(task, *overrides, "rounds.seed=1") != [first, second]
    with pytest.raises(DataError, match=r"of 8 prompts for 99 rounds round \d+ has none"):
        shares(task, *overrides, "rounds.count=99")


def test_more_prompts_change_no_other_prompts_share(task: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.jsonl"
    rows = [json.dumps({"prompt": f"say {number}", "answer": str(number)}) for number in range(99, -1, -1)]
    many.write_text("\n".join(rows))
    overrides = ["rounds.prompts=split", "rounds.count=2", f"prompts.eval={task.parent / 'held_out.jsonl'}"]
    few, more = shares(task, *overrides), shares(task, *overrides, f"prompts.train={many}")
    assert all(one <= other for one, other in zip(few, more, strict=True))
    assert min(map(len, more)) > 30, "about half of 100"


def test_nothing_selected_is_a_sentence_and_what_was_sampled_stays(task: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"round 0 selected nothing to train on: .* \(8 prompts\)\. Sample more"):
        again(task, tmp_path, "loss=sft", "select={selector: threshold, threshold: 2}")
    assert (tmp_path / "run/round-000/scores.parquet").is_file()


def test_held_out_prompts_that_are_learned_from_and_columns_that_are_missing_are_refused(
    task: Path, tmp_path: Path
) -> None:
    overrides = [f"train.output_dir={tmp_path / 'run'}"]
    with pytest.raises(DataError, match="8 of the held-out prompts"):
        run_rounds(load_rounds(task, [*overrides, f"prompts.eval={task.parent / 'prompts.jsonl'}"]))
    (tmp_path / "again.jsonl").write_text(json.dumps({"prompt": "say 3", "answer": "another"}) + "\n")
    with pytest.raises(DataError, match="1 of the held-out prompts"):
        run_rounds(load_rounds(task, [*overrides, f"prompts.eval={tmp_path / 'again.jsonl'}"]))
    with pytest.raises(DataError, match="needs the column 'solution' of every row"):
        run_rounds(load_rounds(task, [*overrides, "score={kind: exact, column: solution}"]))
    assert not (tmp_path / "run/start").exists()


def test_a_scorer_that_fails_marks_rollouts_and_not_the_run(task: Path, tmp_path: Path) -> None:
    run, done = again(
        task,
        tmp_path,
        f"score={{kind: python, function: '{task.parent / 'scorer.py'}:spoken'}}",
        "sample.max_new_tokens=2",
        "eval.correct=0.9",
        until="select",
    )
    assert done[:3] == [(0, "sample"), (0, "score"), (0, "select")]
    rows = read_scores(run / "round-000/scores.parquet")
    failed = [row for row in rows if row.failure]
    assert failed, "some answers of one random byte are no letter"
    assert all(row.score is None and row.correct is False and "nothing was said" in str(row.failure) for row in failed)
    manifest = read_manifest(run / "round-000/score.json")
    assert manifest is not None
    assert manifest.counts["failed"] == len(failed) < len(rows)


def test_verifiers_say_what_is_right_and_lists_keep_their_scores(task: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    scorers = (
        "score={scorers: {right: {kind: regex, pattern: '[a-z]', column: null}, "
        "short: {kind: length, target: 1, unit: characters}}}"
    )
    recipe = load_rounds(
        task,
        [f"train.output_dir={run}", "rounds.count=1", scorers, "eval.correct=null", "loss=lipo",
         "select={selector: top_k, k: 3, form: lists}"],
    )  # fmt: skip
    run_rounds(recipe)
    rows = read_scores(run / "round-000/scores.parquet")
    texts = {(one.prompt_id, one.sample): one.text for one in read_rollouts(run / "round-000/rollouts.parquet")}
    assert all(row.correct == any("a" <= c <= "z" for c in texts[row.prompt_id, row.sample]) for row in rows)
    groups = read_groups(run / "round-000" / GROUPS)
    assert groups
    assert all(list(group.scores) == sorted(group.scores, reverse=True) for group in groups)
    assert preferences("lists", groups).form == "listwise"
    status = rounds_status(run)
    assert status.rounds[1].right is not None


def test_completions_made_elsewhere_are_scored_and_learned_from(task: Path, tmp_path: Path) -> None:
    made = read_rollouts(task.parent / "run/round-001/rollouts.parquet")
    rows = [{"prompt_id": one.prompt_id, "token_ids": list(one.token_ids)} for one in made]
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [f"train.output_dir={tmp_path / 'run'}", f"sample={{engine: file, n: 4, path: {tmp_path}/made.jsonl}}"]
    run_rounds(load_rounds(task, [*overrides, "rounds.count=1"]))
    found = read_rollouts(tmp_path / "run/round-000/rollouts.parquet")
    assert [one.token_ids for one in found] == [one.token_ids for one in made]
    assert rounds_status(tmp_path / "run").rounds[1].held_out is not None
    selected = read_manifest(tmp_path / "run/round-000/select.json")
    assert selected is not None
    assert selected.counts["q"] == {"engine": "file"}, "nothing is said of how they were drawn"
    with pytest.raises(RecipeError, match="those of one policy"):
        load_rounds(task, [*overrides, "rounds.count=2"])


def test_vllm_is_given_the_base_and_what_was_trained(task: Path) -> None:
    adapter = Path("round-000/train/adapter")
    recipe = load_rounds(task, ["sample.engine=vllm", "model.quantization=nf4"])
    wanted = {"base": recipe.model.name, "rank": 4, "quantization": "bitsandbytes"}
    assert _for_vllm(recipe, adapter) == {**wanted, "adapter": adapter}
    assert _for_vllm(recipe, None) == {**wanted, "adapter": None}
    whole = load_rounds(task, ["sample.engine=vllm", "model.lora=null"])
    assert _for_vllm(whole, Path("round-000/train/model")) == {"base": "round-000/train/model"}
    for override in ("model.quantization=int8", "model={peft: {peft_type: IA3}, lora: {}}"):
        with pytest.raises(RecipeError):
            load_rounds(task, ["sample.engine=vllm", override])


def test_a_directory_that_holds_something_else_is_left_alone(task: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty and no run of rounds"):
        run_rounds(load_rounds(task, [f"train.output_dir={tmp_path}"]))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    own = tmp_path / "own" / "recipe.yaml"
    own.parent.mkdir()
    own.write_text("mine: 1")
    with pytest.raises(RunError, match="is not empty and no run of rounds"):
        run_rounds(load_rounds(task, [f"train.output_dir={own.parent}"]))
    assert own.read_text() == "mine: 1"
    with pytest.raises(RunError, match="is a file"):
        run_rounds(load_rounds(task, [f"train.output_dir={tmp_path / 'notes.txt'}"]))


def test_a_figure_shows_what_was_measured_by_round(task: Path, tmp_path: Path) -> None:
    run = task.parent / "run"
    rounds = rounds_status(run).rounds
    after, value, low, high = _points(rounds, "held_out")
    assert after == [0, 1, 2]
    assert value == [one.held_out["value"] for one in rounds if one.held_out]
    assert all(a <= b <= c for a, b, c in zip(low, value, high, strict=True))
    draw_rounds([run, run], tmp_path / "rounds.svg")
    drawn = (tmp_path / "rounds.svg").read_text()
    assert "<svg" in drawn
    assert len(drawn) > 5000
    with pytest.raises(RunError, match=r"doesn't end in \.png"):
        draw_rounds([run], tmp_path / "rounds.txt")
    with pytest.raises(RunError, match="is no run of rounds"):
        draw_rounds([tmp_path], tmp_path / "rounds.png")
