"""The demo's preference pairs."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from prefopt.demo import pairs as demo
from prefopt.demo.build_data import build, mend
from prefopt.demo.pairs import GAP_BINS, PROMPTS, DemoPairs, Sentence, load_sentences, make_pairs, write_rows

FIRST_CHOSEN = "It's obviously struck a responsive chord"
FIRST_REJECTED = "To say that this vapid vehicle"


@pytest.fixture(scope="module")
def sentences() -> tuple[Sentence, ...]:
    return load_sentences()


@pytest.fixture(scope="module")
def made(sentences: tuple[Sentence, ...]) -> DemoPairs:
    return make_pairs(sentences)


def texts(rows: list[demo.Row]) -> list[str]:
    return [row[side][0]["content"] for row in rows for side in ("chosen", "rejected")]


def test_the_shipped_file_is_small_and_every_sentence_is_usable(sentences: tuple[Sentence, ...]) -> None:
    assert demo.DATA.stat().st_size < 1_000_000
    assert len({demo.same_sentence(s.text) for s in sentences}) == len(sentences) > 10_000
    assert all(4 <= len(s.text.split()) <= 40 for s in sentences)
    assert all(len(s.ratings) >= 15 and all(-4 <= rating <= 4 for rating in s.ratings) for s in sentences)


def test_pairs_oppose_a_liked_and_a_disliked_sentence(made: DemoPairs, sentences: tuple[Sentence, ...]) -> None:
    rating = {s.text: s.mean for s in sentences}
    for row in made.train + made.heldout:
        assert rating[row["chosen"][0]["content"]] >= 1.5
        assert rating[row["rejected"][0]["content"]] <= -1.5


def test_no_sentence_is_on_both_sides_of_the_split(made: DemoPairs) -> None:
    train = set(map(demo.same_sentence, texts(made.train)))
    held_out = set(map(demo.same_sentence, texts(made.heldout + made.by_gap)))
    assert not train & held_out


def test_a_sentence_is_used_once_held_out_and_at_most_three_times_elsewhere(made: DemoPairs) -> None:
    assert max(Counter(texts(made.heldout)).values()) == 1
    assert max(Counter(texts(made.by_gap)).values()) <= 3
    assert max(Counter(texts(made.train)).values()) <= 3
    pairs = Counter((row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in made.train)
    assert max(pairs.values()) == 1


def test_the_same_seed_gives_the_same_pairs_and_another_seed_another_split(sentences: tuple[Sentence, ...]) -> None:
    small = {"train": 50, "heldout": 20, "per_gap": 5}
    first = make_pairs(sentences, seed=3, **small)
    assert make_pairs(tuple(reversed(sentences)), seed=3, **small) == first
    assert set(texts(make_pairs(sentences, seed=4, **small).heldout)) != set(texts(first.heldout))


def test_the_default_pairs_stay_the_ones_that_published_figures_were_made_with(made: DemoPairs) -> None:
    assert made.heldout[0]["chosen"][0]["content"].startswith(FIRST_CHOSEN)
    assert made.heldout[0]["rejected"][0]["content"].startswith(FIRST_REJECTED)


def test_every_gap_bin_has_its_pairs_and_chosen_is_the_better_rated(
    made: DemoPairs, sentences: tuple[Sentence, ...]
) -> None:
    rating = {s.text: s.mean for s in sentences}
    for low, high in GAP_BINS:
        assert sum(low <= row["gap"] < high for row in made.by_gap) == 100
    for row in made.by_gap + made.train + made.heldout:
        gap = rating[row["chosen"][0]["content"]] - rating[row["rejected"][0]["content"]]
        assert row["gap"] == pytest.approx(gap, abs=1e-4)
        assert row["gap"] > 0


def test_rows_carry_the_ratings_of_their_sentences(made: DemoPairs, sentences: tuple[Sentence, ...]) -> None:
    ratings = {s.text: list(s.ratings) for s in sentences}
    for row in made.by_gap:
        assert row["chosen_ratings"] == ratings[row["chosen"][0]["content"]]
        assert row["rejected_ratings"] == ratings[row["rejected"][0]["content"]]


def test_prompts_differ_between_rows_and_are_one_user_message(made: DemoPairs) -> None:
    used = Counter(row["prompt"][0]["content"] for row in made.train)
    assert set(used) == set(PROMPTS)
    assert min(used.values()) > 300
    assert all([message["role"] for message in row["prompt"]] == ["user"] for row in made.train)


def test_agreement_counts_pairs_of_raters_and_half_of_the_ties() -> None:
    # (2, 1), (2, 2), (0, 1), (0, 2): one win, one tie, two losses.
    assert demo.agreement([2, 0], [1, 2]) == pytest.approx((1 + 0.5) / 4)
    assert demo.agreement([4], [-4]) == 1.0


def test_agreement_grows_with_the_gap(made: DemoPairs) -> None:
    shares = [sum(row["agreement"] for row in made.by_gap if low <= row["gap"] < high) / 100 for low, high in GAP_BINS]
    assert shares == sorted(shares)
    assert 0.6 < shares[0] < 0.8
    assert shares[-1] > 0.98


def test_too_few_sentences_are_an_error_and_not_fewer_pairs(sentences: tuple[Sentence, ...]) -> None:
    with pytest.raises(ValueError, match="pairs for heldout, and 10000 are asked for"):
        make_pairs(sentences, heldout=10_000)


def test_rows_are_written_as_json_lines(made: DemoPairs, tmp_path: Path) -> None:
    write_rows(made.heldout[:3], tmp_path / "pairs.jsonl")
    assert [json.loads(line) for line in (tmp_path / "pairs.jsonl").open(encoding="utf-8")] == made.heldout[:3]


def test_building_again_from_the_shipped_sentences_gives_the_same_bytes(tmp_path: Path) -> None:
    count = build(demo.DATA, tmp_path / "again.jsonl.gz")
    assert count == 10_306
    assert gzip.decompress((tmp_path / "again.jsonl.gz").read_bytes()) == gzip.decompress(demo.DATA.read_bytes())
    build(demo.DATA, tmp_path / "third.jsonl.gz")
    assert (tmp_path / "third.jsonl.gz").read_bytes() == (tmp_path / "again.jsonl.gz").read_bytes()


def test_building_drops_short_long_and_repeated_sentences_and_mends_letters(tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    long, good = "word " * 41, "The clichÃ©s are many, alas."
    rows = ["Too short this", good, "the CLICHÃ©S are many alas", long, "A naïve but sweet film"]
    source.write_text(
        "".join(json.dumps({"id": at, "text": text, "ratings": [1, 2]}) + "\n" for at, text in enumerate(rows)),
        encoding="utf-8",
    )
    assert build(source, tmp_path / "out.jsonl.gz") == 2
    kept = load_sentences(tmp_path / "out.jsonl.gz")
    assert [(s.id, s.text) for s in kept] == [(1, "The clichés are many, alas."), (4, "A naïve but sweet film")]
    assert mend("plain") == "plain"
