"""Building a loss from a name or a recipe's section, and refusing what can't work."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prefopt.config import Section
from prefopt.errors import RecipeError
from prefopt.losses import DPO, KTO, Loss, LossConfig, available, build


class Recipe(Section):
    loss: LossConfig = LossConfig()


def test_a_loss_is_built_from_a_name_or_a_mapping() -> None:
    assert isinstance(build("dpo"), DPO)
    assert build("dpo", beta=0.3).beta == 0.3
    assert build({"name": "kto", "beta": 0.2}, desirable_weight=1.5).hyper() == {
        "beta": 0.2,
        "desirable_weight": 1.5,
        "undesirable_weight": 1.0,
    }


def test_every_available_loss_builds_and_knows_its_own_name() -> None:
    for name, kind in available().items():
        loss = build(name)
        assert isinstance(loss, kind)
        assert isinstance(loss, Loss)
        assert loss.name == name
        assert loss.form in ("paired", "unpaired")
        assert kind.__doc__
        assert "arXiv" in kind.__doc__


@pytest.mark.parametrize(
    ("spec", "hyper", "words"),
    [
        ("dop", {}, r"There is no loss named 'dop': choose dpo, ipo, kto; did you mean 'dpo'\?"),
        ("dpo", {"betta": 1}, r"The loss dpo has no hyper-parameter 'betta': .*; did you mean 'beta'\?"),
        ("dpo", {"beta": 0}, r"beta = 0 is not allowed for the loss dpo: it must be a number greater than 0\."),
        ("ipo", {"beta": -0.1}, r"beta = -0\.1 .* loss ipo: .* greater than 0"),
        ("kto", {"beta": float("nan")}, r"beta = nan .* greater than 0"),
        ("kto", {"beta": float("inf")}, r"beta = inf .* greater than 0"),
        ("dpo", {"beta": True}, r"beta = True .* greater than 0"),
        ("dpo", {"beta": "much"}, r"beta = 'much' .* greater than 0"),
        ("dpo", {"beta": None}, r"beta = None .* greater than 0"),
        ("dpo", {"label_smoothing": 0.5}, r"label_smoothing = 0\.5 .* at least 0 and less than 0\.5"),
        ("dpo", {"label_smoothing": -0.1}, r"label_smoothing = -0\.1 .* at least 0"),
        ("ipo", {"average": 1}, r"average = 1 .* true or false"),
        ("kto", {"desirable_weight": 0}, r"desirable_weight = 0 .* greater than 0"),
        ("kto", {"undesirable_weight": -1}, r"undesirable_weight = -1 .* greater than 0"),
        ({"beta": 0.1}, {}, r"needs the key `name` \(dpo, ipo, kto\); found only beta"),
        ({"name": "dpo", "beta": 0.1}, {"beta": 0.2}, r"got beta twice"),
        (3, {}, r"not 3"),
    ],
)
def test_what_cannot_work_is_refused_with_what_is_allowed(spec: object, hyper: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build(spec, **hyper)


def test_the_recipe_takes_a_name_or_a_mapping_and_fills_in_the_defaults() -> None:
    complete = {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0}
    assert Recipe.model_validate({}).model_dump() == {"loss": complete}
    assert Recipe.model_validate({"loss": "dpo"}).model_dump() == {"loss": complete}
    assert Recipe.model_validate({"loss": {"beta": 0.2}}).model_dump() == {"loss": {**complete, "beta": 0.2}}
    assert isinstance(Recipe.model_validate({"loss": {"name": "kto"}}).loss.build(), KTO)


def test_a_saved_recipe_loads_to_the_same_loss() -> None:
    first = Recipe.model_validate({"loss": {"name": "dpo", "beta": "1e-2"}})
    again = Recipe.model_validate(first.model_dump())
    assert again == first
    assert again.loss.build().hyper() == {"beta": 0.01, "label_smoothing": 0.0}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"name": "dpo", "beta": 0}, r"beta = 0 is not allowed .* greater than 0"),
        ("dop", r"did you mean 'dpo'"),
        (None, r"A loss is a name or a mapping"),
    ],
)
def test_a_wrong_loss_fails_when_the_recipe_is_validated(section: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        Recipe.model_validate({"loss": section})
    assert caught.value.errors()[0]["loc"] == ("loss",)


def test_the_section_cannot_be_changed_after_validation() -> None:
    with pytest.raises(ValidationError):
        LossConfig().name = "kto"
