"""A run is loaded in one way: its measures are those taken when its training ended, whatever began where."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prefopt.errors import RunError
from prefopt.eval import PairEvaluation, PairScores, held_out_pairs
from prefopt.models.scoring import example_logprobs
from prefopt.workflow import eval_pairs_run, load_held_out
from prefopt.workflow.finished import run_recipe
from prefopt.workflow.weights import divergence_from, load_weights, start_of, weights_of_run
from tests.toys import save_tiny_model

Scores = tuple[np.ndarray, np.ndarray]


def scored(run: Path, *, start: bool = False) -> Scores:
    """Return log-probs of policy and reference of the held-out pairs as a frontier loads them, (P, 2) nats each."""
    weights = weights_of_run(run)[-1]
    loaded = load_weights(start_of(weights) if start else weights, divergence_from(weights.reference))
    recipe = run_recipe(run)
    assert recipe.data.eval is not None
    data = held_out_pairs(load_held_out(recipe, loaded.tokenizer, recipe.data.eval))
    policy, frozen = example_logprobs(data.examples, loaded.packed, loaded.reference, recipe.eval.token_budget)
    assert frozen is not None
    return policy.reshape(-1, 2), frozen.reshape(-1, 2)


def kept(run: Path, name: str) -> PairScores:
    """Return what training measured before or after."""
    return PairEvaluation.from_dict(json.loads((run / "eval" / f"{name}.json").read_text())).pairs


MODELS = {
    "lora": "lora: {r: 4}, dtype: float32",
    "lora in the dtype of this machine": "lora: {r: 4}",
    "all weights": "lora: null, dtype: float32",
    "all weights in the dtype of this machine": "lora: null",
    "pissa": "lora: {r: 4, init_lora_weights: pissa}, dtype: float32",
    "an adapter that begins at random": "lora: {r: 4, init_lora_weights: false}, dtype: float32",
}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_measures_of_a_run_are_those_at_its_end_and_a_frontiers(train: Callable[..., Path], options: str) -> None:
    run = train(options)
    same_everywhere(run)


def test_a_reference_that_moved_is_measured_from_where_it_began(train: Callable[..., Path]) -> None:
    same_everywhere(train("lora: {r: 4}, dtype: float32", more="reference: {kind: moving, every: 1}"))


def test_another_model_is_the_reference_of_both(train: Callable[..., Path], tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5)
    run = train("lora: {r: 4}, dtype: float32", more=f"reference: {{model: {other}}}")
    after, again, (policy, frozen) = kept(run, "after"), eval_pairs_run(run).pairs, scored(run)
    np.testing.assert_allclose(again.reference, after.reference, atol=2e-5)
    np.testing.assert_array_equal(again.reference, frozen)
    np.testing.assert_array_equal(again.policy, policy)


def test_an_adapter_that_went_on_may_be_compared_with_the_base_while_divergence_is_from_its_start(
    train: Callable[..., Path],
) -> None:
    first = train("lora: {r: 4}, dtype: float32")
    run = train(f"adapter: {first / 'adapter'}, dtype: float32", more="reference: adapter_off")
    after, again, (_, frozen) = kept(run, "after"), eval_pairs_run(run).pairs, scored(run)
    np.testing.assert_allclose(again.reference, after.reference, atol=2e-5)
    np.testing.assert_allclose(again.reference, kept(first, "before").policy, atol=2e-5)
    np.testing.assert_allclose(frozen, kept(first, "after").policy, atol=2e-5)


@pytest.mark.parametrize("reference", ["auto", "frozen_copy"])
def test_an_adapter_that_went_on_is_compared_with_itself_before(train: Callable[..., Path], reference: str) -> None:
    first = train("lora: {r: 4}, dtype: float32")
    run = train(f"adapter: {first / 'adapter'}, dtype: float32", more=f"reference: {reference}")
    same_everywhere(run)


def same_everywhere(run: Path) -> None:
    """Assert that three ways to the log-probs of a run and its reference give the same."""
    after, again, (policy, frozen) = kept(run, "after"), eval_pairs_run(run).pairs, scored(run)
    assert again.reference is not None
    assert after.reference is not None
    np.testing.assert_allclose(again.policy, after.policy, atol=2e-5)
    np.testing.assert_allclose(again.reference, after.reference, atol=2e-5)
    np.testing.assert_array_equal(again.policy, policy)
    np.testing.assert_array_equal(again.reference, frozen)
    assert np.abs(policy - frozen).max() > 1e-3, "training moved it"
    began, of_itself = scored(run, start=True)
    np.testing.assert_array_equal(began, of_itself)
    np.testing.assert_array_equal(began, frozen)
    np.testing.assert_allclose(began, kept(run, "before").policy, atol=2e-5)


def test_a_run_of_rounds_is_told_from_one_training(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    (run / "recipe.yaml").write_text("model: {name: some}\nrounds: {count: 2}\n")
    with pytest.raises(RunError, match=r"mine is a run of `prefopt rounds`.*none has trained yet\."):
        run_recipe(run)
    with pytest.raises(RunError, match=r"go on with it by prefopt rounds .*mine/recipe\.yaml\."):
        weights_of_run(run)
    for at in range(2):
        (run / f"round-00{at}" / "train" / "adapter").mkdir(parents=True)
    (run / "round-002" / "train").mkdir(parents=True)  # not trained yet
    with pytest.raises(RunError, match=r"name the training of one, such as .*mine/round-001/train\."):
        run_recipe(run)


def test_a_training_without_weights_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: {name: some}\ntrain: {max_steps: 2}\n")
    with pytest.raises(RunError, match=r"finish it by prefopt train .*recipe\.yaml --resume\."):
        weights_of_run(tmp_path)
    (tmp_path / "reward_model").mkdir()
    with pytest.raises(RunError, match="trained a reward model, which gives scores and writes nothing"):
        weights_of_run(tmp_path)
