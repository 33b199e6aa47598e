"""Reward models: what they read, in which batches, with which weights; and the loader of classifiers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from prefopt.errors import ModelError, RecipeError
from prefopt.rewards import Attempt, ScoreFailure
from tests.models.loading import edit
from tests.rewards.attempts import one, said, scorer
from tests.toys import SPECIAL, byte_tokenizer

VOCABULARY = len(SPECIAL) + 256


def save_reward_model(folder: Path, *, labels: int = 1, **options: Any) -> Path:
    """Save a random tiny Llama with a head of so many numbers, and its tokenizer with ChatML's template."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, num_labels=labels, **options,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward"))


def section(model: Path, **options: Any) -> dict[str, Any]:
    return {"kind": "model", "name": str(model), "dtype": "float32", "device": "cpu", **options}


def chat(answer: str, question: str = "why?") -> Attempt:
    return said(answer, prompt=({"role": "user", "content": question},))


def alone(model: Path, text: str) -> float:
    """Return what transformers itself gives to a text that is tokenized as it stands."""
    loaded = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    ids = byte_tokenizer()(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return float(loaded(input_ids=ids).logits[0, 0])


def test_a_conversation_is_written_by_the_template_once(model: Path) -> None:
    text = "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\nso<|im_end|>\n"
    assert one(section(model), chat("so")) == pytest.approx(alone(model, text), abs=1e-5)


def test_a_plain_prompt_and_its_completion_are_one_text(model: Path) -> None:
    assert one(section(model), said(" so", prompt="why?")) == pytest.approx(alone(model, "why? so"), abs=1e-5)


def test_a_batch_changes_scores_by_rounding_only_and_texts_alone_not_at_all(model: Path) -> None:
    attempts = [chat("x" * (1 + 7 * number % 50), str(number % 3)) for number in range(20)]
    batched = scorer(section(model, token_budget=600)).score(attempts)
    single = scorer(section(model, token_budget=0))
    each = [single.score([attempt])[0] for attempt in attempts]
    assert batched == pytest.approx(each, abs=1e-5)
    assert single.score(attempts) == each
    assert single.score(attempts[::-1]) == each[::-1]


def test_equal_texts_are_computed_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    found = scorer(section(model))
    real = LlamaForSequenceClassification.forward

    def counted(self: Any, *, input_ids: torch.Tensor, **more: Any) -> Any:
        sizes.append(input_ids.shape[0])
        return real(self, input_ids=input_ids, **more)

    monkeypatch.setattr(LlamaForSequenceClassification, "forward", counted)
    first, second, third = found.score([chat("a"), chat("b"), chat("a")])
    assert first == third != second
    assert sum(sizes) == 2


def test_a_label_of_several_is_scored_by_its_probability(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "labels", labels=3)
    probabilities = [one(section(folder, label=label), chat("a")) for label in range(3)]
    assert sum(probabilities) == pytest.approx(1.0)
    assert scorer(section(folder, label=1)).high == 1.0
    with pytest.raises(ModelError, match="gives 3 numbers: write which is the score as label, 0 to 2"):
        scorer(section(folder))
    with pytest.raises(RecipeError, match="label is 3"):
        scorer(section(folder, label=3))


def test_a_text_that_is_too_long_or_a_template_that_refuses_is_that_completions_failure(model: Path) -> None:
    long, odd, fine = scorer(section(model)).score([chat("x" * 300), said("a", prompt=({"role": "user"},)), chat("so")])
    assert isinstance(long, ScoreFailure)
    assert "tokens, and the model reads 256 at most" in long.reason
    assert isinstance(odd, ScoreFailure | float)  # ChatML writes nothing for what is not there
    assert isinstance(fine, float)
    assert "reads 10 at most" in one(section(model, max_length=10), chat("so"))


def test_a_model_without_weights_for_a_head_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks 1 of the weights .*score.weight.* its scores would be random"):
        scorer(section(tiny_model))


def test_the_head_computes_in_float32_behind_a_backbone_of_16_bits(model: Path) -> None:
    attempts = [chat(f"{number}") for number in range(40)]
    scores = scorer(section(model, dtype="bfloat16")).score(attempts)
    exact = scorer(section(model)).score(attempts)
    assert scores == pytest.approx(exact, abs=0.05)
    rounded = torch.tensor(scores, dtype=torch.float64)
    assert bool((rounded.bfloat16().double() != rounded).any())


def test_a_quantized_reward_model_keeps_its_head(model: Path) -> None:
    attempts = [chat("so"), chat("because it is")]
    exact = scorer(section(model)).score(attempts)
    small = scorer(section(model, quantization="int8")).score(attempts)
    assert small != exact
    assert small == pytest.approx(exact, abs=0.05)
    coarse = scorer(section(model, quantization="nf4"))
    assert coarse.score(attempts) == coarse.score(attempts)


def test_an_encoder_reads_two_texts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, num_labels=1,
    )  # fmt: skip
    folder = tmp_path / "bert"
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    chatting, plain = scorer(section(folder)).score([chat("so"), said("so", prompt="why?")])
    assert chatting == plain
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = float(loaded(**tokenizer("why?", "so", return_tensors="pt")).logits[0, 0])
    assert plain == pytest.approx(expected, abs=1e-5)


def test_padding_that_is_also_the_end_of_a_text_changes_no_score(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "padded")
    edit(folder / "config.json", pad_token_id=2)  # <|im_end|>
    found = scorer(section(folder))
    short, long = chat("a"), chat("a" * 30)
    assert found.score([short, long]) == pytest.approx([found.score([short])[0], found.score([long])[0]], abs=1e-5)
