"""Examples in memory: they come back as they were, become what a loss asks for, and are told apart by a fingerprint."""

import random
from dataclasses import replace

import numpy as np
import pytest

from prefopt.data import Example, PreferenceData, StepPlan, select
from prefopt.errors import DataError
from tests.data.test_steps import labelled, listed, paired


def test_data_without_a_possible_mismatch_is_refused():
    one = PreferenceData("unpaired", [Example((1,), ((2, i),), label=True) for i in range(5)])
    with pytest.raises(DataError, match="only one distinct prompt"):
        one.for_loss("unpaired", needs_mismatched=True)
    with pytest.raises(DataError, match="only one distinct prompt"):
        StepPlan(one, examples_per_step=2, seed=0, mismatched=True)
    same = PreferenceData("unpaired", [Example((i,), ((2,),), label=True, source=f"f:{i}") for i in range(5)])
    with pytest.raises(DataError, match=r"very same completion for 5 of 5 examples \(the first is f:0\)"):
        same.for_loss("unpaired", needs_mismatched=True)


def test_pairs_become_two_labelled_examples_and_labels_never_become_pairs():
    data = paired(2).for_loss("unpaired")
    assert [(e.prompt, e.completions, e.label) for e in data] == [
        ((1, 0), ((2, 0),), True),
        ((1, 0), ((3, 0),), False),
        ((1, 1), ((2, 1),), True),
        ((1, 1), ((3, 1),), False),
    ]
    assert paired(2).for_loss("paired").fingerprint == paired(2).fingerprint
    with pytest.raises(DataError, match="compares completions of a prompt"):
        data.for_loss("paired")


def test_a_list_becomes_a_pair_two_labels_or_a_demonstration():
    data = listed(3)
    assert data.for_loss("listwise") is data
    pairs = data.for_loss("paired")
    assert pairs.form == "paired"
    assert list(pairs) == [
        Example((1, 1), ((2, 1, 0), (2, 1, 2)), source="f:1", meta={"row": 1}, scores=(0.0, -2.0)),
        Example((1, 2), ((2, 2, 0), (2, 2, 3)), source="f:2", meta={"row": 2}, scores=(0.0, -3.0)),
    ]
    assert list(data.for_loss("unpaired")) == list(pairs.for_loss("unpaired"))
    assert [(e.completions, e.label, e.scores) for e in data.for_loss("unpaired")][:2] == [
        (((2, 1, 0),), True, ()),
        (((2, 1, 2),), False, ()),
    ]
    demonstrations = data.for_loss("demonstration")
    assert [e.completions for e in demonstrations] == [((2, i, 0),) for i in range(3)]  # of equal ones the first
    assert demonstrations.labels.all()


def test_lists_that_make_no_pair_are_counted_in_a_note():
    data = listed(10)
    note = "3 of 10 lists are left out: all of their scores are equal"
    for form in ("paired", "unpaired"):
        assert data.for_loss(form).summary.notes == (note,)
    for form in ("listwise", "demonstration"):
        assert data.for_loss(form).summary.notes == ()
    assert data.summary.notes == ()
    assert data.for_loss("paired").for_loss("paired").summary.notes == (note,)
    tied = PreferenceData("listwise", [Example((1,), ((2,), (3,), (4,)), scores=(5.0, 5.0, 5.0))])
    for form in ("paired", "unpaired"):
        with pytest.raises(DataError, match="the scores of every list of the data are all equal"):
            tied.for_loss(form)
    alike = PreferenceData("listwise", [Example((1,), ((2,), (3,)), scores=(1 + 1e-12, 1.0))])
    with pytest.raises(DataError, match="all equal"):  # in float32, which is what a loss sees
        alike.for_loss("paired")


def test_undesirable_completions_that_are_not_imitated_are_counted_in_a_note():
    wanted = labelled(9).for_loss("demonstration")
    assert len(wanted) == 3
    assert wanted.summary.notes == ("6 undesirable completions are not imitated",)
    assert wanted.for_loss("demonstration") is wanted


def test_a_pair_becomes_a_list_by_rank_or_by_its_scores():
    rows = [
        Example((1,), ((2,), (3,)), source="f:1", scores=(2.0, 0.5)),
        Example((1,), ((4,), (5,)), source="f:2", meta={"a": 1}, scores=(1.0, 3.0)),
        Example((1,), ((6,), (7,)), scores=(1.0, 1.0)),
    ]
    data = PreferenceData("paired", rows)
    by_rank = data.for_loss("listwise")
    assert by_rank.form == "listwise"
    assert list(by_rank) == [replace(row, scores=(1.0, 0.0)) for row in rows]
    by_scores = data.for_loss("listwise", scores="given")
    assert list(by_scores) == [rows[0], replace(rows[1], completions=((5,), (4,)), scores=(3.0, 1.0)), rows[2]]
    bare = PreferenceData("paired", [replace(row, scores=()) for row in rows])
    assert bare.for_loss("listwise").fingerprint == by_rank.fingerprint
    assert list(bare.for_loss("listwise").for_loss("paired")) == list(by_rank)


