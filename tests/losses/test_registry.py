"""Building a loss from a name or a recipe's section, and refusing what can't work."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import ValidationError

import prefopt
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
        assert loss.form in ("paired", "unpaired", "listwise", "demonstration")
        assert kind.paper.startswith("arXiv:")
        assert kind.paper[6:16] in (kind.__doc__ or "")
        assert 40 < len(kind.meaning()) < 118
        assert not kind.meaning().endswith(".")
        assert ("Raises RecipeError unless beta" in (kind.__doc__ or "")) == bool("beta" in loss.hyper())


def test_losses_are_listed_in_order_and_every_loss_of_the_package_is_there() -> None:
    kinds = available()
    assert list(kinds) == sorted(kinds)
    assert {"dpo", "ipo", "kto", "simpo", "aot", "aot_unpaired"} <= kinds.keys()
    assert len(set(kinds.values())) == len(kinds)


def test_no_name_of_a_loss_stands_in_code_outside_the_package() -> None:
    """The demo's recipe apart, code asks a loss what it needs and never what it is called."""
    root, names = Path(prefopt.__file__).parent, available().keys()
    found = [
        f"{file}:{node.lineno}: {node.value!r}"
        for file in root.rglob("*.py")
        if file.parent.name not in ("losses", "demo")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert found == []


@pytest.mark.parametrize(
    ("spec", "hyper", "words"),
    [
        ("dop", {}, r"There is no loss named 'dop': choose alphapo, .*, dpo, .*, wpo; did you mean 'dpo'\?"),
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
        (
            "dpo",
            {"divergence": "forward-kl"},
            r"divergence = 'forward-kl' .* one of reverse_kl, .*; did you mean 'forw",
        ),
        (
            "dpo",
            {"divergence": 1},
            r"divergence = 1 is not allowed for the loss dpo: it must be one of reverse_kl, forw",
        ),
        ("dpo", {"alpha_coef": 0}, r"alpha_coef = 0 .* greater than 0 and less than 1"),
        ("dpo", {"alpha_coef": 1}, r"alpha_coef = 1 .* greater than 0 and less than 1"),
        ("robust_dpo", {"label_smoothing": 0.5}, r"label_smoothing = 0\.5 .* at least 0 and less than 0\.5"),
        ("exo", {"label_smoothing": 0}, r"label_smoothing = 0 .* greater than 0 and less than 0\.5"),
        ("exo", {"label_smoothing": 0.5}, r"label_smoothing = 0\.5 .* greater than 0 and less than 0\.5"),
        ("discopop", {"tau": 0}, r"tau = 0 .* greater than 0 and at most 1"),
        ("discopop", {"tau": 1.01}, r"tau = 1\.01 .* greater than 0 and at most 1"),
        ("aot", {"label_smoothing": 0.5}, r"label_smoothing = 0\.5 .* less than 0\.5"),
        ("aot_unpaired", {"label_smoothing": -1}, r"label_smoothing = -1 .* at least 0"),
        ("simpo", {"gamma": -0.1}, r"gamma = -0\.1 .* at least 0"),
        ("cpo", {"nll_weight": -1}, r"nll_weight = -1 .* at least 0"),
        ("odpo", {"alpha": -1}, r"alpha = -1 .* loss odpo: .* at least 0"),
        ("odpo", {"offset": "root"}, r"offset = 'root' .* one of log, linear"),
        ("reward_distance_dpo", {"eta": 0}, r"eta = 0 .* greater than 0"),
        ("reward_distance_dpo", {"distance": "sq"}, r"distance = 'sq' .* one of kl, reverse_kl, squared"),
        ("cal_dpo", {"weight": -1}, r"weight = -1 .* at least 0"),
        ("beta_dpo", {"keep": 0}, r"keep = 0 .* greater than 0 and at most 1"),
        ("beta_dpo", {"momentum": 1}, r"momentum = 1 .* at least 0 and less than 1"),
        ("beta_dpo", {"alpha": -0.1}, r"alpha = -0\.1 .* at least 0"),
        ("ld_dpo", {"alpha": 1.5}, r"alpha = 1\.5 .* at least 0 and at most 1"),
        ("tdpo", {"alpha": -1}, r"alpha = -1 .* at least 0"),
        ("tdpo", {"detach_chosen": 1}, r"detach_chosen = 1 .* true or false"),
        ("infonca", {"temperature": 0}, r"temperature = 0 .* greater than 0"),
        ("nca_listwise", {"temperature": -1}, r"temperature = -1 .* greater than 0"),
        ("lipo", {"lowest": 1, "highest": 1}, r"highest = 1 .* greater than lowest \(1\)"),
        ("lipo", {"lowest": None}, r"lowest = None .* it must be a finite number\."),
        ("bco", {"running": 1}, r"running = 1 .* true or false"),
        ("wpo", {"of": 3}, r"A loss is a name or a mapping with a name, not 3"),
        ({"beta": 0.1}, {}, r"needs the key `name` \(alphapo, .*\); found only beta"),
        ({"name": "dpo", "beta": 0.1}, {"beta": 0.2}, r"got beta twice"),
        (3, {}, r"not 3"),
    ],
)
def test_what_cannot_work_is_refused_with_what_is_allowed(spec: object, hyper: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build(spec, **hyper)


@pytest.mark.parametrize("name", [name for name, kind in available().items() if "beta" in kind.hyper_names()])
@pytest.mark.parametrize("beta", [0, -0.1, float("nan"), float("inf"), True, "much", None])
def test_every_loss_refuses_a_beta_that_is_no_positive_number(name: str, beta: object) -> None:
    with pytest.raises(RecipeError, match=rf"beta = .* loss {name}: it must be a number greater than 0\."):
        build(name, beta=beta)


@pytest.mark.parametrize("name", available())
def test_every_loss_is_rebuilt_from_its_own_settings(name: str) -> None:
    hyper = build(name).hyper()
    assert build({"name": name, **hyper}).hyper() == hyper


def test_the_recipe_takes_a_name_or_a_mapping_and_fills_in_the_defaults() -> None:
    complete = {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0, "divergence": "reverse_kl", "alpha_coef": 0.5}
    assert Recipe.model_validate({}).model_dump() == {"loss": complete}
    assert Recipe.model_validate({"loss": "dpo"}).model_dump() == {"loss": complete}
    assert Recipe.model_validate({"loss": {"beta": 0.2}}).model_dump() == {"loss": {**complete, "beta": 0.2}}
    assert isinstance(Recipe.model_validate({"loss": {"name": "kto"}}).loss.build(), KTO)


def test_a_saved_recipe_loads_to_the_same_loss() -> None:
    first = Recipe.model_validate({"loss": {"name": "dpo", "beta": "1e-2"}})
    again = Recipe.model_validate(first.model_dump())
    assert again == first
    assert again.loss.build().hyper() == {**build("dpo").hyper(), "beta": 0.01}


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
