"""Scores by packs against separate, unpadded, full-logits passes, and evaluations built on them."""

from __future__ import annotations

import json
import mmap
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.data import Example, PreferenceData, load_preferences, tokenize_rows
from prefopt.errors import DataError, ModelError
from prefopt.eval import (
    EvalConfig,
    PairEvaluation,
    evaluate_pairs,
    held_out_pairs,
    pair_logprobs,
    score_completions,
)
from prefopt.eval.score import pair_packs
from prefopt.models import Admission, PackedModel, build_reference
from prefopt.records import Pack
from tests.toys import list_rows, pair_rows, write_rows


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)


def naive(model: Any, prompt: list[int], completion: list[int]) -> float:
    """One unpadded pass, full logits, float64 log-softmax."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logits = model(ids).logits[0].double()
    chosen = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])
    return float(chosen.sum())


def chat(tokenizer: Any, row: Mapping[str, Any], key: str) -> tuple[list[int], list[int]]:
    return tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False), tokenizer(
        row[key][0]["content"] + "<|im_end|>"
    )["input_ids"]


def test_conversational_pairs_score_as_separate_passes_with_their_end_of_turn(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    rows = pair_rows(7)
    scores = score_completions(model, tokenizer, rows)
    for row, found in zip(rows, scores, strict=True):
        expected = [naive(model, *chat(tokenizer, row, key)) for key in ("chosen", "rejected")]
        assert found == pytest.approx(expected, rel=1e-5)


def test_every_kind_of_row_scores_as_separate_passes(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    rows = [
        {"prompt": "Once upon", "chosen": " a time", "rejected": " the time that was long"},
        {"prompt": "Once upon", "completions": [" a", " a time", " nothing", " a"]},
        {"prompt": "Twice", "completion": " upon a time"},
    ]
    scores = score_completions(model, tokenizer, rows)
    assert [len(found) for found in scores] == [2, 4, 1]
    assert scores[1][0] == scores[1][3]
    texts = [[" a time", " the time that was long"], [" a", " a time", " nothing", " a"], [" upon a time"]]
    for row, found, completions in zip(rows, scores, texts, strict=True):
        for value, text in zip(found, completions, strict=True):
            prompt, completion = (tokenizer(part)["input_ids"] for part in (row["prompt"], text))
            expected = naive(model, prompt, [*completion, tokenizer.eos_token_id])
            assert value == pytest.approx(expected, rel=1e-5)


def test_scores_do_not_depend_on_the_budget_or_the_order_of_rows(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    rows = pair_rows(9)
    whole = score_completions(model, tokenizer, rows)
    for budget in (1, 64, 300):
        np.testing.assert_allclose(score_completions(model, tokenizer, rows, token_budget=budget), whole, rtol=1e-5)
    backwards = score_completions(model, tokenizer, rows[::-1], token_budget=200)
    np.testing.assert_allclose(backwards[::-1], whole, rtol=1e-5)


def test_without_a_budget_packs_suit_the_device_and_no_group_is_split(loaded: tuple[Any, Any]) -> None:
    policy = PackedModel(loaded[0])

    def pairs(prompt: int) -> PreferenceData:
        completions = (tuple(range(5, 205)), tuple(range(6, 206)))
        return PreferenceData("paired", [Example((at, *[7] * (prompt - 1)), completions) for at in range(8)])

    assert [pack.tokens.numel() for pack in pair_packs(policy, pairs(100))] == [2000, 2000]
    assert [pack.tokens.numel() for pack in pair_packs(policy, pairs(3000))] == [3400] * 8
    assert len(list(pair_packs(policy, pairs(100), token_budget=8192))) == 1


@pytest.mark.parametrize("one_row", [False, True])
def test_shared_prompts_and_rows_give_the_same_scores(loaded: tuple[Any, Any], one_row: bool) -> None:
    model, tokenizer = loaded
    rows = pair_rows(6)
    alike = [{**row, "prompt": rows[0]["prompt"]} for row in rows]  # one prompt: shared by all their completions
    examples = tokenize_rows(rows + alike, tokenizer)
    data = PreferenceData("paired", examples)
    shared = PackedModel(model)
    assert shared.admission.shared
    apart = PackedModel(model, admission=Admission(shared=False, one_row=one_row, reason="for this test"))
    found = [pair_logprobs(policy, data, token_budget=500).policy for policy in (shared, apart)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_a_completion_of_many_pairs_is_computed_once(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = PackedModel(loaded[0])
    computed = []
    logprobs = PackedModel.logprobs

    def counted(self: PackedModel, pack: Pack, reduction: Any = "sum") -> torch.Tensor:
        computed.append(pack.num_sequences)
        return logprobs(self, pack, reduction)

    monkeypatch.setattr(PackedModel, "logprobs", counted)
    completions = [(token, 2) for token in range(10, 20)]
    pairs = [(a, b) for a in completions for b in completions if a != b]
    scores = pair_logprobs(policy, PreferenceData("paired", [Example((5, 6), pair) for pair in pairs]))
    assert scores.policy.shape == (90, 2)
    assert sum(computed) == 10


def test_scoring_leaves_the_model_as_it_was(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    before = score_completions(model, tokenizer, pair_rows(2))
    implementation = model.config._attn_implementation
    model.train()
    model.model.layers[0].eval()
    assert score_completions(model, tokenizer, pair_rows(2)) == before
    assert model.training
    assert not model.model.layers[0].training
    assert model.config._attn_implementation == implementation
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_rows_have_no_scores(loaded: tuple[Any, Any]) -> None:
    assert score_completions(*loaded, []) == []


def test_a_row_that_cannot_be_scored_is_named(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="1"):
        score_completions(*loaded, [pair_rows(1)[0], {"prompt": "p", "chosen": "c", "rejected": ""}])
    with pytest.raises(DataError):
        score_completions(*loaded, pair_rows(1), max_length=5)


def test_a_broken_model_is_not_a_number_but_an_error(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    policy = PackedModel(model)
    data = PreferenceData("paired", [Example((5, 6), ((7, 2), (8, 2)))])
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="2 of 2 completions have no finite log-prob"):
        pair_logprobs(policy, data)


def lora(tiny_model: Path) -> Any:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.5))


def stir(model: Any) -> None:
    """Give LoRA's B something other than zero, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.fixture
