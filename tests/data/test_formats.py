"""Fixture rows for each public schema, with its traps: what is recognised, and how each row is cut."""

import pytest

from prefopt.data import DataOptions, load_preferences
from prefopt.data.formats import recognise
from prefopt.data.rows import Dialogue, Document, RowError, normalise
from prefopt.errors import DataError
from tests.data import toy_tokenizers as toys

USER = {"role": "user", "content": "what is the best tea?"}
GREEN = {"role": "assistant", "content": "Green tea."}
NONE = {"role": "assistant", "content": "None."}
SYSTEM = {"role": "system", "content": "Be brief."}

EXPLICIT = {"prompt": "What is the best tea?\n", "chosen": "Green tea.", "rejected": "None.", "score": 4.5}
HUMAN = "\n\nHuman: what is the best tea?\n\nAssistant: Hot or cold?\n\nHuman: hot\n\nAssistant:"
TRANSCRIPT = {"chosen": HUMAN + " I think green.", "rejected": HUMAN + " I think none."}
ULTRAFEEDBACK = {
    "prompt": "what is the best tea?",
    "prompt_id": "a1",
    "chosen": [USER, GREEN],
    "rejected": [USER, NONE],
    "messages": [USER, GREEN],
    "score_chosen": 8.5,
}
LABELLED = {"prompt": "The tea", "completion": " is green.", "label": True}


def read(row, **options):
    own = DataOptions(**options)
    return normalise(row, recognise([row], own, source="rows"), as_chat=own.as_chat)


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        (EXPLICIT, "pairs", Document("What is the best tea?\n", ("Green tea.", "None."))),
        (TRANSCRIPT, "implicit_pairs", Document(HUMAN, (" I think green.", " I think none."))),
        (
            {"chosen": "The best tea is green", "rejected": "The best tea is gray"},
            "implicit_pairs",
            Document("The best tea is", (" green", " gray")),
        ),
        (
            {"chosen": "Q: tea?\nA\nYes, it is", "rejected": "Q: tea?\nA\nYeah"},
            "implicit_pairs",
            Document("Q: tea?\nA\n", ("Yes, it is", "Yeah")),
        ),
        (
            {"chosen": "I like tea", "rejected": "I like tea and more"},
            "implicit_pairs",
            Document("I like", (" tea", " tea and more")),
        ),
        (
            {"prompt": "The tea", "chosen": "The tea is green", "rejected": "The tea is gray"},
            "pairs",
            Document("The tea", (" is green", " is gray")),
        ),
        (LABELLED, "labels", Document("The tea", (" is green.",), True)),
        ({**LABELLED, "label": 0}, "labels", Document("The tea", (" is green.",), False)),
        (ULTRAFEEDBACK, "pairs", Dialogue((USER,), (GREEN, NONE))),
        ({"prompt": [USER], "chosen": [GREEN], "rejected": [NONE]}, "pairs", Dialogue((USER,), (GREEN, NONE))),
        (
            {"prompt": [USER], "chosen": [USER, GREEN], "rejected": [USER, NONE]},
            "pairs",
            Dialogue((USER,), (GREEN, NONE)),
        ),
        (
            {"prompt": [SYSTEM], "chosen": [USER, GREEN], "rejected": [USER, NONE]},
            "pairs",
            Dialogue((SYSTEM, USER), (GREEN, NONE)),
        ),
        ({"prompt": [USER], "chosen": "Green tea.", "rejected": "None."}, "pairs", Dialogue((USER,), (GREEN, NONE))),
        ({"prompt": USER["content"], "chosen": [GREEN], "rejected": [NONE]}, "pairs", Dialogue((USER,), (GREEN, NONE))),
        (
            {"chosen": [SYSTEM, USER, GREEN], "rejected": [SYSTEM, USER, NONE]},
            "implicit_pairs",
            Dialogue((SYSTEM, USER), (GREEN, NONE)),
        ),
        ({"prompt": [USER], "completion": [GREEN], "label": False}, "labels", Dialogue((USER,), (GREEN,), False)),
        (
            {"prompt": [USER], "chosen": [{**GREEN, "name": None}], "rejected": [NONE]},  # as Parquet fills it
            "pairs",
            Dialogue((USER,), (GREEN, NONE)),
        ),
    ],
)
def test_a_row_is_recognised_and_cut_where_its_prompt_ends(row, name, expected):
    format_ = recognise([row], DataOptions(), source="rows")
    assert format_.name == name
    assert "columns" in format_.why
    assert normalise(row, format_) == expected


def test_the_reason_names_what_was_seen():
    assert (
        "begin with the prompt"
        in recognise([{"prompt": "a", "chosen": "a b", "rejected": "a c"}], DataOptions(), source="rows").why
    )
    assert "transcripts" in recognise([TRANSCRIPT], DataOptions(), source="rows").why
    assert "messages" in recognise([ULTRAFEEDBACK], DataOptions(), source="rows").why


