"""Our losses against TRL's: the same log-probs into both, the same loss and gradient out.

TRL's losses stand inside its trainers. So a trainer is made without its constructor and given only what the loss
reads, and a stand-in for the model that returns the log-probs of the case.
"""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.losses import BradleyTerry, Loss, PairRewards, build
from prefopt.records import SequenceLogprobs, TokenLogprobs

trl = pytest.importorskip("trl", reason="the extra `peers` is not installed")

LENGTHS = torch.tensor([3, 5, 1, 4, 2, 5, 5, 1])
"""Completion tokens; half of the sequences are chosen, the other half rejected."""
PAIRS, TOKENS = len(LENGTHS) // 2, 6
MASK = torch.arange(TOKENS)[None] < LENGTHS[:, None]


class Model:
    """Gives one log-prob a token, whatever it is asked."""

    training = True

    def __init__(self, per_token: Tensor, log_sum_p2: Tensor | None = None) -> None:
        self.per_token = per_token
        self.log_sum_p2 = log_sum_p2

    def __call__(self, input_ids: Tensor, **kwargs: Any) -> SimpleNamespace:
        found = self.per_token[: len(input_ids)]
        nothing = torch.zeros_like(found)
        return SimpleNamespace(
            log_probs=found, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool(),
            log_sum_sq_probs=self.log_sum_p2,
        )  # fmt: skip


def trainer(kind: Any, model: Model, **settings: Any) -> Any:
    made = object.__new__(kind)
    gathers = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    defaults = {
        "model": model, "accelerator": gathers, "aux_loss_enabled": False, "precompute_ref_logps": True,
        "use_weighting": False, "_metrics": defaultdict(lambda: defaultdict(list)), "_tp_size": 1,
        "_total_train_tokens": 0,
    }  # fmt: skip
    vars(made).update(defaults, **settings)
    return made


def log_probs(seed: int) -> Tensor:
    """(S, TOKENS) float64, nats; 0 where there is no completion token."""
    drawn = torch.randn(len(LENGTHS), TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(MASK, -drawn.exp(), 0.0)


def inputs(**extra: Tensor) -> dict[str, Tensor]:
    ids = torch.ones(len(LENGTHS), TOKENS + 1, dtype=torch.int64)
    mask = torch.nn.functional.pad(MASK.long(), (1, 0))  # one prompt token before
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": mask, **extra}


def check(theirs: Tensor, their_tokens: Tensor, ours: Tensor, our_tokens: Tensor, within: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=within, atol=within)
    (expected,) = torch.autograd.grad(theirs, their_tokens)
    (found,) = torch.autograd.grad(ours, our_tokens)
    assert float(expected.abs().max()) > 1e-6
    torch.testing.assert_close(found, expected, rtol=max(within, 1e-9), atol=within)


NOTHING = torch.zeros(0, dtype=torch.int64)


def pairs(policy: Tensor, reference: Tensor | None) -> SequenceLogprobs:
    """Completion i of the first half was chosen over completion i of the second."""
    return SequenceLogprobs(
        policy=policy, reference=reference, length=LENGTHS, pair=torch.arange(2 * PAIRS).view(2, PAIRS).t(),
        labelled=NOTHING, label=NOTHING.bool(), mismatched=NOTHING,
    )  # fmt: skip


def mean(loss: Loss, seqs: SequenceLogprobs) -> Tensor:
    output = loss(seqs)
    return output.loss.sum() / output.weight.sum()


def dpo_trainers(loss_type: str, policy: Tensor, reference: Tensor, **settings: Any) -> Tensor:
    """TRL's loss of these log-probs, by one of the loss types of its DPOTrainer."""
    settings = {"ld_alpha": None, "f_divergence_type": "reverse_kl", "label_smoothing": 0.0, **settings}
    model = Model(policy, settings.pop("log_sum_p2", None))
    peer = trainer(trl.DPOTrainer, model, loss_types=[loss_type], loss_weights=[1.0], **settings)
    batch = inputs(ref_chosen_logps=reference[:PAIRS], ref_rejected_logps=reference[PAIRS:])
    return peer._compute_loss(peer.model, batch, return_outputs=False)


# Ours, its settings, TRL's loss type, its settings.
PAIRED: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("dpo", {}, "sigmoid", {}),
    ("dpo", {"divergence": "forward_kl"}, "sigmoid", {"f_divergence_type": "forward_kl"}),
    ("dpo", {"divergence": "js"}, "sigmoid", {"f_divergence_type": "js_divergence"}),
    ("ipo", {}, "ipo", {}),
    ("robust_dpo", {"label_smoothing": 0.0}, "robust", {}),
    ("robust_dpo", {"label_smoothing": 0.3}, "robust", {"label_smoothing": 0.3}),
    ("hinge", {}, "hinge", {}),
    ("nca", {}, "nca_pair", {}),
    ("apo_zero", {}, "apo_zero", {}),
    ("apo_down", {}, "apo_down", {}),
    ("sppo", {}, "sppo_hard", {}),
    ("discopop", {}, "discopop", {"args": SimpleNamespace(discopop_tau=0.05)}),
    ("discopop", {"tau": 0.7}, "discopop", {"args": SimpleNamespace(discopop_tau=0.7)}),
    ("dpo_norm", {}, "sigmoid_norm", {}),
    ("aot", {}, "aot", {}),
    ("aot", {"label_smoothing": 0.2}, "aot", {"label_smoothing": 0.2}),
]


