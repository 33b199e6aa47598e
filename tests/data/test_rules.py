"""What a recipe leaves out on purpose: counted, listed with its rule, and never taken for a fault of the data."""

import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefopt.data import inspect_lines, inspect_source, load_preferences
from prefopt.errors import DataError
from tests.data import toy_tokenizers as toys


def pair(prompt, chosen, rejected, *scores):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {**row, "score_chosen": scores[0], "score_rejected": scores[1]} if scores else row


def load(rows, **options):
    return load_preferences(rows, toys.chatml(None), **options)


def lines(data):
    return [int(example.source.rpartition(":")[2]) for example in data]


TIED = [pair("a", "b", "c", 2, 1), pair("d", "e", "f", 3, 3.0), pair("g", "h", "i", 0, 4)]


def test_pairs_with_equal_scores_are_left_out_kept_or_lists_as_the_recipe_says():
    dropped = load(TIED, ties="drop")
    assert (lines(dropped), dropped.summary.left_out, dropped.summary.ties) == ([1, 3], {"tie": 1}, 1)
    kept = load(TIED)
    assert (lines(kept), kept.summary.left_out, kept.summary.ties) == ([1, 2, 3], {}, 1)
    lists = load(TIED, ties="as_lists")
    assert (lists.form, [example.scores for example in lists]) == ("listwise", [(2, 1), (3, 3), (4, 0)])
    assert lists[2].completions == tuple(reversed(kept[2].completions))
    assert lists.for_loss("paired").summary.notes == ("1 of 3 lists are left out: all of their scores are equal",)


def test_a_pair_without_scores_is_no_list_of_two():
    rows = [*TIED, pair("j", "k", "l")]
    data = load(rows, ties="as_lists", max_rejected=0.5)
    assert data.summary.rejected == {"field missing": 1}
    plain = [pair("j", "k", "l")]
    assert load(plain, ties="as_lists").form == "paired"  # no scores anywhere


def test_a_preference_for_neither_is_left_out_also_where_ties_are_kept():
    row = {"context": [{"role": "user", "content": "p"}], "response1": "a", "response2": "b", "overall_preference": 1}
    for ties in ("drop", "keep"):
        data = load_preferences([row, {**row, "overall_preference": 0}], toys.chatml(), ties=ties)
        assert (data.summary.rows_used, data.summary.left_out, data.summary.ties) == (1, {"tie": 1}, 1)


BOTH_WAYS = [
    pair("p", "a", "b"),
    pair("p", "b", "a"),
    pair("q", "a", "b"),
    pair(" p", "a\n", "b "),  # the same but for white space
    pair("p", "e\u0301", "f"),
    pair("p", "f", "\u00e9"),  # the same letter, written otherwise
]


@pytest.mark.parametrize(("rule", "left"), [("keep", [1, 2, 3, 4, 5, 6]), ("keep_first", [1, 3, 4, 5]), ("drop", [3])])
def test_pairs_that_contradict_each_other_are_kept_or_left_out(rule, left):
    data = load(BOTH_WAYS, contradictions=rule)
    assert lines(data) == left
    assert data.summary.contradictions == (2 if rule == "keep_first" else 3)
    assert data.summary.left_out == ({"contradiction": 6 - len(left)} if len(left) < 6 else {})


def test_a_completion_that_is_labelled_both_ways_contradicts_itself():
    labels = (("a b", True), ("b", True), ("a  b\n", False))
    rows = [{"prompt": "p", "completion": c, "label": label} for c, label in labels]
    assert lines(load(rows, contradictions="drop")) == [2]
    assert lines(load(rows, contradictions="keep_first")) == [1, 2]
    assert load(rows).summary.contradictions == 1


def test_pairs_in_which_only_white_space_differs_are_told_apart():
    rows = [pair("p", "a b", "ab"), pair("p", "ab", "a b"), pair("p", "a b", "ab")]
    assert lines(load(rows, contradictions="keep_first", duplicates="drop")) == [1]
    assert load(rows, duplicates="drop").summary.left_out == {"duplicate": 1}


