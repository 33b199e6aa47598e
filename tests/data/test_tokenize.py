"""Token ids against the tokenizer's own rendering of the whole conversation, template by template."""

import random

import pytest

from prefopt.data import load_preferences, tokenize_rows
from prefopt.data.chat import ChatTemplate
from prefopt.data.packed import unpack
from prefopt.data.rows import Dialogue, Document, RowError
from prefopt.data.tokenize import Encoder
from prefopt.errors import DataError
from tests.data import toy_tokenizers as toys

ASKED = [{"role": "user", "content": "what is the best tea?"}]
ENDS = {"chatml": "<|im_end|>", "llama": "<|eot|>", "gemma": "<end_of_turn>", "mistral": "</s>", "phi": "<|end|>"}


def answer(text):
    return {"role": "assistant", "content": text}


def ids_of(tokenizer, messages, **options):
    found = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    return list(found)


@pytest.mark.parametrize("kind", list(ENDS))
def test_prompt_and_completion_are_the_tokens_of_the_whole_conversation_up_to_its_end_of_turn(kind):
    tokenizer = getattr(toys, kind)()
    prompt = [*ASKED, answer("I think green tea."), {"role": "user", "content": "  why?  "}]
    (example,) = tokenize_rows(
        [{"prompt": prompt, "chosen": [answer("It is great.")], "rejected": [answer("No.")]}], tokenizer
    )
    end = tokenizer.convert_tokens_to_ids(ENDS[kind])
    assert list(example.prompt) == ids_of(tokenizer, prompt, add_generation_prompt=True)
    for text, completion in zip(("It is great.", "No."), example.completions, strict=True):
        whole = ids_of(tokenizer, [*prompt, answer(text)])
        last = len(whole) - 1 - whole[::-1].index(end)
        assert [*example.prompt, *completion] == whole[: last + 1]
        assert completion.count(end) == 1
        assert completion[-1] == end
        assert text in tokenizer.decode(list(completion))


def test_bos_stands_once_where_template_and_tokenizer_both_have_one():
    tokenizer = toys.llama()
    (chat, plain, own) = tokenize_rows(
        [
            {"prompt": ASKED, "completion": [answer("Yes.")]},
            {"prompt": "The answer", "completion": " is"},
            {"prompt": "<|begin|>The answer", "completion": " is"},
        ],
        tokenizer,
    )
    bos = tokenizer.bos_token_id
    for example in (chat, plain, own):
        assert example.prompt[0] == bos
        assert example.prompt.count(bos) == 1
    assert plain.prompt == own.prompt
    assert list(plain.prompt) == tokenizer("The answer")["input_ids"]


def test_a_bos_inside_the_prompts_text_is_rejected_as_doubled():
    with pytest.raises(DataError, match="doubled BOS"):
        tokenize_rows([{"prompt": "<|begin|><|begin|>The", "completion": " answer"}], toys.llama())


def test_a_document_ends_with_eos_exactly_once():
    tokenizer = toys.llama()
    bare, ended = tokenize_rows(
        [{"prompt": "The", "completion": " answer"}, {"prompt": "The", "completion": " answer<|eot|>"}], tokenizer
    )
    assert bare.completions == ended.completions
    assert bare.completions[0].count(tokenizer.eos_token_id) == 1
    assert list(bare.prompt + bare.completions[0][:-1]) == tokenizer("The answer")["input_ids"]


def test_an_end_of_turn_inside_a_completion_is_rejected():
    row = {"prompt": ASKED, "completion": [answer("Yes.<|im_end|>\n")]}
    with pytest.raises(DataError, match=r"Row 0 can't be scored: end-of-turn inside the completion: .*<\|im_end\|>"):
        tokenize_rows([row], toys.chatml())
    with pytest.raises(DataError, match="end-of-turn inside"):
        tokenize_rows([{"prompt": "a", "completion": "b<|im_end|>c"}], toys.chatml())