@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize(("name", "ours", "loss_type", "theirs"), PAIRED)
def test_paired_losses_are_trls(
    name: str, ours: dict[str, Any], loss_type: str, theirs: dict[str, Any], beta: float
) -> None:
    policy, mine, reference = log_probs(0).requires_grad_(), log_probs(0).requires_grad_(), log_probs(1).sum(1)
    expected = dpo_trainers(loss_type, policy, reference, beta=beta, **theirs)
    check(expected, policy, mean(build(name, beta=beta, **ours), pairs(mine.sum(1), reference)), mine)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_length_desensitized_dpo_is_trls(alpha: float) -> None:
    policy, mine, frozen = log_probs(0).requires_grad_(), log_probs(0).requires_grad_(), log_probs(1)
    shared = torch.minimum(LENGTHS[:PAIRS], LENGTHS[PAIRS:]).repeat(2)
    weight = torch.where(torch.arange(TOKENS)[None] < shared[:, None], 1.0, torch.tensor(alpha, dtype=torch.float64))
    real = torch.where(MASK, policy, 0.0)  # TRL's weights reach into the padding
    expected = dpo_trainers("sigmoid", real, (frozen * weight).sum(1), beta=0.3, ld_alpha=alpha)
    segment = torch.arange(len(LENGTHS)).repeat_interleave(LENGTHS)
    seqs = replace(pairs(mine.sum(1), frozen.sum(1)), token=TokenLogprobs(mine[MASK], frozen[MASK], segment))
    check(expected, policy, mean(build("ld_dpo", beta=0.3, alpha=alpha), seqs), mine)


