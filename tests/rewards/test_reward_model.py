"""Reward models: what they read, in which batches, with which weights; and the loader of classifiers."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
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
    for label in (3, -1):
        with pytest.raises(RecipeError, match=f"label is {label}, but .* has 3: 0 'LABEL_0', 1 'LABEL_1'"):
            scorer(section(folder, label=label))


def expected_logits(folder: Path, attempt: Attempt) -> list[float]:
    """Return what transformers itself gives to a prompt and answer, tokenized as two texts or as one."""
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if loaded.config.model_type in ("llama", "gpt2"):
        given = {"input_ids": tokenizer(attempt.prompt + attempt.answer, return_tensors="pt")["input_ids"]}
    else:
        given = tokenizer(attempt.prompt, attempt.answer, return_tensors="pt")
    with torch.no_grad():
        found: list[float] = loaded(**given).logits[0].double().tolist()
    return found


@pytest.mark.parametrize(
    ("problem", "activation", "of"),
    [
        (None, None, "softmax"),
        ("single_label_classification", None, "softmax"),
        ("multi_label_classification", None, "sigmoid"),
        ("regression", None, "none"),
        ("multi_label_classification", "softmax", "softmax"),
        (None, "none", "none"),
    ],
)
def test_the_number_of_a_label_is_what_the_model_was_trained_for(
    tmp_path: Path, problem: str | None, activation: str | None, of: str
) -> None:
    names = {0: "bad", 1: "good", 2: "odd"}
    folder = save_reward_model(tmp_path / "labels", labels=3, problem_type=problem, id2label=names)
    attempt = said(" so", prompt="why?")
    logits = expected_logits(folder, attempt)
    whole = sum(math.exp(logit) for logit in logits)
    wanted = {
        "softmax": [math.exp(logit) / whole for logit in logits],
        "sigmoid": [1 / (1 + math.exp(-logit)) for logit in logits],
        "none": logits,
    }[of]
    more = {} if activation is None else {"activation": activation}
    for place, name in names.items():
        by_place, by_name = (scorer(section(folder, label=label, **more)) for label in (place, name))
        assert by_place.score([attempt]) == by_name.score([attempt]) == pytest.approx([wanted[place]], abs=1e-5)
        assert (by_place.low, by_place.high) == ((None, None) if of == "none" else (0.0, 1.0))
    with pytest.raises(RecipeError, match=r"label is 'god', but .*; did you mean 'good'"):
        scorer(section(folder, label="god"))


def test_a_model_of_one_number_has_no_labels_and_no_softmax(model: Path) -> None:
    with pytest.raises(RecipeError, match="gives one number: leave it out"):
        scorer(section(model, label=0))
    with pytest.raises(RecipeError, match="gives one number, whose softmax is 1"):
        scorer(section(model, activation="softmax"))
    number = one(section(model), chat("so"))
    assert one(section(model, activation="sigmoid"), chat("so")) == pytest.approx(1 / (1 + math.exp(-number)))


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


ENCODER = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
           "intermediate_size": 32, "num_labels": 1}  # fmt: skip
ENCODERS: dict[str, Any] = {
    "bert": lambda: BertConfig(**ENCODER, max_position_embeddings=64, pad_token_id=0),
    "roberta": lambda: RobertaConfig(**ENCODER, max_position_embeddings=66, pad_token_id=1, type_vocab_size=1),
    "deberta": lambda: DebertaV2Config(**ENCODER, max_position_embeddings=64, pad_token_id=0, type_vocab_size=0),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=1, n_heads=2, hidden_dim=32, num_labels=1, max_position_embeddings=64
    ),
}


def save_encoder(folder: Path, name: str) -> Path:
    """Save a random tiny encoder whose weights are large enough to matter, with a tokenizer that writes types."""
    torch.manual_seed(0)
    encoder = AutoModelForSequenceClassification.from_config(ENCODERS[name]())
    for weight in encoder.parameters():
        weight.data.normal_(0, 0.3)
    encoder.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        pair="<|im_start|> $A <|im_end|> $B:1 <|im_end|>:1",
        special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)],
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    if name == "bert":
        tokenizer.model_input_names.append("token_type_ids")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_reads_two_texts_and_gives_what_transformers_gives_to_each_alone(name: str, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / name, name)
    attempts = [said("so" * count, prompt="why?" * (1 + count % 3)) for count in (1, 9, 3, 20, 14)]
    found = scorer(section(folder)).score(attempts)
    expected = [expected_logits(folder, attempt)[0] for attempt in attempts]
    assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 2) for score in expected}) > 3, "scores that differ, or nothing is compared"
    assert one(section(folder), chat("so", "why?")) == pytest.approx(one(section(folder), said("so", prompt="why?")))


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_text_may_have_as_many_tokens_as_there_are_positions_behind_the_padding(name: str, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / name, name)
    fits, over = said("b" * 57, prompt="why?"), said("b" * 58, prompt="why?")  # and three special tokens
    score, failure = scorer(section(folder, max_length=500)).score([fits, over])
    assert score == pytest.approx(expected_logits(folder, fits)[0], abs=1e-5)
    assert isinstance(failure, ScoreFailure)
    assert "has 65 tokens, and the model reads 64 at most" in failure.reason


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_end_of_a_text_is_found_where_the_model_names_no_padding_and_the_tokenizer_the_end_of_text(
    kind: str, tmp_path: Path
) -> None:
    if kind == "llama":
        folder = save_reward_model(tmp_path / kind)
    else:
        torch.manual_seed(0)
        folder = tmp_path / kind
        small = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=64, num_labels=1)
        GPT2ForSequenceClassification(small).save_pretrained(folder)
    edit(folder / "config.json", pad_token_id=None)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    attempts = [said(" so" * count + "<|im_end|>", prompt="why?") for count in (1, 4, 2)]
    expected = [expected_logits(folder, attempt)[0] for attempt in attempts]
    found = scorer(section(folder))
    assert found.score(attempts) == pytest.approx(expected, abs=1e-5)
    assert found.score(attempts[:1]) == pytest.approx(expected[:1], abs=1e-5)
    early = said(" so", prompt="why?")
    assert found.score([early])[0] != pytest.approx(expected[0], abs=1e-3), "the end of text is read"


def test_padding_that_is_also_the_end_of_a_text_changes_no_score(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "padded")
    edit(folder / "config.json", pad_token_id=2)  # <|im_end|>
    found = scorer(section(folder))
    short, long = chat("a"), chat("a" * 30)
    assert found.score([short, long]) == pytest.approx([found.score([short])[0], found.score([long])[0]], abs=1e-5)
