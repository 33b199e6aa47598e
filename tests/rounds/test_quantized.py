"""Rounds on a base in 4 bits: gradients right after sampling are those of a model that never sampled."""

from pathlib import Path

import pytest
import torch

from prefopt.models import load_policy
from prefopt.rounds.engines import open_engine
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.recipe import RoundsRecipe, load_rounds
from prefopt.rounds.status import rounds_status
from prefopt.sampling import Prompt
from tests.models.stepping import distance, shake, step
from tests.rounds.toy import write_task


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> RoundsRecipe:
    return load_rounds(write_task(tmp_path, tiny_model), ["model.quantization=nf4", "rounds.count=1"])


def test_gradients_right_after_sampling_are_those_of_a_model_that_never_sampled(recipe: RoundsRecipe) -> None:
    pytest.importorskip("bitsandbytes")
    fresh, tokenizer = load_policy(recipe.model, seed=recipe.train.arguments().seed)
    expected = step(shake(fresh), tokenizer)[1]
    engine = open_engine(recipe, recipe.sample, None)
    engine.sample([Prompt.of("say 1"), Prompt.of("say 2")], n=3, seed=0)
    sampled = engine.policy.model  # type: ignore[attr-defined]  # of the hf engine
    assert distance(step(shake(sampled), tokenizer)[1], expected) == 0
    assert torch.isfinite(expected).all()


def test_a_round_on_a_base_in_4_bits_is_whole_and_begins_at_no_divergence(recipe: RoundsRecipe) -> None:
    pytest.importorskip("bitsandbytes")
    run_rounds(recipe)
    status = rounds_status(recipe.run)
    start, first = status.rounds
    assert start.kl is not None
    assert first.kl is not None
    assert start.kl["value"] == 0
    assert first.kl["value"] != 0
    assert first.accuracy is not None