def test_strings_as_chat_become_turns_and_a_transcript_all_of_its_turns():
    assert read(EXPLICIT, as_chat=True) == Dialogue(
        ({"role": "user", "content": "What is the best tea?\n"},), (GREEN, NONE)
    )
    assert read(TRANSCRIPT, as_chat=True) == Dialogue(
        (USER, {"role": "assistant", "content": "Hot or cold?"}, {"role": "user", "content": "hot"}),
        ({"role": "assistant", "content": "I think green."}, {"role": "assistant", "content": "I think none."}),
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "field missing: 'prompt' is null"),
        ({"prompt": "p", "chosen": "a"}, "field missing: 'rejected'"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "wrong type: a completion is of type int"),
        ({"prompt": 3, "chosen": [GREEN], "rejected": [NONE]}, "wrong type: the prompt is of type int"),
        ({"prompt": {"a": 1}, "chosen": "a", "rejected": "b"}, "wrong type: the prompt is of type dict"),
        ({"prompt": "p", "chosen": "  \n", "rejected": "b"}, "empty completion"),
        ({"prompt": "p", "chosen": [], "rejected": [NONE]}, "empty completion"),
        ({"prompt": [USER], "chosen": [{**GREEN, "content": " "}], "rejected": [NONE]}, "empty completion"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen = rejected"),
        ({"prompt": [USER], "chosen": [GREEN], "rejected": [GREEN]}, "chosen = rejected"),
        (
            {"prompt": [{"role": "human", "content": "x"}], "chosen": [GREEN], "rejected": [NONE]},
            "unknown role: 'human'",
        ),
        (
            {"prompt": [USER], "chosen": ["Green"], "rejected": [NONE]},
            "wrong type: a message of a completion is of type str",
        ),
        ({"prompt": [USER], "chosen": [{"role": "assistant"}], "rejected": [NONE]}, "field missing: a message of"),
        ({"prompt": [USER], "chosen": [{**GREEN, "content": [{"type": "image"}]}], "rejected": [NONE]}, "wrong type"),
        ({"prompt": [USER], "chosen": [GREEN, USER, GREEN], "rejected": [NONE]}, "several turns in a completion"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [NONE]}, "empty completion: it repeats the prompt"),
        ({"prompt": [SYSTEM], "chosen": [USER], "rejected": [NONE]}, "completion is no assistant turn"),
        ({"prompt": [USER, GREEN], "chosen": [GREEN], "rejected": [NONE]}, "prompt ends with an assistant turn"),
        ({"prompt": [], "chosen": [GREEN], "rejected": [NONE]}, "empty prompt"),
        ({"prompt": "another", "chosen": [USER, GREEN], "rejected": [USER, NONE]}, "different prompts"),
        ({"prompt": "p", "chosen": "half \ud83c", "rejected": "b"}, "not Unicode"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row, reason):
    format_ = recognise([{"prompt": "p", "chosen": "a", "rejected": "b"}], DataOptions(), source="rows")
    with pytest.raises(RowError) as caught:
        normalise(row, format_)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("label", [2, "true", -1, [True], 0.5])
def test_a_label_is_a_truth_value_or_nothing(label):
    with pytest.raises(RowError, match="wrong type: 'label'"):
        read({**LABELLED, "label": label})


def test_transcripts_that_differ_before_the_last_answer_are_rejected():
    other = {**TRANSCRIPT, "rejected": TRANSCRIPT["rejected"].replace("hot", "cold")}
    with pytest.raises(RowError, match="different prompts"):
        read(other)


def test_columns_are_renamed_and_a_wrong_name_is_answered_with_the_nearest():
    row = {"question": "p", "good": "a", "rejected": "b"}
    assert read(row, columns={"prompt": "question", "chosen": "good"}) == Document("p", ("a", "b"))
    with pytest.raises(DataError, match=r"'prompt' is in the column 'questoin'.*did you mean 'question'"):
        read(row, columns={"prompt": "questoin"})


def test_an_unknown_set_is_refused_with_columns_formats_and_the_nearest():
    with pytest.raises(DataError) as caught:
        read({"prompt": "p", "choosen": "a", "rejected": "b"})
    sentence = str(caught.value)
    for part in (
        "'choosen', 'prompt', 'rejected'",
        "labels (prompt, completion, label)",
        "nearest is pairs",
        "lacks 'chosen'",
    ):
        assert part in sentence
    assert "did you mean 'choosen'" in sentence


def test_an_ambiguous_set_is_refused_until_the_format_is_named():
    row = {**EXPLICIT, "completion": "Green tea.", "label": True}
    with pytest.raises(DataError, match=r"could be pairs or labels.*data\.format"):
        read(row)
    assert read(row, format="labels") == Document(EXPLICIT["prompt"], ("Green tea.",), True)
    with pytest.raises(DataError, match=r"data\.format is labels, which needs .* lacks 'completion', 'label'"):
        read(EXPLICIT, format="labels")


def test_other_scalar_columns_travel_along():
    data = load_preferences([ULTRAFEEDBACK, {**ULTRAFEEDBACK, "score_chosen": 2.0}], toys.chatml())
    assert [example.meta for example in data] == [
        {"prompt_id": "a1", "score_chosen": 8.5},
        {"prompt_id": "a1", "score_chosen": 2.0},
    ]