def test_a_token_over_the_boundary_is_cut_and_the_row_counted():
    tokenizer = toys.chatml()
    merged = tokenizer("\n\n")["input_ids"]
    assert len(merged) == 1  # what the template ends with merges with what the answer begins with
    rows = [{"prompt": ASKED, "chosen": [answer("\nYes.")], "rejected": [answer("No.")]}]
    data = load_preferences(rows, tokenizer)
    assert data.summary.boundary_fallbacks == 1
    assert list(data[0].prompt) == ids_of(tokenizer, ASKED, add_generation_prompt=True)
    assert list(data[0].completions[0]) == tokenizer("\n")["input_ids"] + tokenizer("Yes.<|im_end|>")["input_ids"]
    whole = tokenizer.apply_chat_template([*ASKED, answer("\nYes.")], tokenize=False).rstrip("\n")
    assert tokenizer.decode([*data[0].prompt, *data[0].completions[0]]) == whole


def test_a_prompt_that_is_tokenized_otherwise_when_text_follows_keeps_its_own_tokens():
    tokenizer = toys.gpt2()
    data = load_preferences([{"prompt": ASKED, "chosen": [answer("Yes.")], "rejected": [answer("No.")]}], tokenizer)
    asked = ids_of(tokenizer, ASKED, add_generation_prompt=True)
    assert ids_of(tokenizer, [*ASKED, answer("Yes.")])[: len(asked)] != asked
    assert list(data[0].prompt) == asked
    assert list(data[0].completions[0]) == tokenizer("Yes.<|eot|>")["input_ids"]
    assert data.summary.boundary_fallbacks == 1


@pytest.mark.parametrize("make", [toys.chatml, lambda: toys.sentencepiece_like(None)], ids=["bytes", "sentencepiece"])
def test_any_cut_of_a_text_decodes_to_the_text(make):
    tokenizer = make()
    draw = random.Random(4)
    text = toys.TEXT[0] + toys.TEXT[1].replace("\n", " ") + " café 🍵 tea"
    rows = [Document(text[:cut], (text[cut:],)) for cut in sorted(draw.sample(range(1, len(text)), 80))]
    fallbacks = 0
    for row, encoded in zip(rows, Encoder(tokenizer).encode(rows), strict=True):
        if isinstance(encoded, RowError):
            assert encoded.reason == "empty completion" or not row.completions[0].strip()
            continue
        fallbacks += encoded.fallback
        prompt, completion = list(unpack(encoded.prompt)), list(unpack(encoded.completions[0]))
        assert prompt[-3:] == tokenizer(row.prompt)["input_ids"][-3:]
        decoded = tokenizer.decode(prompt + completion, skip_special_tokens=False)
        assert (
            decoded.replace(" ", "")
            == (tokenizer.bos_token or "").replace(" ", "") + text.replace(" ", "") + tokenizer.eos_token
        )
    assert fallbacks > 10


def test_a_template_that_drops_earlier_thoughts_keeps_the_prompt_that_is_asked():
    tokenizer = toys.chatml(toys.THINKING)
    prompt = [*ASKED, answer("<think>tea</think>Green."), {"role": "user", "content": "why?"}]
    data = load_preferences([{"prompt": prompt, "chosen": [answer("Great.")], "rejected": [answer("No.")]}], tokenizer)
    assert list(data[0].prompt) == ids_of(tokenizer, prompt, add_generation_prompt=True)
    assert tokenizer.decode(list(data[0].completions[0])) == "<think>\n\n</think>\n\nGreat.<|im_end|>"
    assert data.summary.altered_prompts == 0


def test_a_template_that_opens_a_thought_only_when_asked_is_cut_before_the_thought_and_counted():
    tokenizer = toys.chatml(toys.OPENS_THINKING)
    data = load_preferences([{"prompt": ASKED, "chosen": [answer("Great.")], "rejected": [answer("No.")]}], tokenizer)
    assert tokenizer.decode(list(data[0].prompt)).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(list(data[0].completions[1])) == "No.<|im_end|>"
    assert data.summary.altered_prompts == 1


