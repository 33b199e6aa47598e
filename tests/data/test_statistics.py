"""What an inspection measures, against counts by hand."""

import json

import numpy as np
import pytest

from prefopt.data import inspect_lines, inspect_source
from prefopt.data.statistics import Rate, gap_histogram, length_candidates, length_histogram, score_statistics
from tests.data import toy_tokenizers as toys
from tests.data.every_format import FORMATS


def pair(prompt="Is it tea?", chosen=" Yes.", rejected=" No.", **others):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **others}


def test_the_interval_of_a_share_is_wilsons():
    rate = Rate.of(7, 10)
    assert rate is not None
    # The roots of (share - p)^2 = z^2 p (1 - p) / n
    for p in (rate.low, rate.high):
        assert (0.7 - p) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / 10)
    assert Rate.of(0, 0) is None
    assert Rate.of(0, 5).low == 0.0


def test_every_length_falls_between_its_edges():
    values = np.array([0, 1, 2, 3, 4, 5, 6, 11, 12, 400], dtype=np.int64)
    found = length_histogram({"prompt": values, "chosen": values[:3]})
    for name, counts in found.counts.items():
        own = values if name == "prompt" else values[:3]
        wanted = [((own >= a) & (own < b)).sum() for a, b in zip(found.edges, found.edges[1:], strict=False)]
        assert list(counts) == wanted
        assert sum(counts) == len(own)
    assert found.edges[:6] == (0, 1, 2, 3, 4, 6)


@pytest.mark.parametrize("gaps", [[0.0], [-1.0, 2.0], [3.0, 3.5, 4.0], [1e30, -1e30], [1e-7, 2e-7], [6.8e38]])
def test_gaps_of_any_size_fall_into_a_few_bins_with_an_edge_at_nothing(gaps):
    found = gap_histogram(np.array(gaps))
    assert sum(found.counts["gap"]) == len(gaps)
    assert len(found.edges) <= 13
    if min(gaps) < 0 < max(gaps):
        assert 0 in found.edges


def test_scores_that_tie_or_contradict_their_pair_are_counted():
    found = score_statistics([(2.0, 1.0), (1.0, 1.0), (0.0, 3.0), (5.0, 1.0)], lists=False)
    assert (found.scored, found.against, found.tied, found.tied_pairs) == (4, 1, 1, None)
    assert found.gap[1] == 0.5
    lists = score_statistics([(2.0, 1.0, 1.0), (1.0, 1.0)], lists=True)
    assert (lists.tied, lists.tied_pairs.count, lists.tied_pairs.n) == (1, 2, 4)


def test_each_max_length_says_what_it_would_drop():
    totals = np.array([10] * 95 + [90] * 4 + [300], dtype=np.int64)
    found, suggested = length_candidates(totals)
    assert [(one.max_length, one.rows_dropped, one.tokens_dropped) for one in found] == [
        (64, 5, 660),
        (96, 1, 300),
        (128, 1, 300),
        (192, 1, 300),
        (256, 1, 300),
        (384, 0, 0),
    ]
    assert suggested == 96
    assert length_candidates(np.zeros(0, dtype=np.int64)) == ((), None)


def test_rows_that_are_too_long_count_in_what_each_max_length_would_hold():
    rows = [pair(prompt=f"a {i}") for i in range(9)] + [pair(chosen="a " * 400)]
    found = inspect_source(rows, toys.chatml(), max_length=100)
    assert found.summary.rejected == {"longer than max_length": 1}
    by_length = {one.max_length: one.rows_dropped for one in found.statistics.candidates}
    assert by_length[64] == 1
    assert found.statistics.suggested > 400
    assert found.statistics.candidates[-1].rows_dropped == 0
    assert f"{found.statistics.suggested} holds 99% of the rows or more; 100 was asked for" in inspect_lines(found)


def test_length_bias_leaves_equal_lengths_apart():
    rows = [pair(f"{i}?", " longer one", " no") for i in range(6)] + [
        pair("x?", " ab", " cd"),
        pair("y?", " a", " bcd"),
    ]
    found = inspect_source(rows).statistics
    assert (found.longer.count, found.longer.n, found.same_length) == (6, 7, 1)
    lines = inspect_lines(inspect_source([pair(f"{i}?", " longer one", " no") for i in range(40)]))
    assert any("a policy learns length" in line for line in lines)


def test_judgements_that_contradict_each_other_are_counted():
    rows = [pair(), pair(chosen=" No.", rejected=" Yes."), pair("Another?"), pair(), pair("Third?", " A", " B")]
    assert inspect_source(rows).statistics.contradicted == 3
    labels = [{"prompt": "a", "completion": c, "label": good} for c, good in (("b", True), ("b", False), ("c", True))]
    assert inspect_source(labels).statistics.contradicted == 2
    lists = [
        {"prompt": "a", "completions": ["x", "y", "z"], "scores": s}
        for s in ([3, 2, 1], [3, 2, 1], [2, 3, 1], [1, 1, 0])
    ]
    assert inspect_source(lists).statistics.contradicted == 3  # x over y twice, y over x once


def test_repetition_is_seen_with_and_without_a_tokenizer():
    rows = [pair(f"What is the best green tea in the whole wide world number {i // 2}?") for i in range(10)]
    for found in (inspect_source(rows), inspect_source(rows, toys.chatml())):
        assert (found.summary.distinct_prompts, found.summary.duplicates) == (5, 5)
        assert (found.statistics.near_prompts.distinct, found.statistics.near_prompts.near) == (5, 5)


def test_overlap_with_held_out_rows_is_counted(tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    asked = ["Is it  TEA?", "is it tea?", "Something else entirely, is it not?", "q 3"]
    held_out.write_text("".join(json.dumps(pair(q)) + "\n" for q in asked))
    found = inspect_source([pair(), pair("q 3"), pair("q 4")], held_out=str(held_out))
    overlap = found.statistics.overlap
    assert (overlap.rows, overlap.shared_rows, overlap.prompts, overlap.shared_prompts) == (4, 3, 3, 2)
    assert (overlap.near.distinct, overlap.near.near) == (3, 2)
    assert any("flatters" in line for line in inspect_lines(found))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_inspected_with_and_without_a_tokenizer(name):
    for tokenizer in (None, toys.chatml()):
        found = inspect_source(FORMATS[name], tokenizer)
        assert found.summary.rows_used == 7
        assert json.loads(json.dumps(found.to_dict()))["statistics"]["near_rows"]["distinct"] == 7
        assert all(sum(counts) >= 3 for counts in found.statistics.histogram.counts.values())
        assert inspect_lines(found)
