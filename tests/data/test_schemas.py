"""Published schemas, each by a small file with its traps: what it is taken for, and what every row becomes."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import DataOptions, load_preferences
from prefopt.data.encode import read_task
from prefopt.data.formats import SCHEMAS
from prefopt.data.loading import Loading
from prefopt.data.rejected import RejectedRows
from prefopt.data.rows import Dialogue, Document, RowError
from prefopt.errors import DataError
from tests.data import toy_tokenizers as toys

FIXTURES = Path(__file__).parent / "fixtures"
HUMAN = "\n\nHuman: what is the best tea?\n\nAssistant: Hot or cold?\n\nHuman: hot\n\nAssistant:"
TEA = "Which tea has no caffeine?"
TOOL = {
    "type": "function",
    "function": {
        "name": "boil",
        "description": "Boils water.",
        "parameters": {"type": "object", "properties": {"litres": {"type": "number"}}, "required": ["litres"]},
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "boil", "arguments": {"litres": 1}}}],
}


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def chat(prompt, *answers, **more):
    turns = [prompt] if isinstance(prompt, str) else prompt
    own = [user(turn) if isinstance(turn, str) else turn for turn in turns]
    return Dialogue(tuple(own), tuple(says(a) if isinstance(a, str) else a for a in answers), **more)


def rows_of(name, **options):
    """Everything that becomes of a fixture: the format, the rows that are used, and where the others went."""
    rejected = RejectedRows()
    loading = Loading(FIXTURES / f"{name}.jsonl", DataOptions(**options), rejected)
    used = [(raw, read) for raw, _, read in loading.rows()]
    for raw, _ in used:
        loading.use(raw)
    assert loading.read == loading.used + rejected.total + rejected.left_out.total()
    [recognised] = loading.recognised
    return recognised, [read for _, read in used], dict(rejected.reasons), dict(rejected.left_out)


MULTI = ["Name a tea.", says("Mint."), "Another one."]

PUBLISHED = {
    "ultrafeedback_binarized": (
        "pairs",
        {},
        [chat(TEA, "Rooibos.", "Green tea.", scores=(8.5, 3.0))],
        {"empty completion": 1},
        {"tie": 1},
    ),
    "ultrafeedback": (
        "ultrafeedback",
        {},
        [
            chat(TEA, "Rooibos.", "Rooibos, or mint.", "Green tea.", scores=(4.75, 4.5, 1.5)),
            chat("Say no.", "No.", "Yes.", scores=(4.0, 1.25)),
        ],
        {"empty completion": 1},
        {},
    ),
    "ultrafeedback by the overall score": (
        "ultrafeedback",
        {"score": "overall_score"},
        [
            chat(TEA, "Green tea.", "Rooibos, or mint.", "Rooibos.", scores=(10.0, 8.5, 8.0)),
            chat("Say no.", "No.", "Yes.", scores=(9.0, 2.0)),
        ],
        {"empty completion": 1},
        {},
    ),
    "ultrafeedback by one rating": (
        "ultrafeedback",
        {"score": "helpfulness"},
        [chat(TEA, "Rooibos.", "Rooibos, or mint.", "Green tea.", scores=(5.0, 5.0, 1.0))],
        {"empty completion": 1, "wrong type": 1},  # an answer's rating is N/A
        {},
    ),
    "hh": (
        "implicit_pairs",
        {},
        [Document(HUMAN, (" I think green.", " I think none."))],
        {"different prompts": 1, "empty completion": 1},
        {},
    ),
    "shp": (
        "shp",
        {},
        [
            chat("How do I peel garlic?\n\nQuickly, please.", "Crush it first.", "Use a knife.", scores=(67.0, 33.0)),
            chat(
                "How do I peel garlic?\n\nQuickly, please.", "Shake it in a jar.", "Buy it peeled.", scores=(50.0, 2.0)
            ),
        ],
        {"wrong type": 1},
        {},
    ),
    "orca": (
        "question_pairs",
        {},
        [
            chat("Name a colour.", "Red.", "Dog."),
            chat([system("You are brief."), "Name a colour that is not red."], "Blue.", "Red is one that is not blue."),
        ],
        {},
        {},
    ),
    "orca_distilabel": (
        "question_pairs",
        {},
        [
            chat([system("You are brief."), "Name a colour."], "Red.", "Dog.", scores=(9.0, 1.0)),
            chat([system("You are brief."), "Name a number."], "Two.", "Too.", scores=(10.0, 1.0)),
            chat([system("You are brief."), "Name a month."], "May.", "Might."),
        ],
        {},
        {"tie": 1},
    ),
    "capybara_distilabel": (
        "pairs",
        {},
        [
            chat(
                [system("Be brief."), "Hello", says("Hi."), "Name a tea."],
                *("Mint.", "Tea."),
                scores=(5.0, 2.0),
            )
        ],
        {},
        {},
    ),
    "kto_mix": (
        "labels",
        {},
        [chat("Name a tea.", "Mint.", label=True), chat("Name a tea.", "Coffee.", label=False)],
        {"completion is no assistant turn": 1},
        {},
    ),
    "helpsteer": (
        "helpsteer",
        {},
        [
            chat("Name a sea.", "The Baltic.", "Water, which is wet.", scores=(4.0, 1.0)),
        ],
        {"empty completion": 3, "nothing to compare": 1},  # a list is rejected whole
        {},
    ),
    "helpsteer by a weighted sum": (
        "helpsteer",
        {"score": {"helpfulness": 0.5, "verbosity": 1}},
        [
            chat("Name a sea.", "Water, which is wet.", "The Baltic.", scores=(3.5, 3.0)),
        ],
        {"empty completion": 3, "nothing to compare": 1},
        {},
    ),
    "helpsteer2_preference": (
        "strengths",
        {},
        [
            chat("Name a sea.", "The Baltic.", "Water.", scores=(2.0, 0.0)),
            chat(MULTI, "Green.", "Mint.", scores=(1.0, 0.0)),
        ],
        {},
        {"tie": 1},
    ),
    "helpsteer3": (
        "strengths",
        {},
        [
            chat("Name a sea.", "The Baltic.", "Water.", scores=(3.0, 0.0)),
            chat(MULTI, "Green.", "Mint.", scores=(1.0, 0.0)),
        ],
        {},
        {"tie": 1},
    ),
    "helpsteer3 as lists": (
        "strengths",
        {"ties": "as_lists"},
        [
            chat("Name a sea.", "The Baltic.", "Water.", scores=(3.0, 0.0)),
            chat(MULTI, "Green.", "Mint.", scores=(1.0, 0.0)),
            chat("Name a bay.", "Biscay.", "Bengal.", scores=(0.0, 0.0)),
        ],
        {},
        {},
    ),
    "skywork": (
        "implicit_pairs",
        {},
        [chat("Name a sea.", "The Baltic.", "Water."), chat(MULTI, "Green.", "Mint.")],
        {},
        {},
    ),
    "safe_rlhf": (
        "safe_rlhf",
        {},
        [
            chat("Is bleach a drink?", "It depends on the dose, as toxicologists say.", "Never drink it."),
            chat("Name a tea.", "Mint.", "Tea."),
        ],
        {"chosen = rejected": 1},
        {},
    ),
    "safe_rlhf by safety": (
        "safer_rlhf",
        {"prefer": "safer"},
        [
            chat("Is bleach a drink?", "Never drink it.", "It depends on the dose, as toxicologists say."),
            chat("Name a tea.", "Mint.", "Tea."),
        ],
        {"chosen = rejected": 1},
        {},
    ),
    "nectar": (
        "ranked",
        {},
        [
            chat("Name a tea.", "Mint.", "Green.", "Tea.", scores=(-1.0, -2.0, -3.0)),
            chat(["Hello", says("Hi."), "Name a sea."], "The Baltic.", "Water.", scores=(-1.0, -2.0)),
        ],
        {},
        {},
    ),
    "rewards": ("rewards", {}, [chat("Name a tea.", "Mint.", "Tea.", scores=(1.25, -0.5))], {}, {}),
    "demonstrations": (
        "demonstrations",
        {},
        [Document("Name a tea.\n", ("Mint.",), True)],
        {"empty completion": 1},
        {},
    ),
    "messages": (
        "messages",
        {},
        [chat([system("Be brief."), *MULTI], "Green.", label=True)],
        {"no answer": 1, "empty prompt": 1},
        {},
    ),
    "tools": (
        "pairs",
        {},
        [
            chat([system("You make tea."), "Boil a litre."], CALL, "I can't.", tools=(TOOL,)),
            chat(
                [
                    system("You make tea."),
                    "Boil a litre.",
                    CALL,
                    {"role": "tool", "name": "boil", "content": "done"},
                ],
                *("It boils.", "It may boil."),
                tools=(TOOL,),
            ),
            chat("Hello", "Hi.", "What?"),
        ],
        {},
        {},
    ),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_a_published_schema_is_recognised_and_every_row_is_what_it_says_or_is_listed(case):
    name, options, expected, rejected, left_out = PUBLISHED[case]
    options = {"ties": "drop", **options}
    recognised, used, *others = rows_of(case.partition(" ")[0], **options)
    assert recognised.format == name
    assert used == expected
    assert others == [rejected, left_out]
    assert "columns" in recognised.why
    if name in SCHEMAS:
        assert SCHEMAS[name].about in recognised.why
        named, again, *_ = rows_of(case.partition(" ")[0], **options, format=name)
        assert again == used
        assert named.why == f"data.format says so; {recognised.why}"


def test_the_fixtures_cover_every_schema_and_none_is_left_lying_about():
    assert {case[0] for case in PUBLISHED.values()} >= SCHEMAS.keys()
    assert {path.stem for path in FIXTURES.glob("*")} == {case.partition(" ")[0] for case in PUBLISHED}


def test_rows_that_are_joined_are_counted_and_listed_one_by_one(tmp_path):
    path = FIXTURES / "helpsteer.jsonl"
    data = load_preferences(path, toys.chatml(), max_rejected=1.0, rejected_to=tmp_path)
    summary = data.summary
    assert (len(data), summary.rows_read, summary.rows_used, summary.rows_rejected) == (1, 6, 2, 4)
    listed = [json.loads(line) for line in (tmp_path / "rejected_rows.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"].partition(":")[0]) for row in listed] == [
        (3, "empty completion"),
        (4, "empty completion"),
        (5, "empty completion"),
        (6, "nothing to compare"),
    ]
    with pytest.raises(DataError, match=r"prefopt|can't be used"):
        load_preferences(path, toys.chatml())


def test_lists_of_rated_responses_need_the_ratings_that_are_asked_for_and_no_others():
    rows = [{"prompt": "a", "response": text, "correctness": score} for text, score in ((" b", 1), (" c", 3))]
    data = load_preferences(rows, toys.chatml(), score="correctness")
    assert (data.summary.recognised[0].format, data[0].scores) == ("helpsteer", (3.0, 1.0))
    with pytest.raises(DataError, match="is not recognised"):
        load_preferences(rows, toys.chatml())
    with pytest.raises(DataError, match=r"needs 'prompt', 'response', 'verbosity'"):
        load_preferences(rows, toys.chatml(), score="verbosity", format="helpsteer")


@pytest.mark.parametrize("name", sorted({case.partition(" ")[0] for case in PUBLISHED}))
def test_what_reads_a_published_row_can_go_to_another_process(name):
    options = DataOptions.model_validate(next(options for case, (_, options, *_) in PUBLISHED.items() if case == name))
    loading = Loading(next(FIXTURES.glob(f"{name}.*")), options, RejectedRows())
    for _, task in loading._tasks():
        again = pickle.loads(pickle.dumps(task))
        assert outcome_of(again) == outcome_of(task)


def outcome_of(task):
    try:
        return read_task(task, as_chat=False)
    except RowError as error:
        return str(error)


def test_a_list_of_joined_rows_is_read_on_behind_its_last_row():
    loading = Loading(FIXTURES / "helpsteer.jsonl", DataOptions(), RejectedRows())
    [(raw, _, _)] = loading.rows()
    assert [own.line for own in (raw, *raw.joined)] == [1, 2]
    assert raw.after == raw.joined[-1].after
    assert raw.after["line"] == 2


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=7), inner, max_size=3),
    max_leaves=6,
)


def damaged(value, draw):
    """A copy with one value replaced, somewhere inside."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: damaged(value[key], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], damaged(value[at], draw), *value[at + 1 :]]
    return draw(values)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), case=st.sampled_from(sorted(PUBLISHED)))
def test_whatever_is_broken_every_row_is_used_or_listed(data, case):
    _, options, *_ = PUBLISHED[case]
    lines = (FIXTURES / f"{case.partition(' ')[0]}.jsonl").read_text().splitlines()
    sound = [json.loads(line) for line in lines]
    broken = [damaged(row, data.draw) for row in sound]
    rejected = RejectedRows()
    loading = Loading([*sound, *sound, *broken], DataOptions(**options), rejected)
    try:
        for raw, *_ in loading.rows():
            loading.use(raw)
    except DataError:
        return  # a sentence, where the sample is no longer what it was
    assert loading.read == 3 * len(sound) == loading.used + rejected.total + rejected.left_out.total()