def test_a_template_without_an_end_of_turn_ends_with_eos():
    tokenizer = toys.chatml(toys.WORDS_ONLY)
    (example,) = tokenize_rows([{"prompt": ASKED, "completion": [answer("Great.")]}], tokenizer)
    assert tokenizer.decode(list(example.prompt)) == "user: what is the best tea?\nassistant:"
    assert tokenizer.decode(list(example.completions[0])) == " Great.<|im_end|>"


def test_a_template_that_refuses_a_row_rejects_that_row_only():
    rows = [
        Dialogue(tuple(ASKED), (answer("Yes."),)),
        Dialogue(({"role": "system", "content": "x"}, *ASKED), (answer("Yes."),)),
    ]
    good, bad = Encoder(toys.gemma()).encode(rows)
    assert not isinstance(good, RowError)
    assert isinstance(bad, RowError)
    assert str(bad) == "refused by the chat template: System role not supported"


def test_a_tokenizer_without_chat_template_says_what_to_do_about_conversations():
    with pytest.raises(DataError, match=r"has no chat template.*instruct version"):
        tokenize_rows([{"prompt": ASKED, "completion": [answer("Yes.")]}], toys.chatml(None))


def test_max_length_counts_prompt_and_longest_completion():
    tokenizer = toys.chatml()
    row = {"prompt": ASKED, "chosen": [answer("Yes.")], "rejected": [answer("No, never, I do not like it.")]}
    (example,) = tokenize_rows([row], tokenizer)
    needed = len(example.prompt) + len(example.completions[1])
    assert tokenize_rows([row], tokenizer, max_length=needed) == [example]
    with pytest.raises(DataError, match=rf"longer than max_length: {needed} tokens"):
        tokenize_rows([row], tokenizer, max_length=needed - 1)
    with pytest.raises(DataError, match="prompt longer than max_length"):
        tokenize_rows([row], tokenizer, max_length=len(example.prompt))


def test_an_empty_prompt_needs_a_bos():
    (example,) = tokenize_rows([{"prompt": "", "completion": "The answer"}], toys.llama())
    assert example.prompt == (toys.llama().bos_token_id,)
    with pytest.raises(DataError, match="empty prompt"):
        tokenize_rows([{"prompt": "", "completion": "The answer"}], toys.chatml())


def test_plain_strings_as_chat_equal_the_conversation():
    tokenizer = toys.llama()
    plain = tokenize_rows(
        [{"prompt": "what is the best tea?", "chosen": "Green.", "rejected": "None."}], tokenizer, as_chat=True
    )
    turns = tokenize_rows([{"prompt": ASKED, "chosen": [answer("Green.")], "rejected": [answer("None.")]}], tokenizer)
    assert plain == turns


def test_a_batch_gives_what_each_row_gives_alone():
    draw = random.Random(1)
    words = toys.TEXT[0].split()
    tokenizer = toys.llama()
    rows = [
        Dialogue(
            ({"role": "user", "content": " ".join(draw.choices(words, k=5))},),
            (answer("\n" * draw.randint(0, 2) + draw.choice(words)),),
        )
        for _ in range(150)
    ]
    alone = [Encoder(tokenizer).encode([row])[0] for row in rows]
    assert Encoder(tokenizer).encode(rows) == alone


def test_a_cut_that_changes_tokens_is_noticed_and_given_up():
    tokenizer = toys.llama()
    rows = [Dialogue(tuple(ASKED), (answer(text),)) for text in ("Yes.", "\nNo.")]
    sound = Encoder(tokenizer).encode(rows)
    misled = Encoder(tokenizer)
    misled._chat = ChatTemplate(tokenizer)
    misled._chat.openers = ("ea?",)  # no special token: what comes before it does touch it
    assert misled.encode(rows) == sound
    assert not misled.shortcuts.cuts


def test_one_row_with_several_completions_keeps_their_order():
    (example,) = tokenize_rows([{"prompt": "The", "completions": [" answer", " film", " answer"]}], toys.chatml())
    assert [toys.chatml().decode(list(c)) for c in example.completions] == [
        " answer<|im_end|>",
        " film<|im_end|>",
        " answer<|im_end|>",
    ]
