"""Every preset of rounds that ships loads as it is, and runs at a tiny scale."""

from pathlib import Path

import pytest

from prefopt.rounds.loop import run_rounds
from prefopt.rounds.recipe import load_rounds
from prefopt.rounds.status import rounds_status

RECIPES = Path(__file__).parents[2] / "recipes/rounds"
PRESETS = ("best-of-n-distill", "irpo", "iterative-dpo", "raft", "rest-em", "rso", "star")
DAILY = ("irpo", "rest-em", "rso")
"""One that makes pairs by what is right, one that starts anew, one that samples by rejection; the others are soak."""
RANDOM = "score={scorers: {right: {kind: regex, pattern: '[a-z]', column: null}, short: {kind: length, target: 2}}}"
"""What a model of random weights earns in part: bytes that are letters."""


def test_there_is_a_file_for_each_preset() -> None:
    assert tuple(sorted(path.stem for path in RECIPES.glob("*.yaml"))) == PRESETS


@pytest.mark.parametrize(
    "name", [name if name in DAILY else pytest.param(name, marks=pytest.mark.soak) for name in PRESETS]
)
def test_a_preset_runs(name: str, tiny_model: Path, tmp_path: Path) -> None:
    shipped = load_rounds(RECIPES / f"{name}.yaml")
    assert shipped.run.name == name
    recipe = load_rounds(
        RECIPES / f"{name}.yaml",
        [
            RANDOM,
            f"model.name={tiny_model}",
            f"train.output_dir={tmp_path / 'run'}",
            "train.max_steps=1",
            "sample={n: 8, max_new_tokens: 4}",
            "prompts.limit=4",
            "prompts.eval_limit=2",
            "rounds.count=1",
            "reference.cache=false",
            "eval={n: 1, resamples: 100}",
        ],
    )
    assert recipe.select == shipped.select
    run_rounds(recipe, until="train")  # evaluation is the same for all of them
    [first] = rounds_status(recipe.run).rounds
    assert first.done == ("sample", "score", "select", "train")
    assert first.examples
