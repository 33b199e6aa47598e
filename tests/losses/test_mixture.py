"""Mixtures: linear, every part divided by its own weight, needs put together, read from a formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import Loss, Mixture, Share, build
from prefopt.records import LossOutput
from tests.losses.toys import random_sequences, sequences


def mean(output: LossOutput) -> torch.Tensor:
    return output.loss.sum() / output.weight.sum()


def test_a_mean_over_pairs_and_a_mean_over_tokens_by_hand() -> None:
    # Two pairs: log-ratios 1 and -1, then 2 and 0; chosen completions of 2 and 8 tokens with -4 and -6 nats.
    seqs = sequences(
        [-4.0, -9.0, -6.0, -7.0], [-5.0, -8.0, -8.0, -7.0], length=[2, 5, 8, 3], pair=[(0, 1), (2, 3)]
    )  # fmt: skip
    hinge = (1 - 0.25 * 2) / 2 + (1 - 0.25 * 2) / 2
    nll = (4 + 6) / (2 + 8)
    output = build("0.8*hinge(beta=0.25) + 3*sft")(seqs)
    assert mean(output).item() == pytest.approx(0.8 * hinge + 3 * nll)
    assert [(part.name, part.factor) for part in output.parts] == [("hinge", 0.8), ("sft", 3.0)]
    assert output.reward.tolist() == pytest.approx([0.25, -0.25, 0.5, 0.0])


@pytest.mark.parametrize(
    "parts", [("dpo", "ipo"), ("dpo", "sft"), ("kto", "sft"), ("simpo", "orpo", "cpo"), ("aot", "dpo")]
)
def test_mixing_is_linear_in_value_and_gradient(parts: tuple[str, ...]) -> None:
    seqs = random_sequences(0)
    factors = [0.5, 2.0, 0.25][: len(parts)]
    terms = [factor * mean(build(part)(seqs)) for factor, part in zip(factors, parts, strict=True)]
    (expected,) = torch.autograd.grad(sum(terms, torch.zeros(())), seqs.policy)
    mixed = mean(build(" + ".join(f"{f}*{p}" for f, p in zip(factors, parts, strict=True)))(seqs))
    (found,) = torch.autograd.grad(mixed, seqs.policy)
    torch.testing.assert_close(mixed, sum(terms, torch.zeros((), dtype=torch.float64)))
    torch.testing.assert_close(found, expected)


def test_a_part_for_labels_sees_each_pair_as_a_good_and_a_bad_completion() -> None:
    pairs = random_sequences(1)
    labels = replace(pairs, labelled=torch.cat([pairs.pair[:, 0], pairs.pair[:, 1]]), label=torch.arange(14) < 7)
    both = build("dpo + kto")(pairs)
    torch.testing.assert_close(both.parts[1].loss, build("kto")(labels).loss)
    torch.testing.assert_close(both.parts[0].loss, build("dpo")(pairs).loss)
    assert set(both.metrics) == {"kl/kto"}


def test_a_part_without_examples_adds_nothing() -> None:
    seqs = sequences([-4.0, -9.0], [-5.0, -8.0], labels=[(0, False), (1, False)], mismatched=[1])
    torch.testing.assert_close(mean(build("kto + sft")(seqs)), mean(build("kto")(seqs)))


@pytest.mark.parametrize(
    ("formula", "form", "reference", "mismatched", "statistics"),
    [
        ("dpo + sft", "paired", True, False, "none"),
        ("simpo + sft", "paired", False, False, "none"),
        ("kto + sft", "unpaired", True, True, "step"),
        ("dpo + kto", "paired", True, True, "step"),
        ("2*kto", "unpaired", True, True, "mismatched"),
        ("2*sft", "demonstration", False, False, "none"),
        ("aot + dpo", "paired", True, False, "step"),
        ("sft + plackett_luce + dpo", "listwise", True, False, "none"),
        ("wpo(simpo) + sft", "paired", False, False, "none"),
    ],
)
def test_needs_are_those_of_all_parts(formula, form, reference, mismatched, statistics) -> None:
    loss = build(formula)
    assert (loss.form, loss.needs_reference) == (form, reference)
    assert (loss.needs_mismatched, loss.statistics) == (mismatched, statistics)


@pytest.mark.parametrize(
    ("formula", "spelled"),
    [
        ("0.8*ipo(beta=0.2)+0.2*sft", "0.8*ipo(beta=0.2, average=true) + 0.2*sft"),
        (" hinge ( beta = 1e-2 ) + sft()", "hinge(beta=0.01) + sft"),
        ("ipo(average=false) + ipo", "ipo(beta=0.1, average=false) + ipo(beta=0.1, average=true)"),
        ("2*wpo( hinge )", "2.0*wpo(of=hinge(beta=0.1))"),
        ("wpo(of=sft) + sft", "wpo(of=sft) + sft"),
        (".5*dpo(divergence=js)",
         "0.5*dpo(beta=0.1, label_smoothing=0.0, divergence=js, alpha_coef=0.5)"),
    ],
)  # fmt: skip
def test_a_mixture_is_called_by_the_formula_that_makes_it(formula: str, spelled: str) -> None:
    loss = build(formula)
    assert isinstance(loss, Mixture)
    assert loss.name == spelled
    assert build(loss.name).name == spelled
    assert spelled in repr(loss)


def test_one_loss_with_settings_is_that_loss() -> None:
    loss = build("ipo(beta=0.3, average=false)")
    assert not isinstance(loss, Mixture)
    assert loss.hyper() == {"beta": 0.3, "average": False}
    assert build("ipo(average=false)", beta=0.2).hyper() == {"beta": 0.2, "average": False}


def test_a_loss_in_a_loss_is_written_in_every_way_that_a_loss_is() -> None:
    expected = {"of": "ipo(beta=0.3, average=true)"}
    for loss in (
        build("wpo(ipo(beta=0.3))"),
        build("wpo(of=ipo(beta=0.3))"),
        build("wpo", of="ipo(beta=0.3)"),
        build("wpo", of={"name": "ipo", "beta": 0.3}),
        build("wpo", of=build("ipo", beta=0.3)),
        build({"name": "wpo", "of": "ipo(beta=0.3)"}),
        build({"name": "wpo", **expected}),
    ):
        assert (loss.name, loss.hyper()) == ("wpo", expected)


def test_extras_and_scores_are_those_of_all_parts() -> None:
    loss = build("wpo + 0.5*ld_dpo + tdpo")
    assert loss.extras == {"log_sum_p2", "token", "divergence"}
    assert (build("dpo + odpo").scores, build("odpo(offset=linear) + dpo").scores) == ("ordered", "given")
    # Where lists go by scores, the best and the worst that other parts see must be chosen and rejected.
    assert (build("infonca + lipo").scores, build("infonca + sft").scores) == ("given", "ordered")
    assert build("plackett_luce + dpo").scores == "unused"
    # A list of equal scores is left out where no part can use it.
    prefer = [build(f).needs_preference for f in ("plackett_luce", "lipo + dpo", "plackett_luce + infonca", "infonca")]
    assert prefer == [True, True, False, False]
    assert (build("dpo + sft").scores, build("dpo + sft").extras) == ("unused", frozenset())


def test_a_part_for_pairs_sees_the_best_and_the_worst_of_each_list_that_prefers_one() -> None:
    seqs = random_sequences(3)
    lists = replace(seqs, pair=seqs.pair[:0], labelled=seqs.labelled[:0], label=seqs.label[:0])
    pairs = replace(lists, pair=torch.tensor([[0, 5], [4, 3], [10, 9]]))
    both = build("plackett_luce + dpo + kto + sft")(lists)
    torch.testing.assert_close(both.parts[0].loss, build("plackett_luce")(seqs).loss)
    torch.testing.assert_close(both.parts[1].loss, build("dpo")(pairs).loss)
    torch.testing.assert_close(both.parts[2].loss, build("dpo + kto")(pairs).parts[1].loss)
    torch.testing.assert_close(both.parts[3].loss, build("sft")(pairs).loss)


def test_the_same_loss_twice_has_two_names() -> None:
    output = build("dpo(beta=0.1) + sft + dpo(beta=0.5)")(random_sequences(0))
    assert [part.name for part in output.parts] == ["dpo_1", "sft", "dpo_3"]


def test_losses_can_be_mixed_in_python() -> None:
    seqs = random_sequences(2)
    mixed = Mixture([Share(0.8, build("dpo")), Share(0.2, build("sft"))])
    assert torch.equal(mixed(seqs).loss, build("0.8*dpo + 0.2*sft")(seqs).loss)
    assert isinstance(mixed, Loss)


@pytest.mark.parametrize(
    ("formula", "sentence", "caret"),
    [
        ("0.8*dpo + ", "expected the name of a loss, found the end", 10),
        ("0.8 dpo", "expected '*' between a number and its loss, found 'dpo'", 4),
        ("dpo sft", "expected '+' and another loss, or the end, found 'sft'", 4),
        ("dpo(beta 0.1)", "expected '=' and a value for beta, found '0.1'", 9),
        ("dpo(beta=)", "expected a number, true, false, null, a word or a loss, found ')'", 9),
        ("dpo(beta=0.1", "expected ',' or ')', found the end", 12),
        ("dpo(0.1)", "expected a hyper-parameter as key=value, or ')', found '0.1'", 4),
        ("dpo(beta=0.1 average=true)", "expected ',' or ')', found 'average'", 13),
        ("dpo(beta=0.1, beta=0.2)", "beta is given twice", 14),
        ("0*dpo", "can't be multiplied by 0: write a number above 0", 0),
        ("-1*dpo", "can't be multiplied by -1", 0),
        ("dpo + dpoo", "no loss named 'dpoo': choose", 6),
        ("dpo + ipo(betta=1)", "no hyper-parameter 'betta'", 10),
        ("dpo + 0.5*ipo(average=true, beta=-1)", "beta = -1 is not allowed for the loss ipo", 28),
        ("dpo(beta=0.1, betta=2)", "no hyper-parameter 'betta'", 14),
        ("sft(beta=1)", "no hyper-parameter 'beta': it takes none.", 4),
        ("dpo; import os", "expected '+' and another loss, or the end, found ';'", 3),
        ("__import__('os')", "expected a hyper-parameter as key=value, or ')', found \"'\"", 11),
        ("", "expected the name of a loss, found the end", 0),
        ("wpo(dpo, beta=1)", "no hyper-parameter 'beta'", 9),
        ("wpo(dpo(betta=1))", "no hyper-parameter 'betta'", 8),
        ("wpo(ipoo)", "no loss named 'ipoo'", 4),
        ("wpo(dpo, ipo)", "expected '=' and a value for ipo, found ')'", 12),
        ("wpo(of=dpo, of=ipo)", "of is given twice", 12),
        ("wpo(dpo, of=ipo)", "got of twice: give it once", 0),
        ("wpo(0.5*dpo)", "expected a hyper-parameter as key=value, or ')', found '0.5'", 4),
        ("wpo(dpo + sft)", "expected ',' or ')', found '+'", 8),
        ("wpo(plackett_luce)", "of = plackett_luce is not allowed for the loss wpo: it takes lists", 0),
        ("dpo(ipo)", "takes no other loss in its parentheses", 0),
        ("dpo(beta=ipo())", "beta = ipo is not allowed for the loss dpo: it is a loss", 4),
        ("dpo + lipo(lowest=2)", "highest = 1.0 is not allowed for the loss lipo", 6),
    ],
)
def test_a_mistake_is_shown_where_it_is(formula: str, sentence: str, caret: int) -> None:
    with pytest.raises(RecipeError) as caught:
        build(formula)
    first, shown, mark = str(caught.value).split("\n")
    assert sentence in first
    assert shown == f"    {formula}"
    assert mark == f"    {' ' * caret}^"


def test_settings_beside_a_mixture_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"beta stands beside the mixture 'dpo \+ sft': write it in the parentheses"):
        build("dpo + sft", beta=0.1)
