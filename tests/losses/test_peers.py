"""Our losses against TRL's: the same log-probs into both, the same loss and gradient out.

TRL's losses stand inside its trainers. So a trainer is made without its constructor and given only what the loss
reads, and a stand-in for the model that returns the log-probs of the case.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.losses import build
from prefopt.records import SequenceLogprobs

trl = pytest.importorskip("trl", reason="the extra `peers` is not installed")

LENGTHS = torch.tensor([3, 5, 1, 4, 2, 5, 5, 1])
"""Completion tokens; half of the sequences are chosen, the other half rejected."""
PAIRS, TOKENS = len(LENGTHS) // 2, 6
MASK = torch.arange(TOKENS)[None] < LENGTHS[:, None]


class Model:
    """Gives one log-prob a token, whatever it is asked."""

    training = True

    def __init__(self, per_token: Tensor) -> None:
        self.per_token = per_token

    def __call__(self, input_ids: Tensor, **kwargs: Any) -> SimpleNamespace:
        found = self.per_token[: len(input_ids)]
        nothing = torch.zeros_like(found)
        return SimpleNamespace(log_probs=found, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


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


def check(theirs: Tensor, their_tokens: Tensor, ours: Tensor, our_tokens: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (expected,) = torch.autograd.grad(theirs, their_tokens)
    (found,) = torch.autograd.grad(ours, our_tokens)
    assert float(expected.abs().max()) > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize(("name", "theirs"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_paired_losses_are_trls(name: str, theirs: str, beta: float) -> None:
    policy, reference = log_probs(0).requires_grad_(), log_probs(1).sum(1)
    peer = trainer(
        trl.DPOTrainer, Model(policy), loss_types=[theirs], loss_weights=[1.0], beta=beta, ld_alpha=None,
        f_divergence_type="reverse_kl", label_smoothing=0.0,
    )  # fmt: skip
    batch = inputs(ref_chosen_logps=reference[:PAIRS], ref_rejected_logps=reference[PAIRS:])
    expected = peer._compute_loss(peer.model, batch, return_outputs=False)

    mine = log_probs(0).requires_grad_()
    nothing = torch.zeros(0, dtype=torch.int64)
    seqs = SequenceLogprobs(
        policy=mine.sum(1), reference=reference, length=LENGTHS,
        pair=torch.arange(2 * PAIRS).view(2, PAIRS).t(), labelled=nothing, label=nothing.bool(), mismatched=nothing,
    )  # fmt: skip
    output = build(name, beta=beta)(seqs)
    check(expected, policy, output.loss.sum() / output.weight.sum(), mine)


@pytest.mark.parametrize("beta", [0.05, 0.5])
@pytest.mark.parametrize("sign", [1, -1])  # of the divergence's estimate, which both clamp at 0
def test_kto_is_trls(beta: float, sign: int) -> None:
    policy, reference = log_probs(0).requires_grad_(), log_probs(1).sum(1)
    desirable = torch.tensor([1, 0, 1, 1, 0, 1, 0, 0]).bool()
    mismatched = torch.tensor([-9.0, -4.0, -5.0], dtype=torch.float64)
    frozen = mismatched - sign * torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    peer = trainer(
        trl.KTOTrainer, Model(policy), loss_type="kto", beta=beta, desirable_weight=1.0, undesirable_weight=1.5,
        calculate_KL=True, _compute_kl_logps=lambda model, batch: mismatched,
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
    output = build("kto", beta=beta, undesirable_weight=1.5)(seqs)
    check(expected, policy, output.loss.sum() / output.weight.sum(), mine)