@pytest.mark.parametrize(
    ("inner", "loss_type"), [("dpo(beta=0.3)", "sigmoid"), ("ipo(beta=0.3)", "ipo"), ("nca(beta=0.3)", "nca_pair")]
)
def test_weighted_losses_are_trls_but_for_its_weights_above_1(inner: str, loss_type: str) -> None:
    policy, mine, reference = log_probs(0).requires_grad_(), log_probs(0).requires_grad_(), log_probs(1).sum(1)
    # A token is never likelier than 1, so log p - log sum p^2 is at most -log p: these keep all weights below 1.
    squares = torch.where(MASK, 0.3 * log_probs(0), 0.0)
    expected = dpo_trainers(loss_type, policy, reference, beta=0.3, use_weighting=True, log_sum_p2=squares)
    seqs = replace(pairs(mine.sum(1), reference), log_sum_p2=squares.sum(1))
    loss = build(f"wpo({inner})")
    check(expected, policy, mean(loss, seqs), mine)
    # TRL goes on where the paper's authors stop at 1.
    likely = replace(seqs, log_sum_p2=3 * log_probs(0).sum(1))
    unlimited = dpo_trainers(
        loss_type, policy, reference, beta=0.3, use_weighting=True, log_sum_p2=torch.where(MASK, 3 * log_probs(0), 0.0)
    )
    assert float(unlimited) > 1.5 * float(mean(loss, likely))


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_exo_is_trls_but_for_trls_float32_epsilon(beta: float) -> None:
    policy, mine, reference = log_probs(0).requires_grad_(), log_probs(0).requires_grad_(), log_probs(1).sum(1)
    expected = dpo_trainers("exo_pair", policy, reference, beta=beta, label_smoothing=1e-3)
    found = mean(build("exo", beta=beta, label_smoothing=1e-3), pairs(mine.sum(1), reference))
    check(expected, policy, found, mine, within=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_the_alpha_divergence_is_trls_with_its_coefficient_counted_from_the_other_end(alpha: float) -> None:
    # TRL's code takes (u^(a - 1) - 1) / (a - 1): 1 - a is the paper's alpha, and so ours. TRL's has no float64.
    policy, mine = (log_probs(0).float().requires_grad_() for _ in range(2))
    reference = log_probs(1).float().sum(1)
    expected = dpo_trainers(
        "sigmoid", policy, reference, beta=0.3, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1 - alpha
    )
    loss = build("dpo", beta=0.3, divergence="alpha", alpha_coef=alpha)
    check(expected, policy, mean(loss, pairs(mine.sum(1), reference)), mine, within=1e-5)


def test_trls_sigmoid_loss_does_not_read_label_smoothing() -> None:
    reference = log_probs(1).sum(1)
    plain, smoothed = (dpo_trainers("sigmoid", log_probs(0), reference, beta=0.5, label_smoothing=s) for s in (0, 0.2))
    assert plain == smoothed
    ours = mean(build("dpo", beta=0.5, label_smoothing=0.2), pairs(log_probs(0).sum(1), reference))
    assert abs(ours - plain) > 0.1


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_bco_is_trls_once_the_shift_that_trl_leaves_out_is_put_into_the_reference(beta: float) -> None:
    policy, mine, reference = log_probs(0).requires_grad_(), log_probs(0).requires_grad_(), log_probs(1).sum(1)
    shift = (policy.sum(1) - reference).mean().detach()
    expected = dpo_trainers("bco_pair", policy, reference + shift, beta=beta)
    check(expected, policy, mean(build("bco", beta=beta), pairs(mine.sum(1), reference)), mine)
    assert abs(float(shift)) > 0.1
    assert dpo_trainers("bco_pair", policy, reference, beta=beta) != expected


@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize(
    ("name", "sign"), [("kto", 1), ("kto", -1), ("apo_zero_unpaired", 1)]
)  # sign: of the divergence's estimate, which both clamp at 0
def test_unpaired_losses_are_trls(name: str, beta: float, sign: int) -> None:
    policy, reference = log_probs(0).requires_grad_(), log_probs(1).sum(1)
    desirable = torch.tensor([1, 0, 1, 1, 0, 1, 0, 0]).bool()
    mismatched = torch.tensor([-9.0, -4.0, -5.0], dtype=torch.float64)
    frozen = mismatched - sign * torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    weights = {"undesirable_weight": 1.5} if name == "kto" else {}
    peer = trainer(
        trl.KTOTrainer, Model(policy), loss_type=name, beta=beta, calculate_KL=name == "kto",
        _compute_kl_logps=lambda model, batch: mismatched,
        **{"desirable_weight": 1.0, "undesirable_weight": 1.0, **weights},
    )  # fmt: skip
    batch = inputs(label=desirable, ref_logps=reference, ref_KL_logps=frozen)
    expected = peer._compute_loss(peer.model, batch, return_outputs=False)

    mine = log_probs(0).requires_grad_()
    count = len(LENGTHS)
    seqs = SequenceLogprobs(
        policy=torch.cat([mine.sum(1), mismatched]), reference=torch.cat([reference, frozen]),
        length=torch.cat([LENGTHS, torch.ones(3, dtype=torch.int64)]), pair=torch.zeros(0, 2, dtype=torch.int64),
        labelled=torch.arange(count), label=desirable, mismatched=torch.arange(count, count + 3),
    )  # fmt: skip
    check(expected, policy, mean(build(name, beta=beta, **weights), seqs), mine)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_unpaired_aot_is_trls_where_there_are_as_many_good_as_bad(beta: float, smoothing: float) -> None:
    policy, mine, reference = log_probs(0).requires_grad_(), log_probs(0).requires_grad_(), log_probs(1).sum(1)
    expected = dpo_trainers("aot_unpaired", policy, reference, beta=beta, label_smoothing=smoothing)
    examples = torch.arange(2 * PAIRS)
    seqs = replace(pairs(mine.sum(1), reference), labelled=examples, label=examples < PAIRS)
    check(expected, policy, mean(build("aot_unpaired", beta=beta, label_smoothing=smoothing), seqs), mine)


class Logits:
    """Gives logits over three tokens, whatever it is asked; knows what they come to."""

    def __init__(self, prompt: int = 1) -> None:
        draw = torch.Generator().manual_seed(0)
        shape = (2 * PAIRS, TOKENS + prompt)
        self.prompt = prompt
        self.logits = torch.randn(*shape, 3, generator=draw, dtype=torch.float64).requires_grad_()
        self.ids = torch.randint(0, 3, shape, generator=draw)

    def __call__(self, ids: Tensor, **kwargs: Any) -> SimpleNamespace:
        assert torch.equal(ids, self.ids)
        return SimpleNamespace(logits=self.logits)

    def batch(self) -> dict[str, Tensor]:
        completion, real = (torch.nn.functional.pad(MASK, (self.prompt, 0), value=v) for v in (False, True))
        tensors = {
            "input_ids": self.ids,
            "attention_mask": real.long(),
            "labels": self.ids.masked_fill(~completion, -100),
        }
        halves = {"chosen": slice(0, PAIRS), "rejected": slice(PAIRS, None)}
        return {f"{side}_{key}": value[half] for side, half in halves.items() for key, value in tensors.items()}

    def per_token(self) -> Tensor:
        """(S, prompt - 1 + TOKENS) log-probs of all tokens but the first, which nothing predicts."""
        return self.logits.log_softmax(-1)[:, :-1].gather(-1, self.ids[:, 1:, None])[..., 0]

    def sums(self) -> Tensor:
        """(S,) log-probs of the completions."""
        return (self.per_token()[:, self.prompt - 1 :] * MASK).sum(1)

    def imitation(self, *, with_prompt: bool = False) -> tuple[Tensor, Tensor]:
        """The chosen completions' negative log-prob: mean over all tokens of the batch, and mean of their means."""
        chosen = -self.sums()[:PAIRS]
        more = self.per_token()[:PAIRS, : self.prompt - 1] if with_prompt else torch.zeros(0)
        by_token = (chosen.sum() - more.sum()) / (LENGTHS[:PAIRS].sum() + more.numel())
        return by_token, (chosen / LENGTHS[:PAIRS]).mean()


def experimental(kind: Any, model: Logits, **settings: Any) -> Tensor:
    defaults = {"is_encoder_decoder": False, "label_smoothing": 0.0, "alpha": 0.0, "simpo_gamma": 0.5}
    names = {"pad_token_id": 0, "padding_value": 0}
    peer = trainer(kind, model, **{**defaults, **names, **settings})
    loss, _ = peer.get_batch_loss_metrics(model, model.batch())
    return loss


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_cpo_is_trls_but_that_every_chosen_completion_counts_alike(weight: float) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo")
    model, mine = Logits(), Logits()
    theirs = experimental(cpo.CPOTrainer, model, loss_type="sigmoid", beta=0.3, cpo_alpha=weight)
    by_token, by_example = model.imitation()
    assert abs(by_token - by_example) > 0.01
    found = mean(build("cpo", beta=0.3, nll_weight=weight), pairs(mine.sums(), None))
    check(theirs + weight * (by_example - by_token), model.logits, found, mine.logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.4])
