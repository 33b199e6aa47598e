"""What becomes of rows that are too long: rejected, or cut where the options say so, and counted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import Example, PreferenceData, load_preferences
from prefopt.data.fit import TooLongError, fit
from prefopt.data.packed import pack, unpack
from prefopt.errors import DataError
from tests.data import toy_tokenizers as toys

RULES = ("drop", "keep_end", "cut_completion")
BOS, END = 1, 2


@settings(max_examples=400, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    prompt=st.integers(1, 12),
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=4),
    limit=st.integers(2, 26),
    has_bos=st.booleans(),
)
def test_every_row_fits_or_is_refused_with_the_length_that_would_hold_it(rule, prompt, lengths, limit, has_bos):
    asked = [BOS if has_bos else 10, *range(11, 10 + prompt)]
    answers = [[*range(100, 99 + length), END] for length in lengths]
    needed = prompt + max(lengths)
    room = {"drop": False, "keep_end": limit - max(lengths) > has_bos, "cut_completion": limit > prompt}[rule]
    if needed > limit and not room:
        with pytest.raises(TooLongError) as caught:
            fit(pack(asked), [pack(a) for a in answers], limit, rule, bos=pack([BOS]))
        assert caught.value.needed == needed
        return
    found = fit(pack(asked), [pack(a) for a in answers], limit, rule, bos=pack([BOS]))
    if found is None:
        assert needed <= limit
        return
    assert needed > limit
    kept, cut = list(unpack(found.prompt)), [list(unpack(c)) for c in found.completions]
    assert len(kept) + max(map(len, cut)) == limit
    if rule == "keep_end":
        assert cut == answers
        assert (found.prompt_cut, found.cut) == (True, ())
        own = kept[1:] if has_bos else kept
        assert own
        assert asked[-len(own) :] == own
        assert kept[0] == BOS or not has_bos
    else:
        assert rule == "cut_completion"
        assert (kept, found.prompt_cut) == (asked, False)
        for short, whole, was_cut in zip(cut, answers, found.cut, strict=True):
            assert short
            assert short == whole[: limit - prompt]
            assert was_cut == (len(short) < len(whole)) == (short[-1] != END)


def row(prompt, chosen, rejected):
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


SHORT = row("The tea?", "Yes.", "No.")
LONG = row("The tea?", "Yes, I like it, and I think the film is great. " * 9, "No.")
ASKED = row("The film is a great film. " * 30 + "The tea?", "Yes.", "No.")


def test_dropping_is_what_happens_unless_something_else_is_said():
    data = load_preferences([SHORT, LONG, ASKED], toys.chatml(), max_length=100, max_rejected=1.0)
    assert data.summary.rejected == {"longer than max_length": 1, "prompt longer than max_length": 1}
    assert (data.summary.cut_prompts, data.summary.cut_completions) == (0, 0)
    assert [(e.prompt_cut, e.cut) for e in data] == [(False, ())]


def test_the_end_of_a_prompt_is_kept_behind_its_bos():
    tokenizer = toys.llama()
    whole = load_preferences([SHORT, ASKED], tokenizer, max_length=10_000)
    data = load_preferences([SHORT, ASKED], tokenizer, max_length=40, truncation="keep_end")
    assert data[0] == whole[0]
    assert data[1].completions == whole[1].completions
    assert data[1].prompt[0] == tokenizer.bos_token_id
    assert data[1].prompt[1:] == whole[1].prompt[1 - len(data[1].prompt) :]
    assert len(data[1].prompt) + max(map(len, data[1].completions)) == 40
    assert [(e.prompt_cut, e.cut) for e in data] == [(False, ()), (True, ())]
    assert (data.summary.cut_prompts, data.summary.cut_completions) == (1, 0)


def test_a_completion_that_alone_is_too_long_is_rejected_where_only_prompts_are_cut():
    data = load_preferences([SHORT, LONG], toys.chatml(), max_length=60, truncation="keep_end", max_rejected=0.5)
    assert data.summary.rejected == {"completion longer than max_length": 1}


def test_a_cut_completion_has_no_end_of_turn_and_is_marked():
    tokenizer = toys.chatml()
    whole = load_preferences([SHORT, LONG], tokenizer, max_length=10_000)
    data = load_preferences([SHORT, LONG], tokenizer, max_length=60, truncation="cut_completion")
    assert data[0] == whole[0]
    chosen, rejected = data[1].completions
    assert len(data[1].prompt) + len(chosen) == 60
    assert chosen == whole[1].completions[0][: len(chosen)]
    assert tokenizer.eos_token_id not in chosen
    assert rejected == whole[1].completions[1]
    assert data[1].cut == (True, False)
    assert (data.summary.cut_prompts, data.summary.cut_completions) == (0, 1)
    pairs = data.for_loss("unpaired")
    assert [e.cut for e in pairs] == [(), (), (True,), ()]
    assert [e.cut for e in data.for_loss("demonstration")] == [(), (True,)]
    assert [e.cut for e in data.for_loss("listwise").for_loss("paired")] == [(), (True, False)]


def test_a_pair_that_a_cut_makes_equal_is_rejected_and_so_is_a_prompt_without_room():
    start = "Yes, I like it, and I think the film is great. " * 9
    rows = [SHORT, row("The tea?", start + "Yes.", start + "No."), ASKED]
    data = load_preferences(rows, toys.chatml(), max_length=60, truncation="cut_completion", max_rejected=1.0)
    assert data.summary.rejected == {"chosen = rejected": 1, "prompt longer than max_length": 1}


def test_marks_of_a_cut_come_back_as_they_were_given():
    rows = [
        Example((1, 2), ((3,), (4, 5)), prompt_cut=True),
        Example((6,), ((7,), (8,)), cut=(False, True)),
        Example((6,), ((7,), (9,))),
    ]
    assert list(PreferenceData("paired", rows)) == rows


def test_an_unknown_rule_names_those_that_are_known():
    with pytest.raises(DataError, match=r"truncation = 'keep_start' is wrong.*'drop', 'keep_end' or 'cut_completion'"):
        load_preferences([SHORT], toys.chatml(), truncation="keep_start")