def test_labels_never_become_lists_and_an_unknown_form_names_those_that_are_known():
    with pytest.raises(DataError, match=r"compares completions of a prompt.*`prefopt losses` lists them"):
        labelled(3).for_loss("listwise")
    with pytest.raises(DataError, match=r"'pairwise' is no form .* one of paired, unpaired, listwise, demonstration"):
        paired(3).for_loss("pairwise")


def test_a_loss_that_goes_by_scores_is_told_which_examples_lack_them():
    data = PreferenceData("paired", [Example((1,), ((2,), (3,)), source="f:7", scores=(1.0, 0.0)), *paired(2)])
    for form in ("paired", "listwise"):
        with pytest.raises(
            DataError, match=r"2 of 3 pairs have none \(the first is f:0\).*data\.columns\.score_chosen"
        ):
            data.for_loss(form, scores="given")
    assert data.for_loss("paired") is data
    for form in ("unpaired", "demonstration"):
        with pytest.raises(DataError, match=r"goes by scores, but .* with a label.*lists of completions and scores"):
            labelled(3).for_loss(form, scores="given")
    with pytest.raises(DataError, match=r"3 of 3 pairs have none \(the first is number 0\)"):
        PreferenceData("paired", [Example((1,), ((2,), (3,)))] * 3).for_loss("paired", scores="ordered")


def test_a_loss_that_needs_scores_in_order_is_told_which_pairs_lack_it():
    good = Example((1,), ((2,), (3,)), source="f:1", scores=(1.0, 0.0))
    wrong = [
        replace(good, source=f"f:{2 + i}", scores=s) for i, s in enumerate([(0.0, 1.0), (2.0, 2.0), (1e8 + 1, 1e8)])
    ]
    data = PreferenceData("paired", [good, *wrong])  # float32 can't tell the last two apart
    with pytest.raises(DataError, match=r"scored above rejected, and in 3 of 4 pairs it isn't \(the first is f:2\)"):
        data.for_loss("paired", scores="ordered")
    assert data.for_loss("paired", scores="given") is data
    only = PreferenceData("paired", [good])
    assert only.for_loss("paired", scores="ordered") is only
    pairs = listed(10).for_loss("paired", scores="ordered")
    assert all(example.scores[0] > example.scores[1] for example in pairs)


def test_examples_come_back_as_they_were_given():
    rows = [Example((1, 2), ((3,), (4, 5)), source="f:1", meta={"score": 1}), Example((6,), ((7,), (8,)), source="f:2")]
    data = PreferenceData("paired", iter(rows))
    assert list(data.examples) == rows
    assert data.examples[-1] == rows[1]
    assert data.examples[0:1] == rows[:1]
    assert data.prompt_lengths.tolist() == [2, 1]
    assert data.completion_lengths.tolist() == [[1, 2], [1, 1]]
    assert data.scored.tolist() == [False, False]


def test_lists_of_unequal_length_and_scored_pairs_come_back_as_they_were_given():
    rows = list(listed(9))
    data = PreferenceData("listwise", rows)
    assert list(data) == rows
    assert data.completion_counts.tolist() == [2 + i % 4 for i in range(9)]
    assert data.completion_lengths[:2].tolist() == [[3, 3, 0, 0, 0], [3, 3, 3, 0, 0]]
    assert data.completion_ids[:2].tolist() == [[0, 1, -1, -1, -1], [2, 3, 4, -1, -1]]
    assert data.scored.all()
    rows = [Example((1,), ((2,), (3,)), scores=(1.5, 2.0)), Example((1,), ((2,), (3,)))]
    data = PreferenceData("paired", rows)
    assert list(data) == rows
    assert data.scored.tolist() == [True, False]


@pytest.mark.parametrize(
    ("form", "example", "words"),
    [
        ("listwise", Example((1,), ((2,),), scores=(1.0,)), "f:1 has 1 completions; listwise data needs at least 2"),
        ("paired", Example((1,), ((2,),) * 3), "f:1 has 3 completions; paired data needs 2"),
        ("listwise", Example((1,), ((2,), (3,))), r"f:1 has the scores \[\]; each of its 2 completions needs a finite"),
        ("listwise", Example((1,), ((2,), (3,)), scores=(1.0,)), r"scores \[1.0\]; each of its 2"),
        ("listwise", Example((1,), ((2,), (3,)), scores=(1.0, float("nan"))), "each of its 2 completions needs"),
        ("listwise", Example((1,), ((2,), (3,)), scores=(1e39, 1.0)), "needs a finite number"),
        ("paired", Example((1,), ((2,), (3,)), scores=(float("inf"), 1.0)), "needs a finite number"),
        ("listwise", Example((1,), ((2,), (3,)), scores=(1.0, 2.0)), "in their order, the best first"),
        ("listwise", Example((1,), ((2,), ()), scores=(2.0, 1.0)), "empty prompt or completion"),
    ],
)
def test_an_example_that_is_not_of_its_form_is_refused(form, example, words):
    with pytest.raises(DataError, match=words):
        PreferenceData(form, [replace(example, source="f:1")])