def test_contradictions_are_found_over_all_sources_and_read_from_files_twice(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, row in zip(paths, BOTH_WAYS[:2], strict=True):
        path.write_text(json.dumps(row) + "\n" + json.dumps(pair("r", path.stem, "x")) + "\n")
    data = load(paths, contradictions="drop", rejected_to=tmp_path)
    assert [example.source for example in data] == [f"{paths[0]}:2", f"{paths[1]}:2"]
    listed = [json.loads(line) for line in (tmp_path / "rejected_rows.jsonl").read_text().splitlines()]
    assert [(row["source"], row["line"], row["rule"]) for row in listed] == [
        (str(path), 1, "data.contradictions") for path in paths
    ]


def test_repeats_are_kept_or_all_but_the_first_left_out():
    rows = [*BOTH_WAYS[:4], *BOTH_WAYS[:1]]
    assert lines(load(rows)) == [1, 2, 3, 4, 5]
    data = load(rows, duplicates="drop")
    assert (lines(data), data.summary.left_out) == ([1, 2, 3], {"duplicate": 2})
    lists = [{"prompt": "p", "completions": ["a", "b"], "scores": scores} for scores in ([1, 2], [1, 2], [1, 3])]
    assert lines(load(lists, duplicates="drop")) == [1, 3]
    labels = [{"prompt": "p", "completion": "a", "label": label} for label in (True, False, True)]
    assert lines(load(labels, duplicates="drop")) == [1, 2]


def test_what_a_rule_leaves_out_is_listed_and_is_no_rejected_row(tmp_path):
    rows = [pair("p", "a", "b")] * 50 + [pair("p", "a", "a")]
    with pytest.raises(DataError, match=r"1 of 51 rows \(2.0%\) can't be used"):
        load(rows, duplicates="drop")
    data = load(rows, duplicates="drop", max_rejected=0.02, rejected_to=tmp_path)
    summary = data.summary
    assert (summary.rows_used, summary.rows_rejected, summary.rows_left_out) == (1, 1, 49)
    assert json.loads(json.dumps(summary.to_dict()))["rows_left_out"] == 49
    listed = [json.loads(line) for line in (tmp_path / "rejected_rows.jsonl").read_text().splitlines()]
    assert len(listed) == 50
    assert listed[0] == {
        "source": "rows",
        "line": 2,
        "reason": "duplicate: an earlier row says the same",
        "rule": "data.duplicates",
        "row": rows[0],
    }
    assert "rule" not in listed[-1]


def test_rules_that_leave_nothing_say_so():
    with pytest.raises(
        DataError, match=r"None of 2 rows is used: all are left out by the rules .*: tie \(2\)\. Change"
    ):
        load([pair("a", "b", "c", 1, 1)] * 2, ties="drop")


def test_inspection_says_what_the_rules_leave_out():
    for tokenizer in (toys.chatml(None), None):
        text = "\n".join(inspect_lines(inspect_source([*TIED, *TIED[:1]], tokenizer, duplicates="drop", ties="drop")))
        for part in ("1 rows left out by a rule: tie", "1 rows left out by a rule: duplicate", "1 ties"):
            assert part in text


words = st.sampled_from(["a", "b", "c", "", "a "])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(words, words, st.sampled_from([None, 1, 2]), st.sampled_from([None, 1, 2])), min_size=1, max_size=12
    ),
    ties=st.sampled_from(["drop", "keep", "as_lists"]),
    duplicates=st.sampled_from(["keep", "drop"]),
    contradictions=st.sampled_from(["keep", "drop", "keep_first"]),
)
def test_every_row_is_used_or_listed_whatever_the_rules(tmp_path, rows, **rules):
    out = tmp_path / "rejected_rows.jsonl"
    given_rows = [pair("p", *row) for row in rows]
    try:
        data = load(given_rows, **rules, max_rejected=1.0, rejected_to=out)
    except DataError:
        return  # nothing is left
    listed = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(itertools.chain(lines(data), (row["line"] for row in listed))) == list(range(1, len(rows) + 1))
    summary = data.summary
    assert summary.rows_read == summary.rows_used + summary.rows_rejected + summary.rows_left_out == len(rows)
    assert sum("rule" in row for row in listed) == summary.rows_left_out