def held_out(loaded: tuple[Any, Any], tmp_path: Path) -> PreferenceData:
    rows = [{**row, "gap": float(i % 4), "human": 0.9} for i, row in enumerate(pair_rows(24))]
    return load_preferences(str(write_rows(tmp_path / "pairs.jsonl", rows)), loaded[1])


def test_before_training_policy_and_reference_are_one_and_every_margin_is_zero(
    tiny_model: Path, held_out: PreferenceData
) -> None:
    policy = PackedModel(lora(tiny_model))
    found = evaluate_pairs(policy, build_reference("auto", policy, needed=True), held_out, beta=0.1)
    assert found.metrics.reward.ties == 24
    assert found.metrics.margin.value == 0.0
    assert found.metrics.logprob.n == 24
    assert found.metrics.logprob.ties == 0


def test_after_training_margins_are_log_ratios_of_separate_passes(tiny_model: Path, held_out: PreferenceData) -> None:
    model = lora(tiny_model)
    policy = PackedModel(model)
    reference = build_reference("auto", policy, needed=True)
    stir(model)
    model.train()  # dropout must not reach the numbers
    scores = pair_logprobs(policy, held_out, reference=reference, token_budget=300)
    model.eval()
    for i, example in enumerate(held_out.examples):
        for side, completion in enumerate(example.completions):
            own = naive(model, list(example.prompt), list(completion))
            with model.disable_adapter():
                frozen = naive(model, list(example.prompt), list(completion))
            assert own != pytest.approx(frozen, rel=1e-4)
            assert scores.policy[i, side] == pytest.approx(own, rel=1e-5)
            assert scores.reference[i, side] == pytest.approx(frozen, rel=1e-5)
            assert scores.length[i, side] == len(completion)


