"""What rows have besides, and how formats that are much alike are told apart: named, refused or taken last."""

import json
from pathlib import Path

import pytest

from prefopt.data import DataOptions, load_preferences, tokenize_rows
from prefopt.data.formats import recognise
from prefopt.errors import DataError
from tests.data import toy_tokenizers as toys

FIXTURES = Path(__file__).parent / "fixtures"
TOOL = {"type": "function", "function": {"name": "boil"}}


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def test_columns_that_are_named_are_those_of_a_plain_format():
    row = json.loads((FIXTURES / "safe_rlhf.jsonl").read_text().splitlines()[0])
    columns = {"prompt": "prompt", "chosen": "response_0", "rejected": "response_1"}
    found = recognise([row], DataOptions(columns=columns), source="rows")
    assert (found.name, found.is_chat) == ("pairs", False)


def test_two_columns_that_could_be_the_question_are_refused_until_one_is_named():
    row = {"instruction": "Translate.", "input": "rouge", "chosen": "red", "rejected": "blue"}
    with pytest.raises(DataError, match=r"could be question_pairs by 'input', .* or question_pairs by 'instruction', "):
        recognise([row], DataOptions(), source="rows")
    with pytest.raises(DataError, match=r"data.format is question_pairs, and rows has its columns twice"):
        recognise([row], DataOptions(format="question_pairs"), source="rows")
    assert recognise([row], DataOptions(columns={"prompt": "input"}), source="rows").name == "pairs"


def test_two_columns_that_could_be_the_system_turn_are_refused_until_one_is_named():
    row = {"system": "a", "system_prompt": "b", "prompt": "p", "chosen": "x", "rejected": "y"}
    with pytest.raises(DataError, match=r"either could be the system turn; say which with data.columns.system=system"):
        recognise([row], DataOptions(), source="rows")
    assert recognise([row], DataOptions(columns={"system": "system_prompt"}), source="rows").system == "system_prompt"
    [example] = load_preferences([row], toys.chatml(), columns={"system": "system"})
    assert example.meta == {"system_prompt": "b"}


def test_a_system_turn_that_contradicts_the_messages_is_rejected():
    row = {"system": "Be long.", "chosen": [system("Be brief."), user("p"), says("a")]}
    row["rejected"] = [*row["chosen"][:2], says("b")]
    same = {**row, "system": "Be brief. "}
    data = load_preferences([row, same], toys.chatml(), max_rejected=1.0)
    assert data.summary.rejected == {"two system turns": 1}
    assert toys.chatml().decode(list(data[0].prompt)).count("Be brief.") == 1


@pytest.mark.parametrize(
    "tools", ["[{broken", "{}", [["boil"]], 5, json.dumps(["boil"])], ids=["json", "object", "names", "number", "list"]
)
def test_tools_that_are_no_list_of_objects_are_rejected(tools):
    row = {"tools": [TOOL], "prompt": "p", "chosen": "a", "rejected": "b"}
    data = load_preferences(
        [row, row, {**row, "tools": tools}], toys.chatml(), max_rejected=1.0, columns={"tools": "tools"}
    )
    assert data.summary.rejected == {"wrong type": 1}


def test_a_column_that_is_called_tools_and_holds_something_else_is_a_column_like_any_other():
    row = {"tools": "hammer", "prompt": "p", "chosen": "a", "rejected": "b"}
    found = recognise([row], DataOptions(), source="rows")
    assert (found.tools, found.is_chat) == (None, False)


def test_a_completion_that_another_column_judges_is_no_demonstration():
    for judged in ({"rating": 4}, {"good": True}, {"labels": "yes"}):
        row = {"prompt": "p", "completion": "c", **judged}
        with pytest.raises(
            DataError, match=r"seems to say how good each completion is: name it with data.columns.label"
        ):
            recognise([row], DataOptions(), source="rows")
        assert recognise([row], DataOptions(format="demonstrations"), source="rows").form == "demonstration"
    assert (
        recognise([{"prompt": "p", "completion": "c", "id": 7}], DataOptions(), source="rows").form == "demonstration"
    )


def test_demonstrations_are_imitated_and_losses_that_compare_refuse_them():
    data = load_preferences(FIXTURES / "demonstrations.jsonl", toys.chatml(None), max_rejected=0.5)
    assert (data.form, data.labels.tolist(), data.summary.form) == ("unpaired", [True], "demonstration")
    assert len(data.for_loss("demonstration")) == 1
    for form in ("paired", "listwise", "unpaired"):
        with pytest.raises(DataError, match=r"the data are demonstrations, .* Use a loss that imitates good answers"):
            data.for_loss(form)
    with pytest.raises(DataError, match=r"holds unpaired preferences and .* demonstration ones"):
        load_preferences([FIXTURES / "demonstrations.jsonl", FIXTURES / "kto_mix.jsonl"], toys.chatml())


def test_a_format_that_is_named_and_not_there_says_what_it_needs():
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with pytest.raises(
        DataError, match=r"data.format is shp, which needs 'history', 'human_ref_A', .* has the columns"
    ):
        recognise([row], DataOptions(format="shp"), source="rows")


def test_published_pairs_are_scored_with_their_question():
    tokenizer = toys.chatml()
    [example] = tokenize_rows(
        [{"system": "Be brief.", "question": "Name a sea.", "chosen": "a", "rejected": "b"}], tokenizer
    )
    assert "Be brief." in tokenizer.decode(list(example.prompt))
    assert "Name a sea." in tokenizer.decode(list(example.prompt))
    assert len(example.completions) == 2


def test_a_schema_that_is_named_needs_no_option_that_says_the_same():
    row = json.loads((FIXTURES / "safe_rlhf.jsonl").read_text().splitlines()[0])
    assert recognise([row], DataOptions(format="safer_rlhf"), source="rows").name == "safer_rlhf"
    assert recognise([row], DataOptions(format="safe_rlhf", prefer="safer"), source="rows").name == "safe_rlhf"


def test_an_option_that_says_nothing_about_a_source_is_named_in_the_reason():
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    why = recognise([row], DataOptions(score="helpfulness", prefer="safer"), source="rows").why
    assert why.endswith("data.score and data.prefer change nothing here")
    rated = {"prompt": "p", "response": "a", "helpfulness": 2}
    assert "change nothing" not in recognise([rated], DataOptions(score="helpfulness"), source="rows").why


def test_pairs_beside_rated_lists_are_pairs():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "generations": ["a", "b"], "ratings": [4, 2]}
    assert recognise([row], DataOptions(), source="rows").name == "pairs"
    assert recognise([row], DataOptions(format="rewards"), source="rows").name == "rewards"
