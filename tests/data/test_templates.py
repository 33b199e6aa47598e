"""Five families of chat templates: the tokens are those of inference, whatever way the text was written."""

import pytest

from prefopt.data import load_preferences
from prefopt.data.chat import ChatTemplate
from prefopt.data.rows import Dialogue
from tests.data import toy_tokenizers as toys
from tests.data.chat_templates import CHATML, OPENS_AND_FORGETS, family

FAMILIES = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "qwen3": "<|im_end|>",
}
SYSTEM = {"role": "system", "content": "You like tea."}
ASKED = {"role": "user", "content": "what is the best tea?"}
TOOL = {"type": "function", "function": {"name": "brew", "parameters": {"type": "object", "properties": {}}}}


def said(text):
    return {"role": "assistant", "content": text}


CONVERSATIONS = {
    "one turn": [ASKED],
    "system": [SYSTEM, ASKED],
    "turns": [ASKED, said("Green."), {"role": "user", "content": "  why is it?\n"}],
    "system and turns": [SYSTEM, ASKED, said("I think green tea."), {"role": "user", "content": "why?"}],
}
# What the models' own templates write, by hand: prompt, and what follows up to the end of the turn.
GOLDEN = {
    "chatml": (
        "<|im_start|>system\nYou like tea.<|im_end|>\n<|im_start|>user\nwhat is the best tea?<|im_end|>\n"
        "<|im_start|>assistant\nI think green tea.<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "It is great.<|im_end|>",
    ),
    "llama3": (
        "<|begin|><|header|>system<|/header|>\n\nYou like tea.<|eot|><|header|>user<|/header|>\n\n"
        "what is the best tea?<|eot|><|header|>assistant<|/header|>\n\nI think green tea.<|eot|>"
        "<|header|>user<|/header|>\n\nwhy?<|eot|><|header|>assistant<|/header|>\n\n",
        "It is great.<|eot|>",
    ),
    "gemma": (
        "<bos><start_of_turn>user\nYou like tea.\n\nwhat is the best tea?<end_of_turn>\n<start_of_turn>model\n"
        "I think green tea.<end_of_turn>\n<start_of_turn>user\nwhy?<end_of_turn>\n<start_of_turn>model\n",
        "It is great.<end_of_turn>",
    ),
    "mistral": (
        "<s>[INST] what is the best tea? [/INST] I think green tea.</s>[INST] You like tea.\n\nwhy? [/INST]",
        " It is great.</s>",
    ),
    "qwen3": (
        "<|im_start|>system\nYou like tea.<|im_end|>\n<|im_start|>user\nwhat is the best tea?<|im_end|>\n"
        "<|im_start|>assistant\nI think green tea.<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<think>\n\n</think>\n\nIt is great.<|im_end|>",
    ),
}
# The same as ids of the toy tokenizers: the number of the prompt's tokens, and the completion's.
IDS = {
    "chatml": [44, 43, 86, 266, 378, 16, 2],
    "llama3": [46, 45, 88, 268, 380, 18, 4],
    "gemma": [49, 44, 87, 267, 379, 17, 3],
    "mistral": [53, 336, 289, 304, 428, 262, 2],
    "qwen3": [44, 30, 86, 327, 335, 32, 264, 30, 17, 86, 327, 335, 32, 264, 43, 86, 266, 378, 16, 2],
}


def load(tokenizer, prompt, chosen="It is great.", rejected="No.", *, tools=None, **options):
    row = {"prompt": prompt, "chosen": [said(chosen)], "rejected": [said(rejected)]}
    if tools:
        row["tools"] = tools
    return load_preferences([row], tokenizer, **options)


def ids_of(tokenizer, messages, **options):
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))


