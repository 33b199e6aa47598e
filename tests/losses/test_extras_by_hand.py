"""Losses that look at more than sums of log-probs, against arithmetic by hand.

The toys share a completion's log-prob over its tokens as 1 : 2 : 3 ..., give it a divergence of 0.05 * log_ratio^2 +
0.2 and a log sum p^2 of -0.3 a token. Pairs have log-ratios 2 and -1 over 4 and 2 tokens.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prefopt.errors import ModelError, RecipeError
from prefopt.losses import Loss, build
from prefopt.records import SequenceLogprobs
from tests.losses.toys import gradient, random_sequences, sequences


def pair() -> SequenceLogprobs:
    return sequences([-10.0, -11.0], [-12.0, -10.0], length=[4, 2], pair=[(0, 1)])


def check(loss: Loss, seqs: SequenceLogprobs, value: float, slope: list[float]) -> None:
    torch.testing.assert_close(loss(seqs).loss, torch.tensor([value]), rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(gradient(loss, seqs), torch.tensor(slope), rtol=3e-6, atol=2e-7)


def test_ld_dpo_by_hand() -> None:
    # Chosen's log-ratio 2 is 0.2, 0.4, 0.6, 0.8 by token; the rejected one has 2. s(chosen) = 0.6 + 0.5 * 1.4 = 1.3,
    # margin 0.5 * (1.3 + 1) = 1.15; log(1 + exp(-1.15)) = 0.27508058, sigma(-1.15) = 0.24048908
    # A nat more of chosen adds 3/10 to its first two tokens and 7/10 to the others: 0.3 + 0.5 * 0.7 = 0.65.
    check(build("ld_dpo", beta=0.5), pair(), 0.27508058, [-0.5 * 0.24048908 * 0.65, 0.5 * 0.24048908])
    # alpha 0: margin 0.5 * 1.6 = 0.8; log(1 + exp(-0.8)) = 0.37110067, sigma(-0.8) = 0.31002552
    check(build("ld_dpo", beta=0.5, alpha=0), pair(), 0.37110067, [-0.5 * 0.31002552 * 0.3, 0.5 * 0.31002552])


def test_ld_dpo_takes_the_public_length_of_each_pair() -> None:
    # One chosen completion of 3 tokens (0.5, 1, 1.5 of its 3 nats) against rejected ones of 2 and of 4 tokens.
    seqs = sequences([-3.0, -5.0, -10.0], [-6.0, -5.0, -10.0], length=[3, 2, 4], pair=[(0, 1), (0, 2)])
    found = build("ld_dpo", beta=1.0, alpha=0.0)(seqs).loss
    torch.testing.assert_close(found, torch.nn.functional.softplus(-torch.tensor([1.5, 3.0])))


def test_tdpo_by_hand() -> None:
    # Divergences 0.4 and 0.25: margin 0.5 * (3 - 2 * (0.25 - 0.4)) = 1.65; log(1 + exp(-1.65)) = 0.17567444,
    # sigma(-1.65) = 0.16110895; a nat less of rejected adds 0.1 to its divergence, one more of chosen 0.2.
    s = 0.16110895
    check(build("tdpo", beta=0.5, alpha=2), pair(), 0.17567444, [-0.5 * s, 0.5 * s * (1 - 0.2)])
    both = build("tdpo", beta=0.5, alpha=2, detach_chosen=False)
    check(both, pair(), 0.17567444, [-0.5 * s * (1 + 0.4), 0.5 * s * (1 - 0.2)])


def test_wpo_by_hand() -> None:
    # (-1.6 + 1.2) / 4 = -0.1 and (-1 + 0.6) / 2 = -0.2: the weight is exp(-0.3) = 0.74081822 of DPO's 0.20141328
    seqs = sequences([-1.6, -1.0], [-3.6, 0.0], length=[4, 2], pair=[(0, 1)])
    loss = build("wpo(dpo(beta=0.5))")
    check(loss, seqs, 0.74081822 * 0.20141328, [-0.74081822 * 0.09121276, 0.74081822 * 0.09121276])
    assert loss(seqs).weight.tolist() == [1.0]
    assert loss(seqs).metrics["wpo_weight"].item() == pytest.approx(0.74081822)
    # (-0.4 + 1.2) / 4 = 0.2 and (-0.2 + 0.6) / 2 = 0.2: likelier than a sample of the policy's, and no more than 1
    sure = sequences([-0.4, -0.2], [-2.4, 0.8], length=[4, 2], pair=[(0, 1)])
    check(loss, sure, 0.20141328, [-0.09121276, 0.09121276])


def test_wpo_weighs_labels_and_demonstrations_one_by_one() -> None:
    seqs = sequences(
        [-1.6, -1.0, -2.0], [-3.6, 0.0, -1.0], length=[4, 2, 1], labels=[(0, True), (1, False)], mismatched=[2]
    )
    weight = torch.tensor([-0.1, -0.2]).exp()
    torch.testing.assert_close(build("wpo(kto)")(seqs).loss, weight * build("kto")(seqs).loss)
    found, plain = build("wpo(sft)")(seqs), build("sft")(seqs)
    torch.testing.assert_close(found.loss, weight[:1] * plain.loss)
    assert torch.equal(found.weight, plain.weight)


def test_wpo_needs_what_the_loss_in_it_needs() -> None:
    loss = build("wpo(simpo)")
    assert (loss.form, loss.needs_reference, loss.statistics, loss.beta) == ("paired", False, "none", 2.0)
    loss = build("wpo(kto)")
    assert (loss.form, loss.needs_mismatched, loss.statistics) == ("unpaired", True, "mismatched")
    assert build("wpo(tdpo)").extras == {"log_sum_p2", "divergence"}
    assert build("wpo(odpo)").scores == "ordered"
    assert build("wpo(odpo(offset=linear)) + wpo(sft)").scores == "given"


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("wpo(plackett_luce)", "of = plackett_luce is not allowed for the loss wpo: it takes lists"),
        ("wpo(aot)", "of = aot is not allowed for the loss wpo: it looks at its whole step at once"),
        ("wpo(wpo)", "of = wpo is not allowed for the loss wpo: it weighs its examples already"),
    ],
)
def test_wpo_refuses_what_has_no_weights_of_its_own(formula: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build(formula)


def test_wpo_refuses_a_mixture() -> None:
    with pytest.raises(RecipeError, match="it is a sum of losses: weigh its parts"):
        build("wpo", of="dpo + sft")


@pytest.mark.parametrize(("name", "extra"), [("ld_dpo", "token"), ("tdpo", "divergence"), ("wpo", "log_sum_p2")])
def test_an_extra_that_was_not_computed_is_named(name: str, extra: str) -> None:
    seqs = replace(random_sequences(0), **{extra: None})
    with pytest.raises(ModelError, match=rf"The loss {name} needs `SequenceLogprobs.{extra}`"):
        build(name)(seqs)
