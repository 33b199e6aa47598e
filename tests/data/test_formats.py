"""Fixture rows for each public schema, with its traps: what is recognised, and how each row is cut."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from prefopt.data import DataOptions, load_preferences, tokenize_rows
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
LISTED = {"prompt": "The tea", "completions": [" is gray.", " is green.", " is."], "scores": [2, 4.5, -1]}
SCORED = {**EXPLICIT, "score_chosen": 8, "score_rejected": 2.5}


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
        (LISTED, "lists", Document("The tea", (" is green.", " is gray.", " is."), scores=(4.5, 2.0, -1.0))),
        (
            {"prompt": [USER], "completions": [[NONE], [USER, GREEN]], "scores": [0, 1]},
            "lists",
            Dialogue((USER,), (GREEN, NONE), scores=(1.0, 0.0)),
        ),
        (
            {"prompt": [SYSTEM, USER], "completions": ["None.", "Green tea."], "scores": [0, 1]},
            "lists",
            Dialogue((SYSTEM, USER), (GREEN, NONE), scores=(1.0, 0.0)),
        ),
        (
            {"prompt": USER["content"], "completions": [[NONE], "Green tea."], "scores": [0, 1]},
            "lists",
            Dialogue((USER,), (GREEN, NONE), scores=(1.0, 0.0)),
        ),
        (SCORED, "pairs", Document("What is the best tea?\n", ("Green tea.", "None."), scores=(8.0, 2.5))),
        (
            {**TRANSCRIPT, "score_chosen": 1.0, "score_rejected": 3.0},
            "implicit_pairs",
            Document(HUMAN, (" I think green.", " I think none."), scores=(1.0, 3.0)),
        ),
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
    assert (
        "their scores are in the columns 'score_chosen', 'score_rejected'"
        in recognise([SCORED], DataOptions(), source="rows").why
    )
    assert recognise([LISTED], DataOptions(), source="rows").why == (
        "it has the columns 'prompt', 'completions', 'scores'"
    )
    assert recognise([LISTED], DataOptions(format="lists"), source="rows").why == "data.format says so"


def test_strings_as_chat_become_turns_and_a_transcript_all_of_its_turns():
    assert read(EXPLICIT, as_chat=True) == Dialogue(
        ({"role": "user", "content": "What is the best tea?\n"},), (GREEN, NONE)
    )
    assert read(LISTED, as_chat=True) == Dialogue(
        ({"role": "user", "content": "The tea"},),
        tuple({"role": "assistant", "content": text} for text in (" is green.", " is gray.", " is.")),
        scores=(4.5, 2.0, -1.0),
    )
    assert read(SCORED, as_chat=True).scores == (8.0, 2.5)
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scores": None}, "field missing: 'scores' is null"),
        ({"completions": None}, "field missing: 'completions' is null"),
        ({"completions": " is green."}, "wrong type: 'completions' is of type str"),
        ({"scores": 4}, "wrong type: 'scores' is of type int, not a list of numbers"),
        ({"scores": [1, 2]}, "scores don't match: 2 scores for 3 completions"),
        ({"scores": []}, "scores don't match: 0 scores for 3 completions"),
        ({"scores": [1, 2, float("nan")]}, "wrong type: 'scores' holds nan; a score must be a finite number"),
        ({"scores": [1, 2, float("-inf")]}, "wrong type: 'scores' holds -inf"),
        ({"scores": [1, 2, 1e39]}, "wrong type: 'scores' holds 1e+39"),  # float32 can't hold it
        ({"scores": [1, 2, 10**400]}, "wrong type: 'scores' holds 1000"),
        ({"scores": [1, 2, True]}, "wrong type: 'scores' holds True"),
        ({"scores": [1, 2, "3"]}, "wrong type: 'scores' holds '3'"),
        ({"scores": [1, 2, None]}, "wrong type: 'scores' holds None"),
        ({"completions": [], "scores": []}, "empty completion: a list of no completions"),
        ({"completions": [" is."], "scores": [1]}, "nothing to compare: the list has only one distinct completion"),
        ({"completions": [" is."] * 3}, "nothing to compare"),
        ({"completions": [" is.", " was.", " is."]}, "the same completion with two scores"),
        ({"completions": [" is.", " ", " was."]}, "empty completion"),
        ({"completions": [" is.", 3, " was."]}, "wrong type: a completion is of type int"),
        ({"completions": [[GREEN, USER, GREEN], [NONE], " is."]}, "several turns in a completion"),
    ],
)
def test_a_list_that_cannot_be_used_says_why(change, reason):
    format_ = recognise([LISTED], DataOptions(), source="rows")
    with pytest.raises(RowError) as caught:
        normalise({**LISTED, **change}, format_)
    assert str(caught.value).startswith(reason)


def test_a_list_is_put_best_first_and_equal_scores_keep_their_order():
    row = {"prompt": "p", "completions": [" a", " b", " c", " d", " e"], "scores": [1, 3, 1, 3, 2.0]}
    assert read(row) == Document("p", (" b", " d", " e", " a", " c"), scores=(3.0, 3.0, 2.0, 1.0, 1.0))
    again = {"prompt": "p", "completions": [" a", " b", " a"], "scores": [1, 2, 1]}  # as samples come
    assert read(again) == Document("p", (" b", " a", " a"), scores=(2.0, 1.0, 1.0))


def test_numbers_of_numpy_are_scores():
    scores = [np.float32(0.5), np.int64(3), np.float64(1.5)]
    assert read({**LISTED, "scores": scores}).scores == (3.0, 1.5, 0.5)


@pytest.mark.parametrize(
    ("change", "scores"),
    [
        ({}, (8.0, 2.5)),
        ({"score_chosen": None}, ()),
        ({"score_rejected": float("nan")}, ()),
        ({"score_chosen": None, "score_rejected": "unknown"}, ()),
    ],
)
def test_a_pair_that_lacks_one_of_its_scores_has_none_and_stays_a_pair(change, scores):
    format_ = recognise([SCORED], DataOptions(), source="rows")
    assert normalise({**SCORED, **change}, format_) == Document(
        EXPLICIT["prompt"], (EXPLICIT["chosen"], EXPLICIT["rejected"]), scores=scores
    )


@pytest.mark.parametrize("score", ["8", True, float("inf"), [8], 10**400])
def test_a_score_of_a_pair_that_is_no_number_is_none_and_refused_where_the_recipe_names_its_column(score):
    row = {**SCORED, "score_chosen": score}
    assert normalise(row, recognise([SCORED], DataOptions(), source="rows")).scores == ()
    named = DataOptions(columns={"score_chosen": "score_chosen"})
    with pytest.raises(RowError, match="wrong type: 'score_chosen' holds"):
        normalise(row, recognise([SCORED], named, source="rows"))


def test_score_columns_that_hold_text_are_no_scores_unless_they_are_named():
    row = {**SCORED, "score_chosen": "8", "score_rejected": "good"}
    assert recognise([row], DataOptions(), source="rows").score_columns == ()
    (example,) = load_preferences([row], toys.chatml())
    assert example.scores == ()
    assert example.meta == {"score": 4.5, "score_chosen": "8", "score_rejected": "good"}
    with pytest.raises(RowError, match=r"wrong type: 'score_chosen' holds '8'"):
        read(row, columns={"score_chosen": "score_chosen"})


def test_scores_of_pairs_are_found_under_other_names_and_one_of_them_is_not_enough():
    row = {**EXPLICIT, "good": 8.5, "bad": 2}
    assert read(row).scores == ()
    assert read(row, columns={"score_chosen": "good", "score_rejected": "bad"}).scores == (8.5, 2.0)
    with pytest.raises(DataError, match=r"where the scores of pairs are, but rows lacks 'score_rejected'.*Name both"):
        read(row, columns={"score_chosen": "good"})


def test_lists_are_found_under_other_names():
    row = {"question": "p", "answers": [" a", " b"], "rewards": [0.25, 0.75]}
    columns = {"prompt": "question", "completions": "answers", "scores": "rewards"}
    assert read(row, columns=columns) == Document("p", (" b", " a"), scores=(0.75, 0.25))
    with pytest.raises(DataError, match=r"nearest is lists, which lacks 'scores'"):
        read({"prompt": "p", "completions": ["a", "b"]})


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
@pytest.mark.parametrize("conversations", [False, True])
def test_every_kind_of_file_holds_lists(tmp_path, name, conversations):
    rows = [LISTED, {**LISTED, "completions": [" is red.", " is blue."], "scores": [0, 1]}]
    if conversations:
        answers = [[[{"role": "assistant", "content": c}] for c in row["completions"]] for row in rows]
        rows = [{**row, "prompt": [USER], "completions": own} for row, own in zip(rows, answers, strict=True)]
    path = tmp_path / name
    if name == "a.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name == "a.json":
        path.write_text(json.dumps(rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    data = load_preferences(path, toys.chatml())
    assert data.fingerprint == load_preferences(rows, toys.chatml()).fingerprint
    assert [example.scores for example in data] == [(4.5, 2.0, -1.0), (1.0, 0.0)]
    assert toys.chatml().decode(list(data[1].completions[0])).startswith(" is blue.")


def test_completions_that_are_only_scored_keep_their_order_whatever_their_scores():
    tokenizer = toys.chatml()
    ordered, plain = tokenize_rows([LISTED, {k: LISTED[k] for k in ("prompt", "completions")}], tokenizer)
    assert ordered.completions == plain.completions
    assert ordered.scores == ()
    assert tokenizer.decode(list(ordered.completions[0])).startswith(" is gray.")


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
    both = {**LISTED, "chosen": " is green.", "rejected": " is."}
    with pytest.raises(DataError, match=r"could be pairs or lists.*data\.format"):
        read(both)
    assert read(both, format="pairs") == Document("The tea", (" is green.", " is."))
    assert read(both, format="lists") == read(LISTED)
    with pytest.raises(DataError, match=r"data\.format is labels, which needs .* lacks 'completion', 'label'"):
        read(EXPLICIT, format="labels")


def test_other_scalar_columns_travel_along():
    data = load_preferences([ULTRAFEEDBACK, {**ULTRAFEEDBACK, "score_chosen": 2.0}], toys.chatml())
    assert [example.meta for example in data] == [
        {"prompt_id": "a1", "score_chosen": 8.5},
        {"prompt_id": "a1", "score_chosen": 2.0},
    ]