def upto(ids, end):
    return ids[: len(ids) - ids[::-1].index(end)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_becomes_the_text_and_tokens_written_down_by_hand(name):
    tokenizer = family(name)
    (example,) = load(tokenizer, CONVERSATIONS["system and turns"])
    prompt, answer = GOLDEN[name]
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(example.prompt) == asked
    whole = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    assert [*example.prompt, *example.completions[0]] == whole
    assert [len(example.prompt), *example.completions[0]] == IDS[name]


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_the_whole_conversation_with_one_bos_and_one_end(name, kind):
    tokenizer, prompt = family(name), CONVERSATIONS[kind]
    data = load(tokenizer, prompt)
    (example,) = data
    end = tokenizer.convert_tokens_to_ids(FAMILIES[name])
    assert list(example.prompt) == ids_of(tokenizer, prompt, add_generation_prompt=True)
    # Mistral's writes the system's text in front of the last message, which is a question only when it asks.
    moves = name == "mistral" and prompt[0] == SYSTEM
    for text, completion in zip(("It is great.", "No."), example.completions, strict=True):
        whole = upto(ids_of(tokenizer, [*prompt, said(text)]), end)
        assert completion == tuple(whole[-len(completion) :])
        assert moves or [*example.prompt, *completion] == whole
        assert completion.count(end) == 1
    if tokenizer.bos_token_id is not None:
        assert [*example.prompt, *example.completions[0]].count(tokenizer.bos_token_id) == 1
    assert (data.summary.boundary_fallbacks, data.summary.altered_prompts) == (0, moves)


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_written_by_layout_are_those_that_the_template_writes(name):
    texts = [
        "a",
        " \n b ",
        "<think>c</think>\n\nd",
        "e</think>f",
        "<tool_response>g</tool_response>",
        'h "i" \\n {{ j }}',
        "k\0l\1m",
    ]
    tokenizer = family(name)
    rows = [
        Dialogue(
            tuple(m if m["role"] == "system" else {**m, "content": text} for m in prompt), (said(other), said("x"))
        )
        for prompt in CONVERSATIONS.values()
        for text in texts
        for other in texts
    ]
    swift, slow = ChatTemplate(tokenizer), ChatTemplate(tokenizer)
    slow._follows = False
    assert swift.render(rows) == slow.render(rows)
    assert swift._follows
    followed = [row for row in rows if swift._by_layout(row) is not None]
    assert len(followed) == len(rows) or (name in ("mistral", "qwen3") and len(followed) > len(rows) // 4)


def test_a_template_that_looks_into_texts_is_run_for_each_of_them():
    for change in (
        "m['content'] | upper",
        "m['content'] | replace('a', 'b')",
        "m['content'] | tojson",
        "m['content'][:3]",
    ):
        tokenizer = toys.chatml(CHATML.replace("m['content']", f"({change})"))
        template = ChatTemplate(tokenizer)
        row = Dialogue(({"role": "user", "content": "a banana"},), (said("a banana"),))
        assert template._by_layout(row) is None
        assert str(template.render([row])[0]) == str(ChatTemplate(tokenizer)._by_template([row])[0])
    for change in ("(m['content'] ~ '!') | trim", "('' ~ m['content']) | upper"):  # behind a join that is not watched
        tokenizer = toys.chatml(CHATML.replace("m['content']", change))
        row = Dialogue(({"role": "user", "content": " a "},), (said(" b"),))
        rendered, exact = ChatTemplate(tokenizer).render([row]), ChatTemplate(tokenizer)._by_template([row])
        assert str(rendered[0]) == str(exact[0])


def test_a_layout_that_is_wrong_is_noticed_and_given_up():
    tokenizer = family("chatml")
    misled = ChatTemplate(tokenizer)
    rows = [Dialogue((ASKED,), (said("Green."),))]
    right = misled.render(rows)
    layout = misled._layouts[("user",)]
    misled._layouts[("user",)] = type(layout)(**{**vars(layout), "before": "!"})
    assert misled.render(rows) == right
    assert not misled._follows


@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_tools_are_passed_to_the_template(name):
    tokenizer = family(name)
    rendered = ChatTemplate(tokenizer).render(
        [Dialogue((ASKED,), (said("Green."),), tools=(TOOL,)), Dialogue((ASKED,), (said("Green."),))]
    )
    for found, tools in zip(rendered, ([TOOL], None), strict=True):
        assert found.prompt == tokenizer.apply_chat_template(
            [ASKED], tools=tools, tokenize=False, add_generation_prompt=True
        )
    assert "brew" in rendered[0].prompt


def test_thoughts_are_kept_as_the_template_writes_them_behind_the_prompt_that_is_asked():
    tokenizer = family("qwen3")
    (example,) = load(tokenizer, [ASKED], "<think>\nhot?\n</think>\n\nGreen.", "No.", thinking="keep")
    assert list(example.prompt) == ids_of(tokenizer, [ASKED], add_generation_prompt=True)
    assert tokenizer.decode(list(example.completions[0])) == "<think>\nhot?\n</think>\n\nGreen.<|im_end|>"
    assert tokenizer.decode(list(example.completions[1])) == "<think>\n\n</think>\n\nNo.<|im_end|>"


def test_dropped_thoughts_leave_the_prompt_of_a_model_that_is_told_not_to_think():
    tokenizer = family("qwen3")
    prompt = [ASKED, said("<think>\nearlier\n</think>\n\nTea."), {"role": "user", "content": "why?"}]
    (example,) = load(tokenizer, prompt, "<think>\nhot?\n</think>\n\nGreen.", "No.", thinking="drop")
    asked = ids_of(tokenizer, prompt, add_generation_prompt=True, enable_thinking=False)
    assert list(example.prompt) == asked
    assert "earlier" not in tokenizer.decode(asked)
    assert tokenizer.decode(asked).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert [tokenizer.decode(list(c)) for c in example.completions] == ["Green.<|im_end|>", "No.<|im_end|>"]


def test_thoughts_that_a_template_would_leave_out_are_kept_behind_the_thought_that_it_opens():
    tokenizer = toys.chatml(OPENS_AND_FORGETS)
    for chosen in ("<think>\nhot?\n</think>\nGreen.", "hot?\n</think>\nGreen."):
        (example,) = load(tokenizer, [ASKED], chosen, "<think>\ncold?\n</think>\nNo.")
        assert list(example.prompt) == ids_of(tokenizer, [ASKED], add_generation_prompt=True)
        assert tokenizer.decode(list(example.completions[0])) == "hot?\n</think>\nGreen.<|im_end|>"


def test_a_thought_without_an_end_or_an_answer_is_rejected_where_thoughts_are_dropped():
    rows = [
        {"prompt": [ASKED], "chosen": [said(chosen)], "rejected": [said("No.")]}
        for chosen in ("Yes.", "<think>hm", "<think>hm</think>", "<think>a</think>No.", "b</think> Yes.")
    ]
    data = load_preferences(rows, family("qwen3"), thinking="drop", max_rejected=1.0)
    assert data.summary.rejected == {"thought without an end": 1, "empty completion": 1, "chosen = rejected": 1}
    assert data[0].completions == data[1].completions


def test_thoughts_are_dropped_from_plain_text_and_from_keys_of_their_own():
    tokenizer = family("qwen3")
    plain = [{"prompt": "a:", "chosen": " <think>b</think>yes", "rejected": " no"}]
    (example,) = load_preferences(plain, tokenizer, thinking="drop")
    assert tokenizer.decode(list(example.completions[0])) == " yes<|im_end|>"
    chosen = {**said("Yes."), "reasoning_content": "b"}
    row = {"prompt": [ASKED], "chosen": [chosen], "rejected": [said("No.")]}
    kept, dropped = (load_preferences([row], tokenizer, thinking=thinking)[0] for thinking in ("keep", "drop"))
    assert tokenizer.decode(list(kept.completions[0])) == "<think>\nb\n</think>\n\nYes.<|im_end|>"
    assert tokenizer.decode(list(dropped.completions[0])) == "Yes.<|im_end|>"