def test_simpo_is_trls_without_the_imitation_that_trl_adds_by_default(gamma: float) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo")
    model, mine = Logits(), Logits()
    theirs = experimental(cpo.CPOTrainer, model, loss_type="simpo", beta=2.0, simpo_gamma=gamma, cpo_alpha=0.0)
    check(theirs, model.logits, mean(build("simpo", beta=2.0, gamma=gamma), pairs(mine.sums(), None)), mine.logits)
    assert cpo.CPOConfig.cpo_alpha == 1.0


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 0.1), (1.5, 0.0)])
def test_alphapo_is_trls(alpha: float, gamma: float) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo")
    model, mine = Logits(), Logits()
    settings = {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": gamma, "cpo_alpha": 0.0, "alpha": alpha}
    theirs = experimental(cpo.CPOTrainer, model, **settings)
    loss = build("alphapo", beta=2.5, alpha=alpha, gamma=gamma)
    check(theirs, model.logits, mean(loss, pairs(mine.sums(), None)), mine.logits)


@pytest.mark.parametrize("prompt", [1, 3])
def test_orpo_is_trls_but_that_every_chosen_completion_counts_alike_and_no_prompt(prompt: int) -> None:
    orpo = pytest.importorskip("trl.experimental.orpo")
    model, mine = Logits(prompt), Logits(prompt)
    theirs = experimental(orpo.ORPOTrainer, model, beta=0.3)
    by_token, by_example = model.imitation(with_prompt=True)
    found = mean(build("orpo", beta=0.3), pairs(mine.sums(), None))
    # TRL computes the odds in float32.
    check(theirs + by_example - by_token, model.logits, found, mine.logits, within=1e-6)


def test_orpos_odds_are_finite_where_trls_are_not() -> None:
    orpo = pytest.importorskip("trl.experimental.orpo")
    certain, unsure = torch.zeros(1), torch.full((1,), -1.0)
    peer = trainer(orpo.ORPOTrainer, Model(certain), beta=0.1)
    *_, log_odds = peer.odds_ratio_loss(certain, unsure)
    assert log_odds == float("inf")
    seqs = replace(pairs(torch.cat([certain, unsure]), None), length=torch.ones(2), pair=torch.tensor([[0, 1]]))
    assert build("orpo")(seqs).loss.isfinite().all()


def test_a_chosen_completion_far_below_its_reference_is_pulled_here_and_no_more_in_trl() -> None:
    policy = log_probs(0).float().requires_grad_()
    reference = policy.detach().sum(1) + torch.where(torch.arange(2 * PAIRS) < PAIRS, 300.0, 0.0)
    settings = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5}
    (theirs,) = torch.autograd.grad(dpo_trainers("sigmoid", policy, reference, beta=0.1, **settings), policy)
    loss = build("dpo", beta=0.1, divergence="alpha", alpha_coef=0.5)
    (ours,) = torch.autograd.grad(mean(loss, pairs(policy.sum(1), reference)), policy)
    assert theirs[:PAIRS].abs().max() == 0
    assert (ours[:PAIRS][MASK[:PAIRS]] < 0).all()


@pytest.mark.parametrize("center", [None, 0.1])
@pytest.mark.parametrize("margins", [False, True])
def test_bradley_terry_is_that_of_trls_reward_trainer(center: float | None, margins: bool) -> None:
    theirs, ours = (log_probs(0).sum(1).requires_grad_() for _ in range(2))
    margin = log_probs(2).sum(1)[:PAIRS].abs()

    class RewardModel:
        training = True

        def __call__(self, **kwargs: Any) -> SimpleNamespace:
            return SimpleNamespace(logits=theirs[:, None])

    args = SimpleNamespace(center_rewards_coefficient=center)
    peer = trainer(trl.RewardTrainer, RewardModel(), args=args)
    expected = peer.compute_loss(peer.model, inputs(**({"margin": margin} if margins else {})))
    rewards = PairRewards(ours[:PAIRS], ours[PAIRS:], margin if margins else None)
    check(expected, theirs, BradleyTerry(center=center or 0.0)(rewards).loss.mean(), ours)
