"""Tokenizing word by word gives the very tokens of the whole text, or isn't done."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.data.packed import holds, pack, unpack
from prefopt.data.words import Words, cuts_at_spaces
from tests.data import toy_tokenizers as toys

KINDS = ["chatml", "llama", "gpt2", "gemma", "phi"]
PIECES = ["the", " ", "  ", "\n", "\t", "tea", "é", "中", "🍵", "'s", "12", "...", "<|im_end|>", "<|im_start|>"]
PIECES += ["\x1c", "\u0301", "<|eot|>", "<", "|>", "Assistant:", "a", "\0", "\1", "\u00a0"]


def changed(tokenizer, change):
    """Return the tokenizer with another description of its backend."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    change(description)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)), eos_token="<|im_end|>")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=20), max_size=8))
def test_word_by_word_gives_the_tokens_of_the_whole_text(kind, texts):
    tokenizer = getattr(toys, kind)()
    words = Words(tokenizer)
    assert words.cuts
    words.cut_before(toys.SPECIALS[kind])
    for _ in range(2):  # the second time from what is known
        assert [list(unpack(ids)) for ids in words.packed(texts)] == [
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts
        ]


def test_forgetting_what_is_known_changes_nothing(monkeypatch):
    monkeypatch.setattr("prefopt.data.words.KNOWN", 5)
    texts = [f"the answer is {i} and the tea is  green" for i in range(20)]
    words = Words(toys.chatml())
    for _ in range(3):
        assert words.packed(texts) == words.whole(texts)
        assert len(words._known) <= 12


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(normalizer={"type": "Lowercase"}),
        lambda d: d.update(normalizer={"type": "Prepend", "prepend": "▁"}),
        lambda d: d["model"].update(dropout=0.1),
        lambda d: d["model"].update(end_of_word_suffix="</w>"),
        lambda d: d.update(pre_tokenizer=None),
        lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\s?\w+ \w+|.+"}),
        lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior="MergedWithNext"),
        lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda d: d["added_tokens"][0].update(rstrip=True),
        lambda d: d["added_tokens"][0].update(content="a b"),
    ],
)
def test_a_tokenizer_with_a_part_that_is_not_known_is_not_cut(change):
    def apply(description):
        change(description)
        if description["added_tokens"][0]["content"] == "a b":
            description["model"]["vocab"]["a b"] = description["model"]["vocab"].pop("<|endoftext|>")

    tokenizer = changed(toys.chatml(), apply)
    assert not cuts_at_spaces(tokenizer)
    text = "the best tea is green tea"
    tokenizer.backend_tokenizer.model.dropout = None  # which gives something else each time
    assert Words(tokenizer).packed([text]) == Words(tokenizer).whole([text])


def test_sentencepiece_like_tokenizers_are_not_cut_and_nfc_is_harmless():
    assert not cuts_at_spaces(toys.sentencepiece_like(None))
    composed = Tokenizer.from_str(toys.chatml().backend_tokenizer.to_str())
    composed.normalizer = normalizers.NFC()
    composed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=composed, eos_token="<|im_end|>")
    assert cuts_at_spaces(tokenizer)
    texts = ["e\u0301 a \u0301b  c", "café e\u0301"]
    assert Words(tokenizer).packed(texts) == Words(tokenizer).whole(texts)


def test_a_mark_that_may_be_part_of_another_token_is_no_place_to_cut():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(toys.chatml().backend_tokenizer.to_str()), eos_token="<|im_end|>"
    )
    tokenizer.add_tokens([AddedToken("<|im_end|>\n", normalized=False), AddedToken("tea<|im_", normalized=False)])
    words = Words(tokenizer)
    words.cut_before(["<|im_end|>", "<|im_start|>"])
    texts = ["a<|im_end|>\nb", "tea<|im_start|>c", "tea<|im_end|>"]
    assert words._marks == []
    assert words.packed(texts) == words.whole(texts)


def test_a_packed_token_is_found_at_its_place_only():
    ids = pack([256, 1, 65536])
    assert unpack(ids) == (256, 1, 65536)
    assert holds(ids, pack([1]))
    assert not holds(pack([256, 256]), pack([1 << 24]))
    assert not holds(b"", pack([1]))
