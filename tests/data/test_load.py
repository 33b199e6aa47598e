"""The whole way from a file to examples: nothing is lost, everything is counted, too much is refused."""

import json
import random
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefopt.data import DataConfig, inspect_lines, inspect_source, load_preferences
from prefopt.errors import DataError
from tests.data import toy_tokenizers as toys


def conversation(i, chosen="Yes, I like it.", rejected="No."):
    return {
        "prompt": [{"role": "user", "content": f"what is the answer {i}?"}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def listed(i, scores=(0.1, 0.9, 0.5), answers=("No.", "Yes, I like it.", "Maybe.")):
    return {
        "prompt": conversation(i)["prompt"],
        "completions": [[{"role": "assistant", "content": answer}] for answer in answers],
        "scores": list(scores),
    }


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rejected_rows_are_written_down_with_source_line_and_reason(tmp_path):
    rows = [
        *(conversation(i) for i in range(6)),
        "{broken",
        conversation(7, rejected="Yes, I like it."),
        conversation(8, chosen=""),
    ]
    path = write(tmp_path / "a.jsonl", rows)
    data = load_preferences(path, toys.chatml(), rejected_to=tmp_path / "out" / "rejected_rows.jsonl", max_rejected=0.5)
    summary = data.summary
    assert (summary.rows_read, summary.rows_used, summary.rows_rejected) == (9, 6, 3)
    assert summary.rejected == {"not JSON": 1, "chosen = rejected": 1, "empty completion": 1}
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected_rows.jsonl").read_text().splitlines()]
    assert [(item["source"], item["line"]) for item in listed] == [(str(path), 7), (str(path), 8), (str(path), 9)]
    assert listed[0]["row"] == "{broken"
    assert listed[1]["reason"] == "chosen = rejected"
    assert listed[1]["row"] == rows[7]
    assert data[5].source == f"{path}:6"


def test_too_many_rejected_rows_fail_with_reasons_places_and_what_helps(tmp_path):
    rows = [conversation(i) for i in range(97)] + [conversation(i, chosen="") for i in range(2)]
    path = write(tmp_path / "a.jsonl", [*rows, conversation(1, chosen="Yes. " * 200)])
    with pytest.raises(DataError) as caught:
        load_preferences(path, toys.chatml(), rejected_to=tmp_path, max_length=200)
    sentence = str(caught.value)
    assert sentence.startswith(
        "3 of 100 rows (3.0%) can't be used, and data.max_rejected allows 1.0%: empty completion (2,"
    )
    assert f"{path}:98" in sentence
    assert str(tmp_path / "rejected_rows.jsonl") in sentence
    needed = int(sentence.partition("raise data.max_length (")[2].split()[0])
    data = load_preferences(path, toys.chatml(), max_length=needed, max_rejected=0.02)
    assert data.summary.rows_used == 98
    assert data.summary.lengths["chosen"].longest + int(data.prompt_lengths[-1]) == needed


def test_a_file_without_a_usable_row_fails_whatever_is_allowed(tmp_path):
    path = write(tmp_path / "a.jsonl", [conversation(i, chosen="") for i in range(3)])
    with pytest.raises(DataError, match=r"3 of 3 rows \(100.0%\) can't be used"):
        load_preferences(path, toys.chatml(), max_rejected=1.0)


def test_sources_of_two_forms_are_refused_and_of_two_schemas_joined(tmp_path):
    explicit = write(tmp_path / "a.jsonl", [conversation(i) for i in range(3)])
    implicit = write(
        tmp_path / "b.jsonl",
        [{k: conversation(i)["prompt"] + conversation(i)[k] for k in ("chosen", "rejected")} for i in range(3)],
    )
    labels = write(tmp_path / "c.jsonl", [{"prompt": "a", "completion": "b", "label": True}])
    data = load_preferences([explicit, implicit], toys.chatml())
    assert [r.format for r in data.summary.recognised] == ["pairs", "implicit_pairs"]
    assert [data[i].completions for i in range(3)] == [data[i].completions for i in range(3, 6)]
    assert data.summary.duplicates == 3
    assert data.summary.distinct_prompts == 3
    with pytest.raises(DataError, match=r"holds unpaired preferences and .* paired ones"):
        load_preferences([explicit, labels], toys.chatml())


def test_lists_are_a_form_of_their_own(tmp_path):
    lists = write(tmp_path / "a.jsonl", [listed(i) for i in range(3)])
    pairs = write(tmp_path / "b.jsonl", [conversation(i) for i in range(3)])
    with pytest.raises(DataError, match=r"holds paired preferences and .* listwise ones"):
        load_preferences([lists, pairs], toys.chatml())


def test_a_list_that_the_template_makes_one_of_two_is_rejected():
    # The template cuts the space, so that as text the completions differ and token by token they don't.
    twice, same = listed(1, answers=("No.", "Yes.", "Yes. ")), listed(2, answers=("No.", "No. ", " No."))
    data = load_preferences([listed(0), twice, same], toys.llama(), max_rejected=1.0)
    assert data.summary.rejected == {"the same completion with two scores": 1, "nothing to compare": 1}
    twice["scores"] = [0.1, 0.9, 0.9]
    data = load_preferences([listed(0), twice], toys.llama())
    assert data[1].completions[0] == data[1].completions[1]
    assert data[1].scores == (0.9, 0.9, 0.1)


def test_a_list_with_one_completion_that_is_too_long_is_rejected_whole():
    rows = [listed(i) for i in range(3)] + [listed(3, answers=("No.", "Yes.", "Yes. " * 200))]
    data = load_preferences(rows, toys.chatml(), max_length=200, max_rejected=0.5)
    assert (len(data), data.summary.rows_rejected) == (3, 1)


def test_the_summary_of_lists_counts_completions_scores_and_repeats():
    rows = [listed(0), listed(0), listed(0, scores=(0.9, 0.1, 0.5)), listed(1, (1, 0), ("A long answer, then.", "No."))]
    summary = load_preferences(rows, toys.chatml()).summary
    assert (summary.form, summary.duplicates, summary.distinct_prompts) == ("listwise", 1, 2)
    assert (summary.scored, summary.completions_per_list) == (4, 2.75)
    assert (summary.chosen_longer, summary.desirable) == (None, None)
    assert summary.lengths.keys() == {"prompt", "completion"}
    text = inspect_source(rows).summary
    assert text.lengths["completion"].longest == len("A long answer, then.")
    assert (
        text.lengths["completion"].mean == (3 * len("No.Yes, I like it.Maybe.") + len("A long answer, then.No.")) / 11
    )
    same = ("form", "duplicates", "distinct_prompts", "scored", "completions_per_list", "rows_used")
    assert [getattr(text, name) for name in same] == [getattr(summary, name) for name in same]
    pairs = [{**conversation(i), "score_chosen": 2.0, "score_rejected": None if i else 1} for i in range(2)]
    pairs.append({**conversation(2), "score_chosen": 2.0, "score_rejected": 3.0})
    for summary in (load_preferences(pairs, toys.chatml()).summary, inspect_source(pairs).summary):
        assert (summary.scored, summary.completions_per_list) == (2, None)


def test_scores_change_the_fingerprint_and_pairs_without_them_keep_theirs():
    def of(**scores):
        return load_preferences([{**conversation(i), **scores} for i in range(3)], toys.chatml()).fingerprint

    assert of(score_chosen="high", score_rejected="low") == of()
    assert len({of(), of(score_chosen=2.0, score_rejected=1.0), of(score_chosen=2.5, score_rejected=1.0)}) == 3


def test_the_summary_counts_what_can_be_counted_by_hand():
    rows = [{"prompt": "a", "chosen": "bb", "rejected": "c"}, {"prompt": "aa a", "chosen": "b", "rejected": "b b b"}]
    summary = load_preferences(rows, toys.chatml(None)).summary.to_dict()
    assert summary["chosen_longer"] == 0.5
    assert summary["lengths"]["rejected"]["longest"] == 4  # three words and EOS
    assert summary["lengths"]["rejected"]["p50"] == 4
    assert summary["lengths"]["rejected"]["mean"] == 3.0
    assert summary["recognised"][0]["format"] == "pairs"
    assert json.loads(json.dumps(summary))["rows_rejected"] == 0
    labels = [{"prompt": "a", "completion": c, "label": c != "b"} for c in "bcdd"]
    summary = load_preferences(labels, toys.chatml(None)).summary
    assert (summary.desirable, summary.duplicates, summary.form) == (0.75, 1, "unpaired")


def test_options_are_checked_and_the_nearest_is_named():
    with pytest.raises(DataError, match=r"'max_lenght' is no option.*did you mean 'max_length'"):
        load_preferences([conversation(1)], toys.chatml(), max_lenght=5)
    with pytest.raises(DataError, match=r"data option max_length = 1 is wrong"):
        load_preferences([conversation(1)], toys.chatml(), max_length=1)


def test_every_field_of_the_recipes_section_is_described_and_becomes_an_option():
    assert all(field.description for field in DataConfig.model_fields.values())
    config = DataConfig(train="a.jsonl", eval="b.jsonl", split="train_prefs", eval_split="test_prefs", max_length=77)
    assert config.options("train")["split"] == "train_prefs"
    assert config.options("eval")["split"] == "test_prefs"
    data = load_preferences([conversation(1)], toys.chatml(), **config.options())
    assert len(data) == 1


def test_inspection_shows_rows_cut_at_the_boundary():
    rows = [*(conversation(i) for i in range(9)), conversation(9, chosen="")]
    found = inspect_source(rows, toys.chatml(), rows=2)
    assert [row.source for row in found.rows] == ["rows:1", "rows:9"]
    assert found.rows[0].prompt.endswith("<|im_start|>assistant\n")
    assert found.rows[0].completions == (("chosen", "Yes, I like it.<|im_end|>"), ("rejected", "No.<|im_end|>"))
    text = "\n".join(inspect_lines(found))
    for part in (
        "rows: pairs, because",
        "10 rows read, 9 used, 1 rejected",
        "1 x empty completion",
        "rows:10",
        "100.0%",
    ):
        assert part in text
    assert json.loads(json.dumps(found.to_dict()))["summary"]["rows_read"] == 10


def test_inspection_without_a_tokenizer_counts_characters():
    found = inspect_source([conversation(i) for i in range(4)])
    assert found.summary.unit == "characters"
    assert found.summary.lengths["rejected"].longest == 3
    assert found.summary.distinct_prompts == 4
    assert found.rows[0].completions[1] == ("rejected", "No.")


def test_inspection_shows_lists_best_first_with_their_scores():
    rows = [listed(0), listed(1, (1, 0), ("Yes.", "No.")), listed(2, scores=(1, 2))]
    found = inspect_source(rows, toys.chatml(), rows=2)
    assert found.rows[0].completions == (
        ("score 0.9", "Yes, I like it.<|im_end|>"),
        ("score 0.5", "Maybe.<|im_end|>"),
        ("score 0.1", "No.<|im_end|>"),
    )
    bare = inspect_source(rows)
    assert bare.rows[0].completions == (("score 0.9", "Yes, I like it."), ("score 0.5", "Maybe."), ("score 0.1", "No."))
    assert bare.rows[1].completions == (("score 1", "Yes."), ("score 0", "No."))
    for inspection in (found, bare):
        text = "\n".join(inspect_lines(inspection))
        for part in (
            "rows: lists, because it has the columns 'prompt', 'completions', 'scores'",
            "3 rows read, 2 used, 1 rejected",
            "1 x scores don't match",
            "2.5 completions a list",
        ):
            assert part in text
        assert "the best of a list is the longer one in" in text
        assert json.loads(json.dumps(inspection.to_dict()))["summary"]["completions_per_list"] == 2.5


def test_inspection_shows_the_scores_of_pairs_that_have_them():
    rows = [{**conversation(i), "score_chosen": 8, "score_rejected": 2.5} for i in range(2)] + [conversation(2)]
    for tokenizer, end in ((toys.chatml(), "<|im_end|>"), (None, "")):
        found = inspect_source(rows, tokenizer)
        assert found.rows[1].completions == (
            ("chosen, score 8", f"Yes, I like it.{end}"),
            ("rejected, score 2.5", f"No.{end}"),
        )
        assert found.rows[2].completions == (("chosen", f"Yes, I like it.{end}"), ("rejected", f"No.{end}"))
        text = "\n".join(inspect_lines(found))
        assert "2 pairs have scores" in text
        assert "their scores are in the columns 'score_chosen', 'score_rejected'" in text


def test_tokenizing_does_not_depend_on_the_batches(monkeypatch):
    rows = [conversation(i, chosen="Yes " * (i % 5 + 1)) for i in range(40)]
    whole = load_preferences(rows, toys.llama()).fingerprint
    monkeypatch.setattr("prefopt.data.loading.BATCH", 7)
    assert load_preferences(rows, toys.llama()).fingerprint == whole


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=7), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def corrupted(draw):
    """A file's lines: mostly sound rows, with columns removed, replaced or nested wrongly, and lines cut anywhere."""
    lines = []
    for i in range(draw(st.integers(3, 12))):
        row = conversation(i)
        damage = draw(st.sampled_from(["none", "none", "none", "drop", "replace", "message", "cut", "bytes"]))
        column = draw(st.sampled_from(["prompt", "chosen", "rejected"]))
        if damage == "drop":
            del row[column]
        elif damage == "replace":
            row[column] = draw(values)
        elif damage == "message":
            row[column][0][draw(st.sampled_from(["role", "content", "more"]))] = draw(values)
        line = json.dumps(row).encode()
        if damage == "cut":
            line = line[: draw(st.integers(1, len(line)))]
        elif damage == "bytes":
            at = draw(st.integers(0, len(line)))
            line = line[:at] + draw(st.binary(max_size=4)).replace(b"\n", b"").replace(b"\r", b"") + line[at:]
        lines.append(line)
    return lines


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=corrupted(), template=st.sampled_from(["chatml", "gemma"]))
def test_rows_in_are_rows_used_plus_rows_rejected_whatever_is_broken(tmp_path, lines, template):
    path, out = tmp_path / "a.jsonl", tmp_path / "rejected_rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    count = sum(bool(line.strip()) for line in lines)
    try:
        data = load_preferences(path, getattr(toys, template)(), rejected_to=out, max_rejected=1.0)
    except DataError:
        return  # a sentence, where most rows are broken or none can be used
    rejected = [json.loads(line) for line in out.read_text().splitlines()]
    assert data.summary.rows_read == count
    assert len(data) + len(rejected) == count
    assert sorted([int(e.source.rpartition(":")[2]) for e in data] + [r["line"] for r in rejected]) == [
        number for number, line in enumerate(lines, start=1) if line.strip()
    ]
    assert all(r["reason"] for r in rejected)


