"""Every loss against arithmetic by hand, an independent float64 formula, and the facts its paper states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prefopt.errors import DataError, ModelError
from prefopt.losses import DPO, IPO, KTO, Loss
from prefopt.records import SequenceLogprobs

EMPTY = torch.zeros(0, dtype=torch.int64)


def sequences(
    policy: list[float],
    reference: list[float] | None,
    *,
    length: list[int] | None = None,
    pair: list[tuple[int, int]] = (),
    labels: list[tuple[int, bool]] = (),
    mismatched: list[int] = (),
    dtype: torch.dtype = torch.float32,
) -> SequenceLogprobs:
    return SequenceLogprobs(
        policy=torch.tensor(policy, dtype=dtype, requires_grad=True),
        reference=None if reference is None else torch.tensor(reference, dtype=dtype),
        length=torch.tensor(length or [1] * len(policy)),
        pair=torch.tensor(pair, dtype=torch.int64).reshape(-1, 2),
        labelled=torch.tensor([index for index, _ in labels], dtype=torch.int64),
        label=torch.tensor([label for _, label in labels], dtype=torch.bool),
        mismatched=torch.tensor(mismatched, dtype=torch.int64),
    )


def gradient(loss: Loss, seqs: SequenceLogprobs) -> torch.Tensor:
    seqs.policy.grad = None
    loss(seqs).loss.sum().backward()
    return seqs.policy.grad


def test_dpo_by_hand() -> None:
    # log-ratios: chosen -10 + 12 = 2, rejected -11 + 10 = -1; margin 0.5 * (2 + 1) = 1.5
    # loss = log(1 + exp(-1.5)) = log(1.22313016) = 0.20141328
    # gradient: -beta * sigma(-1.5) = -0.5 * 0.18242552 = -0.09121276 on chosen, the opposite on rejected
    seqs = sequences([-10.0, -11.0], [-12.0, -10.0], pair=[(0, 1)])
    out = DPO(beta=0.5)(seqs)
    torch.testing.assert_close(out.loss, torch.tensor([0.20141328]))
    torch.testing.assert_close(out.weight, torch.tensor([1.0]))
    torch.testing.assert_close(out.reward, torch.tensor([1.0, -0.5]))
    torch.testing.assert_close(gradient(DPO(beta=0.5), seqs), torch.tensor([-0.09121276, 0.09121276]))


def test_conservative_dpo_by_hand() -> None:
    # margin 1.5 as above; -log sigma(1.5) = 0.20141328, -log sigma(-1.5) = 1.70141328
    # loss = 0.9 * 0.20141328 + 0.1 * 1.70141328 = 0.35141328
    seqs = sequences([-10.0, -11.0], [-12.0, -10.0], pair=[(0, 1)])
    torch.testing.assert_close(DPO(beta=0.5, label_smoothing=0.1)(seqs).loss, torch.tensor([0.35141328]))


def test_conservative_dpo_is_least_where_sigma_of_the_margin_is_the_share_of_right_labels() -> None:
    # log(0.9 / 0.1) = 2.1972246
    seqs = sequences([math.log(9.0), 0.0], [0.0, 0.0], pair=[(0, 1)], dtype=torch.float64)
    assert gradient(DPO(beta=1.0, label_smoothing=0.1), seqs).abs().max() < 1e-15


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_is_log_2_where_policy_and_reference_agree(smoothing: float) -> None:
    seqs = sequences([-301.7, -88.2, -5.0], [-301.7, -88.2, -5.0], pair=[(0, 1), (2, 1)])
    out = DPO(beta=0.1, label_smoothing=smoothing)(seqs)
    torch.testing.assert_close(out.loss, torch.full((2,), math.log(2.0)))
    assert out.reward.tolist() == [0.0, 0.0, 0.0]


def test_ipo_by_hand_for_sums_and_averages() -> None:
    # log-ratios 2 and -1 over 4 and 2 tokens; target 1 / (2 * 0.25) = 2
    # sums: (3 - 2)^2 = 1; averages: h = 0.5 + 0.5 = 1, (1 - 2)^2 = 1; gradients 2 * (h - 2) * dh
    seqs = sequences([-10.0, -11.0], [-12.0, -10.0], length=[4, 2], pair=[(0, 1)])
    torch.testing.assert_close(IPO(beta=0.25, average=False)(seqs).loss, torch.tensor([1.0]))
    torch.testing.assert_close(IPO(beta=0.25)(seqs).loss, torch.tensor([1.0]))
    torch.testing.assert_close(gradient(IPO(beta=0.25, average=False), seqs), torch.tensor([2.0, -2.0]))
    torch.testing.assert_close(gradient(IPO(beta=0.25), seqs), torch.tensor([-0.5, 1.0]))
    torch.testing.assert_close(IPO(beta=0.25)(seqs).reward, torch.tensor([0.5, -0.25]))


def test_ipo_is_zero_and_flat_at_a_margin_of_half_the_inverse_beta() -> None:
    # 1 / (2 * 0.1) = 5 nats: as a sum, and as an average over 3 tokens (15 nats in all)
    for loss, margin in ((IPO(beta=0.1, average=False), 5.0), (IPO(beta=0.1), 15.0)):
        seqs = sequences([margin, 0.0], [0.0, 0.0], length=[3, 3], pair=[(0, 1)], dtype=torch.float64)
        assert loss(seqs).loss.item() < 1e-28
        assert gradient(loss, seqs).abs().max() < 1e-13


def test_ipo_averaged_does_not_change_when_a_pair_is_repeated_token_for_token() -> None:
    short = sequences([-10.0, -11.0], [-12.0, -10.0], length=[4, 2], pair=[(0, 1)])
    double = sequences([-20.0, -22.0], [-24.0, -20.0], length=[8, 4], pair=[(0, 1)])
    torch.testing.assert_close(IPO()(short).loss, IPO()(double).loss)
    assert IPO(average=False)(short).loss != IPO(average=False)(double).loss


def test_kto_by_hand() -> None:
    # log-ratios: desirable 3, undesirable 1, mismatched 0.5 and 1.5; shift = 1; beta 0.5
    # loss of the desirable one is 2 * (1 - sigma(0.5 * (3 - 1))) = 2 * (1 - sigma(1)) = 2 * 0.26894142 = 0.53788284
    # and for the undesirable one 1 - sigma(0.5 * (1 - 1)) = 0.5
    # gradients: -2 * 0.5 * sigma(1) * sigma(-1) = -0.19661193; +0.5 * 0.25 = 0.125; mismatched none
    seqs = sequences(
        [-7.0, -9.0, -3.5, -2.5], [-10.0, -10.0, -4.0, -4.0], labels=[(0, True), (1, False)], mismatched=[2, 3]
    )
    loss = KTO(beta=0.5, desirable_weight=2.0)
    out = loss(seqs)
    torch.testing.assert_close(out.loss, torch.tensor([0.53788284, 0.5]))
    torch.testing.assert_close(out.weight, torch.ones(2))
    torch.testing.assert_close(out.metrics["kl"], torch.tensor(1.0))
    torch.testing.assert_close(gradient(loss, seqs), torch.tensor([-0.19661193, 0.125, 0.0, 0.0]))


def test_ktos_shift_is_never_negative() -> None:
    # the mismatched log-ratio is -4, so the shift is 0, not -4
    seqs = sequences([-1.0, -9.0], [-1.0, -5.0], labels=[(0, True)], mismatched=[1])
    out = KTO(beta=1.0)(seqs)
    assert out.metrics["kl"] == 0
    torch.testing.assert_close(out.loss, torch.tensor([0.5]))


def test_kto_does_not_depend_on_the_order_of_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 12, generator=generator, dtype=torch.float64) * 5
    label = torch.rand(8, generator=generator) < 0.5
    order, examples = torch.randperm(12, generator=generator), torch.randperm(8, generator=generator)
    straight = SequenceLogprobs(
        policy.clone().requires_grad_(), reference, torch.ones(12), EMPTY, torch.arange(8), label, torch.arange(8, 12)
    )
    where = torch.argsort(order)  # where[i]: the new place of row i
    shuffled = SequenceLogprobs(
        policy[order].requires_grad_(),
        reference[order],
        torch.ones(12),
        EMPTY,
        where[examples],
        label[examples],
        where[torch.tensor([10, 8, 11, 9])],
    )
    loss = KTO(beta=0.3, undesirable_weight=1.3)
    torch.testing.assert_close(loss(straight).loss[examples], loss(shuffled).loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient(loss, straight)[order], gradient(loss, shuffled), rtol=1e-14, atol=0)


def sigma(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def oracle(loss: Loss, policy: np.ndarray, reference: np.ndarray, batch: dict[str, np.ndarray]) -> float:
    """The step's summed loss in float64 numpy, straight from the papers."""
    if isinstance(loss, KTO):
        shift = max(0.0, float(np.mean((policy - reference)[batch["mismatched"]])))
        ratio = (policy - reference)[batch["labelled"]]
        value = np.where(batch["label"], sigma(loss.beta * (ratio - shift)), sigma(loss.beta * (shift - ratio)))
        weight = np.where(batch["label"], loss.desirable_weight, loss.undesirable_weight)
        return float(np.sum(weight - weight * value))
    if isinstance(loss, IPO) and loss.average:
        policy, reference = policy / batch["length"], reference / batch["length"]
    chosen, rejected = batch["pair"].T
    h = (policy[chosen] - policy[rejected]) - (reference[chosen] - reference[rejected])
    if isinstance(loss, IPO):
        return float(np.sum((h - 0.5 / loss.beta) ** 2))
    smooth = loss.label_smoothing
    return float(np.sum((1 - smooth) * np.logaddexp(0, -loss.beta * h) + smooth * np.logaddexp(0, loss.beta * h)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "loss",
    [
        DPO(beta=0.3),
        DPO(beta=0.3, label_smoothing=0.2),
        IPO(beta=0.4),
        IPO(beta=0.4, average=False),
        KTO(beta=0.3, desirable_weight=1.5, undesirable_weight=0.7),
    ],
    ids=lambda loss: str(loss),
)
def test_value_and_gradient_equal_the_papers_formula_in_float64(loss: Loss, seed: int) -> None:
    rng = np.random.default_rng(seed)
    policy, reference = rng.normal(-20, 4, 16), rng.normal(-20, 4, 16)
    batch = {
        "length": rng.integers(1, 40, 16),
        "pair": np.stack([rng.permutation(12)[:7], rng.permutation(12)[:7]], 1),  # completions in several pairs
        "labelled": rng.integers(0, 12, 9),
        "label": rng.random(9) < 0.5,
        "mismatched": np.array([12, 13, 14, 15]),
    }
    seqs = SequenceLogprobs(
        torch.tensor(policy, requires_grad=True),
        torch.tensor(reference),
        **{k: torch.tensor(v) for k, v in batch.items()},
    )
    expected = oracle(loss, policy, reference, batch)
    assert loss(seqs).loss.sum().item() == pytest.approx(expected, rel=1e-12)

    numeric = np.zeros(16)
    for i in range(16):
        if isinstance(loss, KTO) and i >= 12:
            continue  # the shift is a constant to the gradient
        step = np.zeros(16)
        step[i] = 1e-5
        up, down = (oracle(loss, policy + s, reference, batch) for s in (step, -step))
        numeric[i] = (up - down) / 2e-5
    np.testing.assert_allclose(gradient(loss, seqs).numpy(), numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", [DPO(), DPO(label_smoothing=0.3), IPO(), IPO(average=False)], ids=str)
@pytest.mark.parametrize("constant", [-7.0, 0.0, 250.0])
def test_paired_losses_do_not_change_when_both_log_ratios_shift_alike(loss: Loss, constant: float) -> None:
    seqs = sequences([-10.0, -11.0], [-12.0, -10.0], length=[5, 5], pair=[(0, 1)], dtype=torch.float64)
    shifted = sequences(
        [-10.0 + constant, -11.0 + constant], [-12.0, -10.0], length=[5, 5], pair=[(0, 1)], dtype=torch.float64
    )
    torch.testing.assert_close(loss(seqs).loss, loss(shifted).loss)
    assert gradient(loss, seqs).sum().abs() < 1e-14


@pytest.mark.parametrize(
    "loss", [DPO(beta=5), DPO(beta=5, label_smoothing=0.1), IPO(), IPO(average=False), KTO(beta=5)], ids=str
)
@pytest.mark.parametrize("chosen", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("rejected", [-1e4, 0.0, 1e4])
def test_value_and_gradient_stay_finite_at_extreme_log_ratios(loss: Loss, chosen: float, rejected: float) -> None:
    seqs = sequences(
        [chosen, rejected, 1e4], [0.0, 0.0, 0.0], pair=[(0, 1)], labels=[(0, True), (1, False)], mismatched=[2]
    )
    out = loss(seqs)
    assert out.loss.isfinite().all()
    assert out.reward.isfinite().all()
    assert gradient(loss, seqs).isfinite().all()


@pytest.mark.parametrize("loss", [DPO(), IPO(), KTO()], ids=str)
@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_losses_compute_in_float32_or_better(loss: Loss, given: torch.dtype, computed: torch.dtype) -> None:
    seqs = sequences(
        [-3.0, -2.0, -1.0], [-2.5, -2.0, -1.5], pair=[(0, 1)], labels=[(0, True)], mismatched=[2], dtype=given
    )
    out = loss(seqs)
    assert {out.loss.dtype, out.weight.dtype, out.reward.dtype} == {computed}
    assert not out.reward.requires_grad


@pytest.mark.parametrize("loss", [DPO(), IPO(), KTO()], ids=str)
def test_a_loss_without_its_reference_says_what_to_set(loss: Loss) -> None:
    assert loss.needs_reference
    with pytest.raises(ModelError, match=f"The loss {loss.name} .* set `reference: auto`"):
        loss(sequences([-1.0, -2.0], None, pair=[(0, 1)], labels=[(0, True)], mismatched=[1]))


def test_kto_without_mismatched_completions_says_how_to_plan_them() -> None:
    with pytest.raises(DataError, match=r"mismatched=True"):
        KTO()(sequences([-1.0], [-1.0], labels=[(0, True)]))


def test_a_completion_in_two_pairs_gets_both_gradients() -> None:
    both = sequences([-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0], pair=[(0, 1), (0, 2)])
    first = sequences([-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0], pair=[(0, 1)])
    second = sequences([-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0], pair=[(0, 2)])
    torch.testing.assert_close(gradient(DPO(), both), gradient(DPO(), first) + gradient(DPO(), second))


def test_declarations_say_what_each_loss_needs() -> None:
    assert (DPO.form, DPO.statistics, DPO.needs_mismatched) == ("paired", "none", False)
    assert (IPO.form, IPO.statistics, IPO.needs_mismatched) == ("paired", "none", False)
    assert (KTO.form, KTO.statistics, KTO.needs_mismatched) == ("unpaired", "mismatched", True)
