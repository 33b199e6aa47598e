"""PreferenceTrainer on a tiny real model: it learns, logs what dashboards know, and refuses what can't be."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from rich.console import Console

import prefopt
from prefopt.errors import DataError, RecipeError, RunError
from prefopt.losses import build
from prefopt.recipe import load_recipe
from prefopt.report import write_report
from prefopt.train import PreferenceArguments, PreferenceTrainer, TrainConfig
from prefopt.workflow import claim_directory, eval_pairs_run, train_run
from tests.toys import list_rows, pair_rows, write_rows

NAMES = {
    "loss", "grad_norm", "learning_rate", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
    "logps/chosen", "logps/rejected", "log_ratios/chosen", "log_ratios/rejected", "tokens",
}  # fmt: skip


def make_trainer(
    folder: Path, model: Path, loss: str = "dpo", *, reference: object = "auto", **options: object
) -> PreferenceTrainer:
    policy, tokenizer = prefopt.load_policy(str(model), dtype="float32", lora={"r": 4})
    data = prefopt.load_preferences(pair_rows(24), tokenizer)
    settings = {"examples_per_step": 8, "learning_rate": 1e-2, "save_strategy": "no", "token_budget": 500, **options}
    args = PreferenceArguments(output_dir=str(folder), **settings)
    return PreferenceTrainer(policy, data, build(loss), reference, args, eval_data=data, tokenizer=tokenizer)


def logged(trainer: PreferenceTrainer) -> list[dict[str, float]]:
    return [record for record in trainer.state.log_history if "loss" in record]


def test_training_starts_at_log_two_learns_and_logs_what_dashboards_plot(tmp_path: Path, tiny_model: Path) -> None:
    trainer = make_trainer(tmp_path, tiny_model, num_train_epochs=4)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    records = logged(trainer)
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert len(records) == 12
    assert records[0].keys() >= NAMES
    assert before["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert after["eval_loss"] < before["eval_loss"] - 0.1
    assert after["eval_rewards/accuracies"] > 0.9
    assert after["eval_rewards/margins"] == pytest.approx(
        after["eval_rewards/chosen"] - after["eval_rewards/rejected"], abs=1e-5
    )


def test_an_untrained_step_says_when_policy_and_reference_differ(tmp_path: Path, tiny_model: Path) -> None:
    trainer = make_trainer(tmp_path, tiny_model, max_steps=1)
    weight = next(p for name, p in trainer.model.named_parameters() if "lora_B" in name)
    torch.nn.init.ones_(weight)
    with pytest.warns(UserWarning, match=r"policy and reference .* differ by up to"):
        trainer.train()


def test_activation_checkpointing_changes_no_loss(tmp_path: Path, tiny_model: Path) -> None:
    plain = make_trainer(tmp_path / "a", tiny_model, max_steps=4)
    checkpointed = make_trainer(tmp_path / "b", tiny_model, max_steps=4, activation_checkpointing=True)
    plain.train()
    checkpointed.train()
    expected, found = ([r["loss"] for r in logged(t)] for t in (plain, checkpointed))
    assert found == pytest.approx(expected, rel=1e-6)
    assert expected[-1] < expected[0]


def test_pairs_serve_kto_and_its_shift_is_logged(tmp_path: Path, tiny_model: Path) -> None:
    trainer = make_trainer(tmp_path, tiny_model, "kto", num_train_epochs=6)
    assert len(trainer.data) == 48
    trainer.train()
    records = logged(trainer)
    assert records[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert any(record["kl"] > 0 for record in records)
    after = trainer.evaluate()
    assert after["eval_rewards/chosen"] > after["eval_rewards/rejected"] + 0.05


def test_labels_given_to_dpo_are_explained(tmp_path: Path, tiny_model: Path) -> None:
    policy, tokenizer = prefopt.load_policy(str(tiny_model), dtype="float32")
    rows = [{"prompt": f"q{i}", "completion": f" a{i}", "label": i % 2 == 0} for i in range(4)]
    data = prefopt.load_preferences(rows, tokenizer)
    args = PreferenceArguments(output_dir=str(tmp_path))
    with pytest.raises(DataError, match="single completions with a label"):
        PreferenceTrainer(policy, data, build("dpo"), "auto", args)
    with pytest.raises(RecipeError, match="reference"):
        PreferenceTrainer(policy, data, build("kto"), "none", args)


def test_evaluating_without_data_says_what_to_give(tmp_path: Path, tiny_model: Path) -> None:
    trainer = make_trainer(tmp_path, tiny_model)
    trainer.eval_data = None
    with pytest.raises(RunError, match=r"data\.eval"):
        trainer.evaluate()


def test_several_gpus_in_one_process_and_fp16_on_a_cpu_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="CPU has no fp16"):
        PreferenceArguments(output_dir=str(tmp_path), fp16=True, use_cpu=True)
    monkeypatch.setattr(PreferenceArguments, "n_gpu", 2, raising=False)
    with pytest.raises(RecipeError, match=r"2 GPUs are visible .* CUDA_VISIBLE_DEVICES=0"):
        PreferenceArguments(output_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("per_device_train_batch_size", 4, "examples_per_step"),
        ("learning_rat", 1e-3, "did you mean 'learning_rate'"),
        ("learning_rate", "fast", "learning_rate is 'fast'"),
    ],
)
def test_a_wrong_training_argument_names_the_key_and_the_way_out(key: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig.model_validate({"output_dir": "runs/x", key: value})


def recipe(folder: Path, model: Path, run: Path) -> Path:
    write_rows(folder / "pairs.jsonl", pair_rows(16))
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: {{name: {model}, dtype: float32, lora: {{r: 2}}}}\ndata: {{train: pairs.jsonl, eval: pairs.jsonl}}\n"
        f"train: {{output_dir: {run}, examples_per_step: 8, save_strategy: 'no'}}\n"
        "eval: {samples: 1, samples_per_prompt: 1, max_new_tokens: 4}\n"
    )
    return path


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path: Path, tiny_model: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("precious")
    loaded = load_recipe(recipe(tmp_path, tiny_model, run))
    with pytest.raises(RunError, match="not empty"):
        claim_directory(run, loaded, resume=False)
    with pytest.raises(RunError, match="not a run to resume"):
        claim_directory(run, loaded, resume=True)
    assert [p.name for p in run.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        claim_directory(tmp_path / "file", loaded, resume=False)
    with pytest.raises(RunError, match="can't be written"):
        claim_directory(tmp_path / "file" / "below", loaded, resume=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_a_sentence(tmp_path: Path, tiny_model: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(RunError, match="can't be written"):
        claim_directory(locked / "run", load_recipe(recipe(tmp_path, tiny_model, locked / "run")), resume=False)


def test_a_run_directory_holds_everything_and_loads_again(tmp_path: Path, tiny_model: Path) -> None:
    run = tmp_path / "run"
    result = train_run(load_recipe(recipe(tmp_path, tiny_model, run)))
    names = {path.name for path in run.iterdir()}
    assert names >= {"recipe.yaml", "environment.json", "metrics.jsonl", "adapter", "data.json", "samples.json", "eval"}
    assert result.before is not None
    assert result.after is not None

    again = eval_pairs_run(run)
    assert again.metrics.margin.value == pytest.approx(result.after.metrics.margin.value, abs=1e-5)
    assert again.metrics.margin.value > 0


def test_a_run_on_lists_is_evaluated_on_the_best_and_the_worst(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    path = recipe(tmp_path, tiny_model, run)
    write_rows(tmp_path / "pairs.jsonl", list_rows(14) + list_rows(2, tied=True))
    result = train_run(load_recipe(path, ["train.max_steps=4", "train.learning_rate=1e-2"]), console=Console(width=200))
    said = capsys.readouterr().out
    note = "2 of 16 lists are left out: all of their scores are equal"
    assert f"data: 14 examples ({note}) to learn from, 14 examples ({note}) held out" in said
    summaries = json.loads((run / "data.json").read_text())
    assert [summary["notes"] for summary in summaries.values()] == [[note], [note]]
    assert result.before is not None
    assert result.after is not None
    assert (result.before.metrics.n, result.after.metrics.n) == (14, 14)
    assert result.after.metrics.margin.value > 0
    assert {key for row in (run / "metrics.jsonl").read_text().splitlines() for key in json.loads(row)} >= NAMES

    again = eval_pairs_run(run)
    assert again.metrics.margin.value == pytest.approx(result.after.metrics.margin.value, abs=1e-5)
    as_pairs = eval_pairs_run(run, data=str(write_rows(tmp_path / "as_pairs.jsonl", pair_rows(14))))
    assert as_pairs.metrics.margin.value == pytest.approx(again.metrics.margin.value, abs=1e-5)
    tied = write_rows(tmp_path / "tied.jsonl", list_rows(2, tied=True))
    with pytest.raises(DataError, match="the scores of every list of the data are all equal"):
        eval_pairs_run(run, data=str(tied))
    labels = [{"prompt": f"q{i}", "completion": f" a{i}", "label": i % 2 == 0} for i in range(4)]
    with pytest.raises(DataError, match="holds labelled completions, not pairs; give pairs or scored lists by --data"):
        eval_pairs_run(run, data=str(write_rows(tmp_path / "labels.jsonl", labels)))


def test_held_out_lists_that_prefer_nothing_are_said_and_do_not_stop_a_training(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    path = recipe(tmp_path, tiny_model, run)
    write_rows(tmp_path / "tied.jsonl", list_rows(4, tied=True))
    overrides = ["train.max_steps=1", "loss=sft", f"data.eval={tmp_path}/tied.jsonl"]
    result = train_run(load_recipe(path, overrides), console=Console(width=300))
    assert (result.before, result.after) == (None, None)
    said = capsys.readouterr().out
    assert "held out: no pair to measure. Completions of a list are compared by their scores, but the scores" in said
    assert (run / "adapter").is_dir()
    assert not (run / "eval").exists()
    assert len(json.loads((run / "samples.json").read_text())) == 1
    write_report(run)
    # A loss that compares can't be measured on them either, and says so before a step is made.
    with pytest.raises(DataError, match="all equal"):
        train_run(load_recipe(path, [*overrides, "loss=dpo", f"train.output_dir={tmp_path}/other"]))


def test_missing_pairs_are_told_before_a_model_loads(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefopt.workflow import evaluations, finished

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(finished, "load_policy", refuse)
    path = recipe(tmp_path, tiny_model, tmp_path / "run")
    with pytest.raises(DataError, match=r"absent\.jsonl is missing"):
        evaluations.eval_pairs_run(path, data=str(tmp_path / "absent.jsonl"))


def lists_trainer(folder: Path, model: Path, loss: str, **options: object) -> PreferenceTrainer:
    policy, tokenizer = prefopt.load_policy(str(model), dtype="float32", lora={"r": 4})
    data = prefopt.load_preferences(list_rows(24), tokenizer)
    settings = {"examples_per_step": 8, "learning_rate": 1e-2, "save_strategy": "no", "token_budget": 500, **options}
    args = PreferenceArguments(output_dir=str(folder), **settings)
    return PreferenceTrainer(policy, data, build(loss), "auto", args, eval_data=data, tokenizer=tokenizer)


def test_a_listwise_loss_learns_the_order_of_scored_lists(tmp_path: Path, tiny_model: Path) -> None:
    trainer = lists_trainer(tmp_path, tiny_model, "plackett_luce", num_train_epochs=5)
    trainer.train()
    records = logged(trainer)
    assert records[0]["loss"] == pytest.approx(math.log(6), abs=1e-5)
    after = trainer.evaluate()
    assert after["eval_loss"] < math.log(6) - 0.2
    assert after["eval_rewards/accuracies"] > 0.9


def test_scored_lists_serve_losses_of_pairs_and_labels(tmp_path: Path, tiny_model: Path) -> None:
    pairs = lists_trainer(tmp_path, tiny_model, "odpo(alpha=0.5)", max_steps=2)
    assert (len(pairs.data), pairs.data[0].scores) == (24, (1.0, 0.0))
    pairs.train()
    # gaps of 1: no offset
    assert logged(pairs)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    labels = lists_trainer(tmp_path, tiny_model, "kto", max_steps=1)
    assert len(labels.data) == 48


@pytest.mark.parametrize("loss", ["tdpo", "ld_dpo", "wpo(ipo(beta=1)) + 0.1*bco"])
def test_extras_reach_the_loss_also_with_activation_checkpointing(tmp_path: Path, tiny_model: Path, loss: str) -> None:
    plain = make_trainer(tmp_path / "a", tiny_model, loss, max_steps=4, learning_rate=1e-3)
    checkpointed = make_trainer(
        tmp_path / "b", tiny_model, loss, activation_checkpointing=True, max_steps=4, learning_rate=1e-3
    )
    plain.train()
    checkpointed.train()
    expected, found = ([r["loss"] for r in logged(t)] for t in (plain, checkpointed))
    assert found == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]
    assert math.isfinite(plain.evaluate()["eval_loss"])


def test_a_divergence_with_all_weights_in_training_is_refused_before_the_first_step(
    tmp_path: Path, tiny_model: Path
) -> None:
    policy, tokenizer = prefopt.load_policy(str(tiny_model), dtype="float32", lora=None)
    data = prefopt.load_preferences(pair_rows(4), tokenizer)
    with pytest.raises(RecipeError, match=r"the loss tdpo has no gradient for a head that trains, .* set model\.lora"):
        PreferenceTrainer(policy, data, build("tdpo"), "auto", PreferenceArguments(output_dir=str(tmp_path)))


@pytest.mark.parametrize("loss", ["bco", "beta_dpo + 0.1*sft"])
def test_what_a_loss_remembers_survives_a_checkpoint_and_evaluation_leaves_it_alone(
    tmp_path: Path, tiny_model: Path, loss: str
) -> None:
    # Without dropout two runs are the same, evaluated in between or not.
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    whole = make_trainer(tmp_path / "a", tiny_model, loss, **options)
    whole.train()
    first = make_trainer(tmp_path / "b", tiny_model, loss, eval_strategy="steps", eval_steps=1, **options)
    first.train()
    assert first.loss_module.state_dict().keys() == whole.loss_module.state_dict().keys()
    resumed = make_trainer(tmp_path / "b", tiny_model, loss, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    for name, value in whole.loss_module.state_dict().items():
        assert bool(value.any())
        assert torch.equal(first.loss_module.state_dict()[name], value)
        assert torch.equal(resumed.loss_module.state_dict()[name], value)
    assert [r["loss"] for r in logged(resumed)] == [r["loss"] for r in logged(whole)]


@pytest.mark.parametrize(("loss", "reference"), [("bco", "auto"), ("dpo", {"kind": "moving", "every": 1, "mix": 0.5})])
def test_what_a_resumed_run_measures_at_its_start_is_measured_with_all_that_was_saved(
    tmp_path: Path, tiny_model: Path, loss: str, reference: object
) -> None:
    options = {"reference": reference, "save_strategy": "steps", "save_steps": 2, "max_steps": 3}
    whole = make_trainer(tmp_path, tiny_model, loss, eval_strategy="steps", eval_steps=2, **options)
    whole.train()
    at_two = next(r["eval_loss"] for r in whole.state.log_history if "eval_loss" in r and r["step"] == 2)
    resumed = make_trainer(tmp_path, tiny_model, loss, eval_on_start=True, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    begun = [r["eval_loss"] for r in resumed.state.log_history if "eval_loss" in r and r["step"] == 2]
    assert begun == [at_two, at_two], "the first is in the checkpoint's own history"
    assert logged(resumed)[-1]["loss"] == logged(whole)[-1]["loss"]


def test_a_finished_run_and_the_best_checkpoint_bring_back_what_the_loss_remembered(
    tmp_path: Path, tiny_model: Path
) -> None:
    options = {
        "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 4,
    }  # fmt: skip
    # The "best" is the one with the highest loss, so that it is not the last.
    worst = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    best = make_trainer(tmp_path / "a", tiny_model, "bco", **worst, **options)
    best.train()
    saved = json.loads((Path(best.state.best_model_checkpoint) / "prefopt_state.json").read_text())
    assert best.state.best_global_step < 4
    assert best.loss_module.count.tolist() == saved["loss"]["count"] == [8.0 * best.state.best_global_step] * 2
    assert best.evaluate()["eval_loss"] == pytest.approx(best.state.best_metric, rel=1e-6)

    ended = make_trainer(tmp_path / "b", tiny_model, "bco", **options)
    ended.train()
    again = make_trainer(tmp_path / "b", tiny_model, "bco", **options)
    again.train(resume_from_checkpoint=True)
    assert again.loss_module.count.tolist() == [32.0, 32.0]
    assert again.evaluate()["eval_loss"] == ended.evaluate()["eval_loss"]


def test_a_trainer_leaves_the_loss_that_it_was_given_as_it_was(tmp_path: Path, tiny_model: Path) -> None:
    policy, tokenizer = prefopt.load_policy(str(tiny_model), dtype="float32", lora={"r": 4})
    data, loss = prefopt.load_preferences(pair_rows(8), tokenizer), build("bco")
    args = PreferenceArguments(output_dir=str(tmp_path), max_steps=2, save_strategy="no", report_to="none")
    trainer = PreferenceTrainer(policy, data, loss.eval(), "auto", args)
    trainer.train()
    assert trainer.loss_module.count.tolist() == [16.0, 16.0]
    assert loss.count.tolist() == [0.0, 0.0]


def test_lists_that_prefer_nothing_are_said_or_refused_where_a_loss_ignores_them(
    tmp_path: Path, tiny_model: Path
) -> None:
    _, tokenizer = prefopt.load_policy(str(tiny_model), dtype="float32")
    some = prefopt.load_preferences(list_rows(6) + list_rows(2, tied=True), tokenizer)
    none = prefopt.load_preferences(list_rows(3, tied=True), tokenizer)
    policy, _ = prefopt.load_policy(str(tiny_model), dtype="float32", lora={"r": 4})
    args = PreferenceArguments(output_dir=str(tmp_path))
    trainer = PreferenceTrainer(policy, some, build("plackett_luce"), "auto", args)
    assert (len(trainer.data), trainer.data.summary.notes) == (
        6,
        ("2 of 8 lists are left out: all of their scores are equal",),
    )
    with pytest.raises(DataError, match="the scores of every list of the data are all equal"):
        PreferenceTrainer(policy, none, build("lipo"), "auto", args)
    assert len(PreferenceTrainer(policy, none, build("infonca"), "auto", args).data) == 3


def test_pairs_whose_scores_contradict_them_are_refused_where_lists_would_turn_them_round(
    tmp_path: Path, tiny_model: Path
) -> None:
    policy, tokenizer = prefopt.load_policy(str(tiny_model), dtype="float32", lora={"r": 4})
    rows = [{**row, "score_chosen": 1, "score_rejected": 2} for row in pair_rows(8)]
    data, args = prefopt.load_preferences(rows, tokenizer), PreferenceArguments(output_dir=str(tmp_path))
    with pytest.raises(DataError, match="needs chosen to be scored above rejected, and in 8 of 8 pairs it isn't"):
        PreferenceTrainer(policy, data, build("infonca + dpo"), "auto", args)
    assert len(PreferenceTrainer(policy, data, build("infonca"), "auto", args).data) == 8
