"""What holds for every loss: its paper's formula, finite numbers, precision, order, and what it asks for."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from prefopt.errors import ModelError
from prefopt.losses import Loss, available, build
from tests.losses.formulas import FORMULAS, VARIANTS
from tests.losses.toys import cast, gradient, moved, random_sequences, sequences, with_extras

LOSSES = [build(name, **settings) for name in available() for settings in ({}, *VARIANTS.get(name, []))]


def spelled(loss: Loss) -> str:
    return f"{loss.name}({loss.extra_repr()})"


every_loss = pytest.mark.parametrize("loss", LOSSES, ids=spelled)


def test_every_loss_has_a_formula_to_be_compared_with() -> None:
    assert FORMULAS.keys() == available().keys()


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_the_papers_formula_in_float64(loss: Loss, seed: int) -> None:
    seqs = random_sequences(seed)
    expected = FORMULAS[loss.name](loss, seqs)
    (slope,) = torch.autograd.grad(expected, seqs.policy, retain_graph=True)
    torch.testing.assert_close(loss(seqs).loss.sum(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(loss, seqs), slope, rtol=1e-10, atol=1e-12)
    assert slope.abs().max() > 1e-6


DETACHED = ("kto", "bco", "bco_unpaired", "beta_dpo", "wpo", "tdpo", "lipo")
"""Something in them moves with the log-probs but is a constant to the gradient: see test_by_hand."""


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.name not in DETACHED], ids=spelled)
def test_the_gradient_is_the_difference_quotient(loss: Loss) -> None:
    seqs = random_sequences(3)

    def value(policy: torch.Tensor) -> float:
        return float(loss(moved(seqs, policy)).loss.sum())

    moves = torch.eye(16, dtype=torch.float64) * 1e-5
    found = [(value(seqs.policy.detach() + move) - value(seqs.policy.detach() - move)) / 2e-5 for move in moves]
    torch.testing.assert_close(gradient(loss, seqs), torch.tensor(found, dtype=torch.float64), rtol=1e-6, atol=1e-7)


@every_loss
@pytest.mark.parametrize("beta", [None, 5.0])
def test_value_and_gradient_stay_finite_at_extreme_log_ratios(loss: Loss, beta: float | None) -> None:
    if beta is not None:
        if "beta" not in loss.hyper():
            pytest.skip("it has no beta")
        loss = build({"name": loss.name, **loss.hyper(), "beta": beta})
    extremes = (-1e4, -60.0, 0.0, 60.0, 1e4)
    for chosen, rejected in itertools.product(extremes, extremes):
        # Log-probs are never above 0: where the ratio is large, it is the reference that finds the text unlikely.
        policy = [min(ratio, 0.0) for ratio in (chosen, rejected, 1e4)]
        reference = [min(-ratio, 0.0) for ratio in (chosen, rejected, 1e4)]
        seqs = sequences(
            policy, reference, pair=[(0, 1)], labels=[(0, True), (1, False)], mismatched=[2],
            lists=[[(0, 2.0), (1, 0.5), (2, 0.5)], [(1, 1.0), (0, 0.0)]], length=[3, 7, 1],
        )  # fmt: skip
        out = loss(seqs)
        assert out.loss.isfinite().all(), (chosen, rejected)
        assert out.reward.isfinite().all(), (chosen, rejected)
        assert gradient(loss, seqs).isfinite().all(), (chosen, rejected)


@every_loss
@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_losses_compute_in_float32_or_better(loss: Loss, given: torch.dtype, computed: torch.dtype) -> None:
    seqs = random_sequences(0, given)
    out = loss(seqs)
    assert {out.loss.dtype, out.weight.dtype, out.reward.dtype} == {computed}
    assert not out.reward.requires_grad
    assert gradient(loss, seqs).dtype == given
    # Nothing is rounded on the way: the same numbers given in float32 come to the same loss.
    assert torch.equal(loss(cast(seqs, computed)).loss, out.loss.detach())


@every_loss
def test_float32_is_close_to_float64(loss: Loss) -> None:
    single = random_sequences(1, torch.float32)
    torch.testing.assert_close(loss(single).loss.double(), loss(cast(single, torch.float64)).loss, rtol=1e-4, atol=1e-5)


@every_loss
def test_losses_and_gradients_do_not_depend_on_the_order_of_rows_or_examples(loss: Loss) -> None:
    seqs = random_sequences(5)
    draw = torch.Generator().manual_seed(1)
    order, pairs, examples, lists = (torch.randperm(count, generator=draw) for count in (16, 7, 9, 4))
    entries = torch.cat([(seqs.list_index == number).nonzero().flatten() for number in lists])
    where = order.argsort()  # where[i]: the new place of row i
    assert seqs.reference is not None
    shuffled = with_extras(
        replace(
            seqs,
            policy=seqs.policy.detach()[order].requires_grad_(),
            reference=seqs.reference[order],
            length=seqs.length[order],
            pair=where[seqs.pair[pairs]],
            labelled=where[seqs.labelled[examples]],
            label=seqs.label[examples],
            mismatched=where[seqs.mismatched.flip(0)],
            pair_score=None if seqs.pair_score is None else seqs.pair_score[pairs],
            listed=where[seqs.listed[entries]],
            list_index=lists.argsort()[seqs.list_index[entries]],
            list_score=seqs.list_score[entries],
        )
    )
    found, expected = loss(shuffled).loss, loss(seqs).loss
    if loss.form == "demonstration":  # its examples are some of both kinds
        found, expected = found.sort().values, expected.sort().values
    else:
        expected = expected[{"paired": pairs, "unpaired": examples, "listwise": lists}[loss.form]]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient(loss, seqs)[order], gradient(loss, shuffled), rtol=1e-12, atol=1e-14)


@every_loss
def test_only_a_loss_that_needs_a_reference_misses_it_and_says_what_to_set(loss: Loss) -> None:
    seqs = random_sequences(0)
    without = replace(seqs, reference=None)
    if loss.needs_reference:
        named = getattr(loss, "of", loss).name
        with pytest.raises(ModelError, match=f"The loss {named} .* set `reference: auto`"):
            loss(without)
    else:
        assert torch.equal(loss(without).loss, loss(seqs).loss)
        assert torch.equal(loss(without).reward, loss(seqs).reward)


@every_loss
def test_one_example_is_one_in_the_divisor_and_every_completion_has_a_reward(loss: Loss) -> None:
    seqs = random_sequences(0)
    out = loss(seqs)
    if loss.form == "demonstration":  # a token is one
        imitated = [*seqs.pair[:, 0].tolist(), *seqs.labelled[seqs.label].tolist()]
        assert out.weight.tolist() == seqs.length[imitated].tolist()
    elif loss.name == "beta_dpo":  # a share of the pairs, by default int(0.8 * 7)
        assert out.weight.sum() == max(1, int(7 * float(loss.hyper()["keep"])))
    else:
        expected = {"paired": [1.0] * 7, "unpaired": [1.0] * 9, "listwise": [1.0] * 4}[loss.form]
        if loss.name in ("plackett_luce", "lipo"):
            expected[2] = 0.0  # its scores are equal
        assert out.weight.tolist() == expected
    assert out.reward.shape == seqs.policy.shape
    # The reward rises with the policy's log-prob: more likely is better rewarded.
    assert (loss(replace(seqs, policy=seqs.policy.detach() + 0.05)).reward > out.reward).all()


def reward_by_name(loss: Loss, policy: torch.Tensor, log_ratio: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """What the loss compares, times beta: the log-ratio, unless its docstring says otherwise."""
    compared = {
        "dpo_norm": log_ratio / length,
        "simpo": policy / length,
        "orpo": policy / length,
        "cpo": policy,
        "sft": policy,
        "alphapo": (1 - (-loss.hyper().get("alpha", 1) * policy / length).exp()) / loss.hyper().get("alpha", 1),
    }.get(loss.name, log_ratio)
    if loss.name == "dpo":
        alpha = loss.hyper()["alpha_coef"]
        compared = {
            "reverse_kl": log_ratio,
            "forward_kl": 1 - (-log_ratio).exp(),
            "js": (2 / (1 + (-log_ratio).exp())).log(),
            "alpha": (1 - (-alpha * log_ratio).exp()) / alpha,
        }[str(loss.hyper()["divergence"])]
    return loss.beta * compared


@every_loss
def test_the_reward_is_beta_times_what_the_loss_compares(loss: Loss) -> None:
    seqs = random_sequences(4)
    policy = seqs.policy.detach()
    assert seqs.reference is not None
    expected = reward_by_name(getattr(loss, "of", loss), policy, policy - seqs.reference, seqs.length)
    torch.testing.assert_close(loss(seqs).reward, expected, rtol=1e-12, atol=1e-13)


@every_loss
def test_an_example_depends_on_others_of_its_step_only_if_the_loss_says_so(loss: Loss) -> None:
    seqs = random_sequences(2)
    whole = loss(seqs).loss
    assert seqs.pair_score is not None
    labels = zip(seqs.labelled.split(1), seqs.label.split(1), strict=True)
    parts = {
        "paired": [
            replace(seqs, pair=part, pair_score=score, labelled=seqs.labelled[:0], label=seqs.label[:0])
            for part, score in zip(seqs.pair.split(1), seqs.pair_score.split(1), strict=True)
        ],
        "unpaired": [replace(seqs, pair=seqs.pair[:0], labelled=one, label=label) for one, label in labels],
        "listwise": [
            replace(
                seqs,
                listed=seqs.listed[own],
                list_index=torch.zeros(int(own.sum())).long(),
                list_score=seqs.list_score[own],
            )
            for own in (seqs.list_index == number for number in range(4))
        ],
    }
    alone_of = ("paired", "unpaired") if loss.form == "demonstration" else (loss.form,)
    alone = torch.cat([loss(part).loss for form in alone_of for part in parts[form]])
    assert torch.allclose(whole, alone, rtol=1e-12) == (loss.statistics != "step")


@pytest.mark.parametrize(
    "loss", [loss for loss in LOSSES if loss.form == "paired" and loss.statistics == "none"], ids=spelled
)
def test_a_completion_in_two_pairs_gets_both_gradients(loss: Loss) -> None:
    both = sequences([-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0], pair=[(0, 1), (0, 2)])
    assert both.pair_score is not None
    first, second = (replace(both, pair=both.pair[i : i + 1], pair_score=both.pair_score[i : i + 1]) for i in (0, 1))
    apart = gradient(loss, first).clone() + gradient(loss, second)
    torch.testing.assert_close(gradient(loss, both), apart)
