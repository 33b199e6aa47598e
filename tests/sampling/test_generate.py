"""Sampling with the training model: batched, streamed, reproducible, and leaving no trace."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import GenerationConfig

from prefopt.data import load_preferences
from prefopt.errors import DataError, ModelError, RecipeError
from prefopt.models import load_policy
from prefopt.sampling import end_of_turn_ids, generate, stream
from prefopt.sampling.prompts import encode_prompt
from tests.data.chat_templates import QWEN3
from tests.toys import byte_tokenizer

CHAT = [{"role": "user", "content": "hi"}]
PROMPTS: list[Any] = ["once", "a much longer prompt than the other", CHAT]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    """A policy whose adapter changes it, and whose distribution is not flat."""
    policy, tokenizer = load_policy(tiny_model, device="cpu", dtype="float32")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
        policy.get_base_model().get_output_embeddings().weight.normal_(std=0.15)
    return policy, tokenizer


def greedy_by_hand(model: Any, tokenizer: Any, prompt: Any, count: int) -> str:
    ids = encode_prompt(tokenizer, prompt)
    start = len(ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


def test_greedy_samples_of_a_padded_batch_are_those_of_full_passes_without_cache(loaded: tuple[Any, Any]) -> None:
    policy, tokenizer = loaded
    expected = [greedy_by_hand(policy, tokenizer, prompt, 12) for prompt in PROMPTS]
    assert generate(policy, tokenizer, PROMPTS, max_new_tokens=12, temperature=0) == expected
    assert len(set(expected)) == 3


def test_with_the_adapter_off_the_base_model_speaks(loaded: tuple[Any, Any]) -> None:
    policy, tokenizer = loaded
    with policy.disable_adapter():
        expected = [greedy_by_hand(policy, tokenizer, prompt, 8) for prompt in PROMPTS]
    off = generate(policy, tokenizer, PROMPTS, max_new_tokens=8, temperature=0, adapter=False)
    assert off == expected
    assert off != generate(policy, tokenizer, PROMPTS, max_new_tokens=8, temperature=0)


def test_the_same_seed_gives_the_same_texts_and_the_global_random_state_stays(loaded: tuple[Any, Any]) -> None:
    policy, tokenizer = loaded
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = generate(policy, tokenizer, PROMPTS, max_new_tokens=10, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert generate(policy, tokenizer, PROMPTS, max_new_tokens=10, seed=5) == first
    assert generate(policy, tokenizer, PROMPTS, max_new_tokens=10, seed=6) != first


def test_samples_follow_the_models_own_distribution(loaded: tuple[Any, Any]) -> None:
    """Also the tail: by default transformers would keep only the 50 likeliest tokens."""
    policy, tokenizer = loaded
    base = policy.get_base_model()
    kept = base.generation_config
    base.generation_config = GenerationConfig(
        repetition_penalty=5.0, do_sample=True, top_k=2, eos_token_id=2, pad_token_id=0
    )
    try:
        drawn = Counter(generate(policy, tokenizer, ["once"] * 1500, max_new_tokens=1, batch_size=1500))
    finally:
        base.generation_config = kept
    with torch.no_grad():
        share = policy(torch.tensor([encode_prompt(tokenizer, "once")])).logits[0, -1].softmax(-1)
    texts: dict[str, float] = Counter()
    for index, p in enumerate(share.tolist()):
        texts[tokenizer.decode([index], skip_special_tokens=True) if index < len(tokenizer) else ""] += p
    common = [text for text, p in texts.items() if p * 1500 > 5]
    assert len(common) > 30
    chi_squared = sum((drawn[text] - 1500 * texts[text]) ** 2 / (1500 * texts[text]) for text in common)
    assert chi_squared < 2 * len(common)  # its mean is len(common), its deviation sqrt(2 len(common))


def test_top_p_leaves_out_the_tail(loaded: tuple[Any, Any]) -> None:
    policy, tokenizer = loaded
    wide = generate(policy, tokenizer, ["once"] * 300, max_new_tokens=1, batch_size=300)
    narrow = generate(policy, tokenizer, ["once"] * 300, max_new_tokens=1, batch_size=300, top_p=0.3)
    assert len(set(narrow)) < len(set(wide)) / 2


def test_mode_cache_setting_and_generation_settings_are_as_before_also_after_an_error(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, tokenizer = loaded
    base = policy.get_base_model()
    policy.train()
    base.model.layers[0].eval()  # one part that somebody froze on purpose
    modes = [module.training for module in policy.modules()]
    monkeypatch.setattr(base.config, "use_cache", False)
    config, trainable = base.generation_config, [p.requires_grad for p in policy.parameters()]

    def check() -> None:
        assert [module.training for module in policy.modules()] == modes
        assert base.config.use_cache is False
        assert base.generation_config is config
        assert [p.requires_grad for p in policy.parameters()] == trainable
        assert not any(m.disable_adapters for m in policy.modules() if isinstance(m, BaseTunerLayer))

    generate(policy, tokenizer, ["a"], max_new_tokens=2, adapter=False)
    check()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(base.model, "forward", fail)
    with pytest.raises(RuntimeError, match="broken"):
        generate(policy, tokenizer, ["a"], max_new_tokens=2, adapter=False)
    check()


class Scripted(torch.nn.Module):
    """Stands in for the output layer: whatever goes in, the next token is the next one of the script."""

    def __init__(self, script: list[int], rows: int) -> None:
        super().__init__()
        self.script, self.rows, self.at = script, rows, 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*hidden.shape[:-1], self.rows)
        logits[..., self.script[self.at]] = 50.0
        self.at += 1
        return logits


def scripted(tiny_model: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    model, tokenizer = load_policy(tiny_model, device="cpu", dtype="float32", trainable=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(model, "lm_head", Scripted(ids, model.config.vocab_size))
    return model, tokenizer


def test_a_completion_stops_at_the_end_of_the_turn_and_holds_no_special_token(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = scripted(tiny_model, "fine <|endoftext|>thanks<|im_end|>and more", monkeypatch)
    assert generate(model, tokenizer, [CHAT], max_new_tokens=50) == ["fine thanks"]


def test_the_templates_end_of_turn_stops_where_the_model_names_another_end(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = scripted(tiny_model, "fine<|im_end|>and more", monkeypatch)
    tokenizer.eos_token = "<|endoftext|>"
    model.generation_config.eos_token_id = [0]
    assert end_of_turn_ids(model, tokenizer) == [0, 2]
    assert generate(model, tokenizer, [CHAT], max_new_tokens=50) == ["fine"]


def test_streamed_pieces_make_up_the_text_that_generate_gives(loaded: tuple[Any, Any]) -> None:
    policy, tokenizer = loaded
    pieces: list[str] = []
    text = stream(policy, tokenizer, CHAT, pieces.append, max_new_tokens=24, seed=3)
    assert text == "".join(pieces)
    assert [text] == generate(policy, tokenizer, [CHAT], max_new_tokens=24, seed=3)


def test_pieces_arrive_word_by_word(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = scripted(tiny_model, "one two café!<|im_end|>", monkeypatch)
    pieces: list[str] = []
    assert stream(model, tokenizer, CHAT, pieces.append, max_new_tokens=50) == "one two café!"
    assert pieces == ["one ", "two ", "café!"]


def test_a_prompt_of_token_ids_is_taken_as_it_is(loaded: tuple[Any, Any]) -> None:
    policy, tokenizer = loaded
    texts = generate(policy, tokenizer, PROMPTS, max_new_tokens=8, temperature=0)
    ids = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    assert generate(policy, tokenizer, ids, max_new_tokens=8, temperature=0) == texts


def test_no_prompts_give_no_texts(loaded: tuple[Any, Any]) -> None:
    assert generate(*loaded, [], max_new_tokens=3) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_setting_out_of_range_is_a_sentence(loaded: tuple[Any, Any], setting: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        generate(*loaded, ["a"], **{"max_new_tokens": 2, **setting})


def test_prompts_that_cannot_be_continued_are_sentences(loaded: tuple[Any, Any]) -> None:
    policy, tokenizer = loaded
    with pytest.raises(DataError, match="prompts is one text"):
        generate(policy, tokenizer, "text", max_new_tokens=2)
    with pytest.raises(DataError, match="prompt 1: the prompt is empty"):
        generate(policy, tokenizer, ["a", ""], max_new_tokens=2)
    with pytest.raises(DataError, match="prompt 0 has 500 tokens, so 20 new ones don't fit into the model's 512"):
        generate(policy, tokenizer, ["x" * 500], max_new_tokens=20)
    with pytest.raises(DataError, match="prompt 0: the chat template refuses"):
        generate(policy, tokenizer, [["not a message"]], max_new_tokens=2)
    plain = byte_tokenizer()
    plain.chat_template = None
    with pytest.raises(
        DataError, match="prompt 0: the prompt is a conversation and the tokenizer has no chat template"
    ):
        generate(policy, plain, [CHAT], max_new_tokens=2)


def test_switching_off_an_adapter_that_is_not_there_is_a_sentence(tiny_model: Path) -> None:
    model, tokenizer = load_policy(tiny_model, device="cpu", trainable=False)
    with pytest.raises(ModelError, match="no adapter that could be switched off"):
        generate(model, tokenizer, ["a"], max_new_tokens=2, adapter=False)


def test_a_model_trained_without_thoughts_is_asked_as_in_training(loaded: tuple[Any, Any]) -> None:
    policy, tokenizer = loaded[0], byte_tokenizer()
    tokenizer.chat_template = QWEN3
    rows = [{"prompt": CHAT, "chosen": reply("Yes."), "rejected": reply("No.")}]
    asked = {how: load_preferences(rows, tokenizer, thinking=how)[0].prompt for how in ("keep", "drop")}
    assert asked["keep"] != asked["drop"]
    said = {}
    for how, ids in asked.items():
        assert encode_prompt(tokenizer, CHAT, thinking=how) == list(ids)
        options = {"max_new_tokens": 8, "temperature": 0}
        (expected,) = generate(policy, tokenizer, [list(ids)], **options)
        assert generate(policy, tokenizer, [CHAT], thinking=how, **options) == [expected]
        assert stream(policy, tokenizer, CHAT, print, thinking=how, **options) == expected
        said[how] = expected
    assert said["keep"] != said["drop"]


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