def test_the_fingerprint_follows_tokens_labels_boundaries_and_order_only():
    def of(*rows):
        return PreferenceData("unpaired", rows).fingerprint

    base = Example((1, 2), ((3,),), label=True)
    assert of(base) == of(Example((1, 2), ((3,),), label=True, source="elsewhere:9", meta={"a": 1}))
    others = [
        of(Example((1, 2), ((3,),), label=False)),
        of(Example((1,), ((2, 3),), label=True)),
        of(Example((1, 2), ((4,),), label=True)),
        of(base, base),
    ]
    assert len({of(base), *others}) == 5
    a, b = base, Example((9,), ((3,),), label=True)
    assert of(a, b) != of(b, a)


def test_the_fingerprint_follows_scores_and_where_a_list_ends():
    def of(*rows, form="listwise"):
        return PreferenceData(form, rows).fingerprint

    base = Example((1,), ((2,), (3,), (4,)), scores=(2.0, 1.0, 0.0))
    found = {
        of(base),
        of(replace(base, scores=(2.0, 1.0, 1.0))),
        of(replace(base, completions=((2,), (3,)), scores=(2.0, 1.0))),
        of(base, base),
        of(Example((1,), ((2,), (3,), (4,), (1,), (2,)), scores=(2.0,) * 5)),
        of(*[Example((1,), ((2,), (3,)), scores=(2.0, 2.0)), Example((4,), ((1,), (2,)), scores=(2.0, 2.0))]),
    }
    assert len(found) == 6
    pair = Example((1,), ((2,), (3,)))
    found = {of(replace(pair, scores=s), form="paired") for s in ((), (1.0, 0.0), (1.0, 0.5))}
    found |= {of(pair, replace(pair, scores=(1.0, 0.0)), form="paired"), of(pair, pair, form="paired")}
    assert len(found) == 5
    # Written down once: pairs without scores are what they were before there were any.
    assert paired(5).fingerprint == "55bb1cef6277cc372f3c70aa98e8c58093c7171cc8ab4a846a38c8e1f030896d"


@pytest.mark.parametrize("kind", ["pairs", "scored pairs", "lists", "labels"])
@pytest.mark.parametrize("form", ["paired", "listwise", "unpaired", "demonstration"])
@pytest.mark.parametrize("scores", ["unused", "any"])
def test_what_is_made_of_data_shares_their_tokens_and_is_what_its_own_examples_make(kind, form, scores, monkeypatch):
    draw = random.Random(f"{kind} {form}")

    def example(number):
        count = {"lists": draw.randint(2, 4), "labels": 1}.get(kind, 2)
        completions = tuple(tuple(draw.choices(range(9), k=draw.randint(1, 5))) for _ in range(count))
        own = sorted((draw.randint(0, 2) / 2 for _ in range(count)), reverse=True)
        if kind == "scored pairs":
            draw.shuffle(own)
        return Example(
            (number % 3, *draw.choices(range(9), k=2)),
            completions,
            draw.random() < 0.5 if kind == "labels" else None,
            f"a:{number}",
            {"x": number},
            tuple(own) if "scored" in kind or kind == "lists" else (),
            draw.random() < 0.3,
            tuple(draw.random() < 0.3 for _ in completions) if draw.random() < 0.5 else (),
        )

    given = PreferenceData({"lists": "listwise", "labels": "unpaired"}.get(kind, "paired"), map(example, range(30)))
    if (kind == "labels" and form in ("paired", "listwise")) or (kind in ("pairs", "labels") and scores == "any"):
        return
    monkeypatch.setattr(select, "CHUNK", 7)  # so that tokens come in several pieces
    made = given.for_loss(form, scores=scores, needs_preference=True)
    again = PreferenceData(made.form, list(made))
    assert list(again) == list(made)
    assert again.fingerprint == made.fingerprint
    assert np.shares_memory(made.columns.tokens, given.columns.tokens)
    for name in ("prompt_ids", "completion_ids", "prompt_lengths", "completion_lengths", "scored", "labels"):
        assert np.array_equal(getattr(again, name), getattr(made, name)), name
    by_source = {example.source: example for example in given}
    for one in made:
        own = by_source[one.source]
        assert (one.prompt, one.prompt_cut, one.meta) == (own.prompt, own.prompt_cut, own.meta)
        cuts = dict(zip(own.completions, own.cut or (False,) * 9, strict=False))
        assert set(one.completions) <= set(own.completions)
        if len(cuts) == len(own.completions):
            assert one.cut in ((), tuple(cuts[completion] for completion in one.completions))
