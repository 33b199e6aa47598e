"""A merged model gives the log-probs of the policy that was trained, in prefopt and in plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import prefopt
from prefopt.cli.merge import merge
from prefopt.errors import DataError, RecipeError, RunError
from prefopt.models import load_policy
from prefopt.models.adapters import adapter_disabled
from prefopt.workflow import merge as room
from prefopt.workflow.finished import load_run
from prefopt.workflow.merge import merge_run
from tests.models.loading import edit
from tests.toys import pair_rows, save_tiny_model, write_rows
from tests.workflow.conftest import Train


@pytest.mark.parametrize(
    "options",
    [
        "dtype: float32",
        "dtype: float32, quantization: nf4, lora: {r: 4}",
        "dtype: float32, quantization: int8, lora: {r: 4}",
        "dtype: float32, lora: {r: 4, use_dora: true}",
        "dtype: float32, lora: {r: 4, init_lora_weights: pissa}",
        "dtype: float32, peft: {peft_type: IA3}",
        "dtype: float32, lora: {r: 4, target_modules: [q_proj, lm_head]}",
    ],
    ids=["lora", "qlora nf4", "qlora int8", "dora", "pissa", "ia3", "head"],
)
def test_a_merged_model_is_the_policy_with_its_adapter_on(train: Train, tmp_path: Path, options: str) -> None:
    run = train(options)
    merged = merge_run(run, tmp_path / "out", rows=6)
    assert merged.quantized == ("quantization" in options)
    assert merged.dtype == "float32"
    assert merged.drift is not None
    assert merged.drift.completions == 12
    assert merged.drift.token_max < 2e-6
    assert merged.drift.completion_max < 1e-5

    policy, tokenizer, _ = load_run(run)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    own = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert own.chat_template == tokenizer.chat_template
    ids = own("hello there", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, policy(ids).logits, rtol=1e-5, atol=1e-5)
        with adapter_disabled(policy):
            assert (plain(ids).logits - policy(ids).logits).abs().max() > 1e-3, "training changed something"
    again, _ = load_policy(tmp_path / "out", trainable=False, device="cpu", dtype="float32")
    rows = pair_rows(3)
    scores = [prefopt.score_completions(model, tokenizer, rows) for model in (again, policy)]
    for found, expected in zip(*scores, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())


def test_a_tied_head_with_an_adapter_is_untied_and_the_embedding_stays(train: Train, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tied")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder / "config.json", tie_word_embeddings=True)
    run = train("dtype: float32, lora: {r: 4, target_modules: [lm_head]}", model=folder)
    merged = merge_run(run, tmp_path / "out", rows=4)
    assert merged.drift is not None
    assert merged.drift.token_max < 2e-6
    found = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(found["model.embed_tokens.weight"], weights["model.embed_tokens.weight"])
    assert not torch.equal(found["lm_head.weight"], weights["model.embed_tokens.weight"])


def test_rounding_to_sixteen_bits_is_measured(train: Train, tmp_path: Path) -> None:
    run = train("dtype: float32")
    drift = merge_run(run, tmp_path / "out", dtype="bfloat16", rows=6).drift
    assert drift is not None
    assert 1e-5 < drift.token_mean < 1e-2
    assert drift.token_mean < drift.token_max
    assert drift.completion_mean <= drift.completion_max
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_drift_is_what_the_written_files_differ_by(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge that leaves the adapter out is seen: the drift is that of the model without it."""
    run = train("dtype: float32")
    monkeypatch.setattr(room, "merged_model", lambda policy, adapter, config: policy.get_base_model() and _base(policy))
    drift = merge_run(run, tmp_path / "out", rows=6).drift
    assert drift is not None
    assert drift.completion_max > 0.1


def _base(policy: torch.nn.Module) -> torch.nn.Module:
    return policy.unload()  # type: ignore[operator, no-any-return]


def test_other_data_can_be_measured_or_none(train: Train, tmp_path: Path) -> None:
    run = train("dtype: float32")
    data = write_rows(tmp_path / "other.jsonl", pair_rows(3, seed=5))
    measured = merge_run(run, tmp_path / "a", data=str(data))
    assert measured.drift is not None
    assert measured.drift.completions == 6
    assert merge_run(run, tmp_path / "b", rows=0).drift is None
    ids = write_rows(tmp_path / "ids.jsonl", [{"prompt_ids": [1], "scores": [0.5]}])
    with pytest.raises(DataError, match=r"ids\.jsonl is not recognised.*Give other data by --data FILE"):
        merge_run(run, tmp_path / "d", data=str(ids))
    assert not (tmp_path / "d").exists()
    with pytest.raises(DataError, match=r"nowhere\.jsonl.*Give other data by --data FILE"):
        merge_run(run, tmp_path / "c", data=str(tmp_path / "nowhere.jsonl"))


def test_the_command_writes_a_card_and_says_the_drift(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merge(train("dtype: float32"), tmp_path / "out", rows=2)
    shown = capsys.readouterr().out
    assert "out: float32" in shown
    assert "drift over 4 completions" in shown
    assert "The adapter was added to the weights in float32" in (tmp_path / "out/README.md").read_text()
    merge(train("dtype: float32"), tmp_path / "again", rows=2, as_json=True)
    assert json.loads(capsys.readouterr().out)["drift"]["completions"] == 4


def test_what_can_not_be_merged_is_a_sentence(train: Train, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    run = train("dtype: float32")
    with pytest.raises(RunError, match="taken is not empty"):
        merge_run(run, tmp_path / "taken")
    with pytest.raises(RunError, match="is no run directory"):
        merge_run(tmp_path, tmp_path / "out")
    with pytest.raises(RecipeError, match=r"dtype is 'bf16'; it must be one of auto, bfloat16"):
        merge_run(run, tmp_path / "out", dtype="bf16")
    full = train("lora: null")
    with pytest.raises(RunError, match="trained all weights, so there is nothing to merge"):
        merge_run(full, tmp_path / "out")