def test_wild_text_round_trips_to_the_character():
    draw = random.Random(0)
    alphabet = string.printable + "é🍵中\u200b\u00a0\u2028  \n\n"
    texts = ["".join(draw.choices(alphabet, k=draw.randint(1, 30))) + "x" for _ in range(120)]
    rows = [conversation(i, chosen=text, rejected="Never " + text) for i, text in enumerate(texts)]
    tokenizer = toys.chatml()
    data = load_preferences(rows, tokenizer)
    assert data.summary.rows_used == 120
    for text, example in zip(texts, data, strict=True):
        assert tokenizer.decode(list(example.completions[0])) == text + "<|im_end|>"


def test_scores_that_are_no_numbers_cost_a_pair_its_scores_and_only_named_columns_cost_it_its_row():
    rows = [
        {"prompt": f"q{i}", "chosen": f" a{i}", "rejected": " no", "score_chosen": 2 + i, "score_rejected": 1}
        for i in range(6)
    ]
    rows[1]["score_chosen"], rows[2]["score_rejected"] = "N/A", float("inf")
    found = load_preferences(rows, toys.chatml())
    assert [example.scores != () for example in found] == [True, False, False, True, True, True]
    with pytest.raises(DataError, match=r"2 of 6 pairs have none"):
        found.for_loss("paired", scores="given")
    named = {"score_chosen": "score_chosen", "score_rejected": "score_rejected"}
    with pytest.raises(DataError, match=r"wrong type \(2, first at rows:2: .*'score_chosen' holds 'N/A'"):
        load_preferences(rows, toys.chatml(), columns=named)
