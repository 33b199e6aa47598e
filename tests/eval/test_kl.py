"""Sequence KL: both estimators have the exact divergence as their expectation; means are over prompts."""

import itertools
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from prefopt.data import Example
from prefopt.errors import DataError
from prefopt.eval.kl import clustered_mean, dominating, sequence_kl
from prefopt.models.packed import PackedModel
from prefopt.models.references import build_reference
from prefopt.models.scoring import example_divergences
from tests.models.tiny import tiny_causal_lm

END, LONGEST, PROMPT = 2, 3, (1, 3)


def _moved() -> PackedModel:
    """Return a float64 model of five tokens whose adapter moved it."""
    base = tiny_causal_lm("llama", vocab_size=5)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    model = model.double().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.7)
    return PackedModel(model)


def _every_completion() -> list[tuple[int, ...]]:
    """Return all completions that end with `END`, or are cut at the longest length."""
    found = []
    for length in range(1, LONGEST + 1):
        for row in itertools.product(range(5), repeat=length):
            inside, last = row[:-1], row[-1]
            if END not in inside and (last == END or length == LONGEST):
                found.append(row)
    return found


def test_both_estimators_expect_the_exact_divergence_of_all_sequences() -> None:
    packed = _moved()
    reference = build_reference("adapter_off", packed, needed=True)
    rows = _every_completion()
    kl, log_policy, log_reference = example_divergences([Example(PROMPT, tuple(rows))], packed, reference, 10_000)
    chance = np.exp(log_policy)
    assert chance.sum() == pytest.approx(1, abs=1e-10)
    exact = float((chance * (log_policy - log_reference)).sum())
    assert exact > 0.01
    assert float((chance * kl).sum()) == pytest.approx(exact, rel=1e-9)
    assert (kl >= 0).all()
    # Less variance is why it is there.
    assert float((chance * (kl - exact) ** 2).sum()) < float((chance * (log_policy - log_reference - exact) ** 2).sum())

    drawn = np.random.default_rng(0).choice(len(rows), 4000, p=chance / chance.sum())
    found = sequence_kl(
        kl[drawn], (log_policy - log_reference)[drawn], list(range(4000)),
        length=[len(rows[at]) for at in drawn], truncated=[rows[at][-1] != END for at in drawn],
    )  # fmt: skip
    assert found.kl.value is not None
    assert found.kl.standard_error is not None
    assert found.kl_log_ratio.value is not None
    assert found.kl_log_ratio.standard_error is not None
    assert abs(found.kl.value - exact) < 4 * found.kl.standard_error
    assert abs(found.kl_log_ratio.value - exact) < 4 * found.kl_log_ratio.standard_error
    cut = sum(p for p, row in zip(chance, rows, strict=True) if row[-1] != END)
    assert found.truncated == pytest.approx(cut, abs=0.05)


def test_the_divergence_of_a_completion_is_the_sum_over_its_tokens_by_full_logits() -> None:
    packed = _moved()
    reference = build_reference("adapter_off", packed, needed=True)
    rows = [(4, 0, END), (3,), (4, 0, END)]
    kl, log_policy, log_reference = example_divergences(
        [Example(PROMPT, tuple(rows[:2])), Example(PROMPT, (rows[2],))], packed, reference, 10_000
    )
    for row, sums in zip(rows, zip(kl, log_policy, log_reference, strict=True), strict=True):
        ids = torch.tensor([[*PROMPT, *row]])
        with torch.no_grad():
            own = packed.model(ids).logits.log_softmax(-1)[0, len(PROMPT) - 1 : -1]
            with packed.model.disable_adapter():
                other = packed.model(ids).logits.log_softmax(-1)[0, len(PROMPT) - 1 : -1]
        at = torch.tensor(row)[:, None]
        wanted = [(own.exp() * (own - other)).sum(), own.gather(1, at).sum(), other.gather(1, at).sum()]
        assert sums == pytest.approx([float(x) for x in wanted], abs=1e-6)  # transformers norms in float32


def test_samples_of_one_prompt_count_as_one_cluster() -> None:
    found = clustered_mean([1.0, 3.0, 5.0, float("nan"), 9.0], ["a", "a", "b", "b", "c"])
    assert found.n == 3
    assert found.value == pytest.approx((2 + 5 + 9) / 3)
    spread = math.sqrt(sum((x - 16 / 3) ** 2 for x in (2, 5, 9)) / 2)
    assert found.standard_error == pytest.approx(spread / math.sqrt(3))
    assert found.low is not None
    assert found.high is not None
    assert 2 <= found.low < found.value < found.high <= 9
    alone = clustered_mean([1.0, 2.0], ["a", "a"])
    assert (alone.n, alone.value, alone.standard_error) == (1, 1.5, None)
    with pytest.raises(DataError, match="for 2 prompts"):
        clustered_mean([1.0], ["a", "b"])


def test_only_points_that_no_other_beats_dominate() -> None:
    nan = float("nan")
    points = [(0.0, 0.1), (1.0, 0.5), (1.0, 0.4), (2.0, 0.5), (3.0, 0.9), (4.0, nan), (2.5, 0.2), (3.0, 0.9)]
    assert dominating(points) == [True, True, False, False, True, False, False, True]
    for at, (kl, reward) in enumerate(points):
        others = [p for i, p in enumerate(points) if i != at]
        beaten = any(k <= kl and r >= reward and (k < kl or r > reward) for k, r in others)
        assert dominating(points)[at] == (not beaten and not math.isnan(reward))
    assert dominating([]) == []