def test_an_evaluation_goes_through_json_and_back(tiny_model: Path, held_out: PreferenceData) -> None:
    model = lora(tiny_model)
    policy = PackedModel(model)
    reference = build_reference("auto", policy, needed=True)
    stir(model)
    config = EvalConfig(slice_by="gap", slice_edges=(0, 2, 3), human="human", resamples=100)
    found = evaluate_pairs(policy, reference, held_out, config, beta=0.1)
    back = PairEvaluation.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert back.metrics == found.metrics
    assert back.slices == found.slices
    assert [part.n for part in found.slices] == [12, 12]
    assert found.human.value == pytest.approx(0.9)
    assert found.slices[0].human.value == pytest.approx(0.9)
    np.testing.assert_allclose(back.pairs.policy, found.pairs.policy, atol=1e-5)
    assert back.fingerprint == held_out.fingerprint


def test_without_a_reference_only_what_needs_none_is_measured(
    loaded: tuple[Any, Any], held_out: PreferenceData
) -> None:
    found = evaluate_pairs(PackedModel(loaded[0]), None, held_out)
    assert found.metrics.primary == "logprob"
    assert found.metrics.reward is None
    assert found.to_dict()["pairs"]["reference"] is None


def test_a_wrong_column_is_refused_before_anything_is_computed(held_out: PreferenceData) -> None:
    with pytest.raises(DataError, match=r"eval.slice_by names the column 'gapp'.*gap, human; did you mean 'gap'\?"):
        evaluate_pairs(None, None, held_out, EvalConfig(slice_by="gapp"))  # type: ignore[arg-type]  # never reached


def test_of_lists_the_best_and_the_worst_completion_are_measured(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    rows = [{**row, "gap": i} for i, row in enumerate(list_rows(6))]
    tied = [{**row, "gap": 9} for row in list_rows(2, tied=True)]
    lists = load_preferences(rows[:3] + tied + rows[3:], tokenizer)
    pairs = load_preferences([{**row, "gap": i} for i, row in enumerate(pair_rows(6))], tokenizer)
    policy = PackedModel(model)
    config = EvalConfig(slice_by="gap", slice_edges=(0, 3, 9), resamples=100)
    found, expected = (evaluate_pairs(policy, None, data, config) for data in (lists, pairs))
    assert found.metrics == expected.metrics
    assert [part.n for part in found.slices] == [3, 3]
    assert found.slices == expected.slices
    assert found.fingerprint == held_out_pairs(lists).fingerprint
    np.testing.assert_array_equal(pair_logprobs(policy, lists).policy, found.pairs.policy)
    assert held_out_pairs(lists).summary.notes == ("2 of 8 lists are left out: all of their scores are equal",)


def test_labelled_and_empty_data_are_refused(loaded: tuple[Any, Any]) -> None:
    labelled = PreferenceData("unpaired", [Example((5,), ((6, 2),), label=True)])
    with pytest.raises(DataError, match="labelled completions"):
        evaluate_pairs(PackedModel(loaded[0]), None, labelled)
    with pytest.raises(DataError, match="labelled completions"):
        pair_logprobs(PackedModel(loaded[0]), labelled)
    tied = PreferenceData("listwise", [Example((5,), ((6, 2), (7, 2)), scores=(1.0, 1.0))])
    with pytest.raises(DataError, match="the scores of every list of the data are all equal"):
        evaluate_pairs(PackedModel(loaded[0]), None, tied)
    with pytest.raises(DataError, match="no pair to evaluate on"):
        evaluate_pairs(PackedModel(loaded[0]), None, PreferenceData("paired", []))


def test_the_section_refuses_what_cannot_be() -> None:
    for wrong in ({"token_budget": 0}, {"slice_edges": [1]}, {"slice_edges": [2, 1]}, {"slicey": "gap"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EvalConfig.model_validate(wrong)


_FREEING = """
import resource
import torch
from prefopt.models.scoring import _keep_freed_pages

torch.set_num_threads(1)
_keep_freed_pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    blocks = [torch.zeros(1 << 20, dtype=torch.uint8) for _ in range(16)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc learns from the blocks that it frees")
def test_the_memory_of_one_layer_serves_the_next() -> None:
    """Fifty layers, pages of one. Without it they are mapped fifty times, unless an import freed a large block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", _FREEING]
    faults = int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert faults < 2 * 16 * (1 << 20) // mmap.PAGESIZE
