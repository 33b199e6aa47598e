"""The curves that are drawn are the losses, and the catalogue says what the classes declare."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import available, build
from prefopt.losses.catalogue import catalogue
from prefopt.losses.gallery import WIDEST, choose, curve, draw


def test_a_curve_is_the_loss_and_its_slopes_at_every_margin() -> None:
    found = curve(build("dpo", beta=0.1), points=121)
    assert (found.margin[0], found.margin[-1]) == (-WIDEST, WIDEST)
    at = int((found.margin == 10).nonzero())
    assert found.loss[at].item() == pytest.approx(math.log1p(math.exp(-1)))
    # at a margin of 1 the pulls are beta times sigma(-1)
    assert found.raises[at].item() == pytest.approx(0.1 / (1 + math.e))
    assert found.lowers[at].item() == pytest.approx(0.1 / (1 + math.e))


@pytest.mark.parametrize("loss", choose([]), ids=str)
def test_the_slopes_of_a_curve_are_those_of_its_values(loss) -> None:
    found = curve(loss, points=24001)
    # A margin is shared evenly, so the value falls by half of either pull.
    slope = found.loss.diff() / found.margin.diff()
    pull = (found.raises + found.lowers) / 2
    middle = -(pull[1:] + pull[:-1]) / 2
    kink = (found.loss.diff().diff().abs() > 1e-4).nonzero()  # the hinge's
    assert kink.numel() <= 1
    assert ((slope - middle).abs() > 1e-4 * middle.abs().max()).sum() <= 1


def test_all_losses_that_are_functions_of_a_pair_are_drawn_unless_some_are_named() -> None:
    assert [loss.name for loss in choose(["simpo", "dpo"])] == ["simpo", "dpo"]
    drawn = {loss.name for loss in choose([])}
    assert available().keys() - drawn == {
        "aot",
        "aot_unpaired",
        "bco",
        "bco_unpaired",
        "beta_dpo",
        "ld_dpo",
        "tdpo",
        "wpo",
    }


def test_losses_of_labels_lists_and_good_answers_are_drawn_for_the_same_pair() -> None:
    dpo, ranked = curve(build("dpo"), points=121), curve(build("plackett_luce"), points=121)
    torch.testing.assert_close(ranked.loss, dpo.loss)
    torch.testing.assert_close(ranked.raises, dpo.raises)
    kto = curve(build("kto"), points=121)
    at = int((kto.margin == 40).nonzero())
    # log-ratios of 20 and -20, no shift: a good and a bad answer of 1 - sigma(2) each
    assert kto.loss[at].item() == pytest.approx(2 / (1 + math.exp(2)))
    imitation = curve(build("sft"), points=121)
    assert imitation.loss[at].item() == pytest.approx(30.0)
    assert imitation.raises.unique().tolist() == [1.0]
    assert imitation.lowers.unique().tolist() == [0.0]


@pytest.mark.parametrize("name", ["aot", "bco", "wpo", "tdpo"])
def test_what_is_no_function_of_one_pair_is_not_drawn(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"The loss {name} can't be drawn .* Choose of alphapo, "):
        choose([name])


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_figure_is_written_as_its_name_says(tmp_path: Path, suffix: str) -> None:
    draw(choose(["hinge"]), tmp_path / f"one.{suffix}")
    assert (tmp_path / f"one.{suffix}").stat().st_size > 2000


def test_the_catalogue_is_what_the_classes_declare() -> None:
    entries = {entry.name: entry for entry in catalogue()}
    assert list(entries) == list(available())
    aot, orpo = entries["aot_unpaired"], entries["orpo"]
    assert (aot.data, aot.needs_reference, aot.statistics) == ("labels or pairs", True, "step")
    assert (orpo.data, orpo.needs_reference, orpo.statistics) == ("pairs", False, "none")
    assert orpo.hyper == {"beta": 0.1}
    assert entries["odpo"].data == "pairs with scores, chosen's the higher"
    assert entries["lipo"].data == "scored lists, or pairs with scores"
    assert entries["tdpo"].extras == ("the reference's distributions",)
    assert orpo.paper == "arXiv:2403.07691, Eqs. 6 and 7"
    assert orpo.meaning.startswith("Odds Ratio Preference Optimization: ")
    assert torch.tensor([len(entry.meaning) for entry in entries.values()]).max() < 118
