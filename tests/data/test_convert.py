"""Conversion to Parquet: what is loaded from it is what is loaded from the source, and a file is whole or not there."""

import gzip
import json
from pathlib import Path

import pyarrow.parquet
import pytest

from prefopt.data import load_preferences
from prefopt.data.convert import convert_source
from prefopt.data.formats import SCHEMAS, TRAINABLE
from prefopt.errors import DataError
from tests.data import toy_tokenizers as toys
from tests.data.every_format import ASKED, FORMATS, answer, user

FIXTURES = Path(__file__).parent / "fixtures"


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def columns(path):
    return pyarrow.parquet.read_schema(path).names


def pair(**others):
    return {"prompt": "Is it tea?", "chosen": " Yes.", "rejected": " No.", **others}


def test_the_sets_of_every_format_are_of_every_format():
    found = {load_preferences(rows, toys.chatml()).summary.recognised[0].format for rows in FORMATS.values()}
    assert found == set(TRAINABLE) - SCHEMAS.keys()


@pytest.mark.parametrize("source", sorted(FIXTURES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_published_schema_is_converted_to_what_it_loads_as(source, tmp_path):
    out = tmp_path / "a.parquet"
    converted = convert_source(source, out, max_rejected=1.0)
    before = load_preferences(source, toys.chatml(), max_rejected=1.0)
    after = load_preferences(out, toys.chatml(), columns=converted.read_with, max_rejected=1.0)
    assert after.fingerprint == before.fingerprint
    assert [e.scores for e in after] == [e.scores for e in before]


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_converted_loads_as_its_source(name, tmp_path):
    source, out = write(tmp_path / "a.jsonl", FORMATS[name]), tmp_path / "a.parquet"
    converted = convert_source(source, out)
    assert (converted.rows_read, converted.rows_written, converted.read_with) == (len(ASKED), len(ASKED), {})
    before, after = (load_preferences(path, toys.chatml()) for path in (source, out))
    assert after.fingerprint == before.fingerprint
    assert [e.scores for e in after] == [e.scores for e in before]
    scores = {"score_chosen", "score_rejected"}
    for one, other in zip(after, before, strict=True):
        assert {k: v for k, v in one.meta.items() if k not in scores} == {
            k: v for k, v in other.meta.items() if k not in scores
        }
    again = convert_source(out, tmp_path / "b.parquet")
    assert again.rows_written == len(ASKED)
    assert load_preferences(tmp_path / "b.parquet", toys.chatml()).fingerprint == before.fingerprint


def test_strings_taken_as_turns_are_written_as_turns(tmp_path):
    for name in ("pairs", "transcripts", "labels", "lists"):
        out = tmp_path / f"{name}.parquet"
        convert_source(FORMATS[name], out, as_chat=True)
        wanted = load_preferences(FORMATS[name], toys.chatml(), as_chat=True)
        assert load_preferences(out, toys.chatml()).fingerprint == wanted.fingerprint


def test_named_columns_get_our_names_and_other_scalars_are_kept(tmp_path):
    rows = [{"question": q, "chosen": " Yes.", "rejected": " No.", "prompt": i, "x": [1], "long": "y" * 500}
            for i, q in enumerate(ASKED)]  # fmt: skip
    found = convert_source(rows, tmp_path / "a.parquet", columns={"prompt": "question"})
    assert columns(tmp_path / "a.parquet") == ["prompt", "chosen", "rejected", "other_prompt", "long"]
    assert "the column 'prompt' is written as 'other_prompt'" in found.notes
    assert any("the column 'x' is left out: in 7 rows" in note for note in found.notes)


def test_rejected_rows_are_listed_beside_the_file_and_counted(tmp_path):
    source = write(tmp_path / "a.jsonl", [pair(), "{broken", pair(chosen=""), pair(id=3)])
    found = convert_source(source, tmp_path / "a.parquet", max_rejected=0.5)
    assert (found.rows_read, found.rows_written) == (4, 2)
    assert found.rejected == {"not JSON": 1, "empty completion": 1}
    assert found.rejected_path == str(tmp_path / "a.rejected_rows.jsonl")
    listed = [json.loads(line)["line"] for line in Path(found.rejected_path).read_text().splitlines()]
    assert listed == [2, 3]
    assert "2 rows can't be used, and are listed in" in "\n".join(found.lines())
    clean = convert_source([pair()], tmp_path / "b.parquet")
    assert clean.rejected_path is None
    assert not (tmp_path / "b.rejected_rows.jsonl").exists()


def test_too_many_rejected_rows_leave_no_file(tmp_path):
    source = write(tmp_path / "a.jsonl", [pair(), "{broken"])
    with pytest.raises(DataError, match=r"1 of 2 rows .*a\.rejected_rows\.jsonl"):
        convert_source(source, tmp_path / "a.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.rejected_rows.jsonl"]


def test_a_file_that_is_there_is_kept_unless_it_is_to_be_replaced(tmp_path):
    out = tmp_path / "a.parquet"
    convert_source([pair()], out)
    before = out.read_bytes()
    with pytest.raises(DataError, match="exists already; name another file, or replace it with --overwrite"):
        convert_source([pair(), pair()], out)
    with pytest.raises(DataError, match="not recognised"):
        convert_source([{"a": 1}], out, overwrite=True)
    assert out.read_bytes() == before
    convert_source([pair(), pair()], out, overwrite=True)
    assert pyarrow.parquet.read_metadata(out).num_rows == 2
    convert_source(out, out, overwrite=True)
    assert pyarrow.parquet.read_metadata(out).num_rows == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.jsonl doesn't end in \.parquet"):
        convert_source([pair()], tmp_path / "a.jsonl")


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("prefopt.data.parquet.ROW_GROUP", 2)
    rows = [pair(id=i) for i in range(7)] + [{**pair(), "prompt": [user("Hi")], "chosen": [answer("Yes.")]}]
    with pytest.raises(DataError, match=r"rows:8 holds a conversation and rows:1 plain strings"):
        convert_source(rows, tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_schema_that_grows_with_the_rows_is_one_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("prefopt.data.parquet.ROW_GROUP", 2)
    messages = [{"prompt": [user(q)], "chosen": [answer(f"Yes {i}.")], "rejected": [answer("No.")]}
                for i, q in enumerate(ASKED)]  # fmt: skip
    messages[3]["prompt"][0]["name"] = "Ann"
    for i, value in enumerate([None, 1, 2, 2.5, "three", True, 2**70]):
        messages[i]["mixed"] = value
    messages[5]["late"] = 2**63 - 1
    found = convert_source(messages, tmp_path / "a.parquet")
    assert columns(tmp_path / "a.parquet") == ["prompt", "chosen", "rejected", "mixed", "late"]
    before, after = (load_preferences(rows, toys.chatml()) for rows in (messages, tmp_path / "a.parquet"))
    assert before.fingerprint == after.fingerprint
    assert [e.meta.get("mixed") for e in after] == [None, "1", "2", "2.5", "three", "true", str(2**70)]
    assert after[5].meta["late"] == 2**63 - 1
    assert found.notes == ("the column 'mixed' holds values of several types, and is written as text",)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_scores_that_the_first_rows_lack_are_not_lost(tmp_path):
    plain = write(tmp_path / "plain.jsonl", [pair(id=i) for i in range(300)])
    scored = write(tmp_path / "scored.jsonl", [pair(score_chosen=i, score_rejected=1) for i in range(10)])
    found = convert_source([plain, scored], tmp_path / "a.parquet")
    named = {"score_chosen": "score_chosen", "score_rejected": "score_rejected"}
    assert found.read_with == named
    assert "read it with data.columns.score_chosen=score_chosen" in "\n".join(found.lines())
    wanted = load_preferences([plain, scored], toys.chatml())
    assert load_preferences(tmp_path / "a.parquet", toys.chatml(), columns=named).fingerprint == wanted.fingerprint


def test_calls_of_tools_are_kept_and_messages_that_no_column_can_hold_are_refused_in_a_sentence(tmp_path):
    calls = [{"name": "tea", "arguments": {"kind": "green"}}], [{"name": "fox", "arguments": {"speed": 3}}]
    rows = [{"prompt": [user("Hi")], "chosen": [{**answer("Yes."), "tool_calls": call}], "rejected": [answer("No.")]}
            for call in calls]  # fmt: skip
    convert_source(rows, tmp_path / "b.parquet")
    fingerprints = [load_preferences(s, toys.chatml()).fingerprint for s in (rows, tmp_path / "b.parquet")]
    assert fingerprints[0] == fingerprints[1]
    rows[0]["chosen"][0]["tool_calls"] = rows[1]["chosen"][0]["tool_calls"] = {}
    with pytest.raises(DataError, match="no Parquet column can hold"):
        convert_source(rows, tmp_path / "a.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["b.parquet"]


def test_row_groups_bound_what_is_held(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(pair(id=i)) + "\n" for i in range(2500))
    convert_source(path, tmp_path / "a.parquet")
    metadata = pyarrow.parquet.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [1024, 1024, 452]


def test_one_score_beside_a_pair_is_a_column_like_any_other(tmp_path):
    rows = [pair(score_chosen=i) for i in range(4)]
    assert convert_source(rows, tmp_path / "a.parquet").read_with == {}
    data = load_preferences(tmp_path / "a.parquet", toys.chatml())
    assert [example.meta for example in data] == [{"score_chosen": i} for i in range(4)]
