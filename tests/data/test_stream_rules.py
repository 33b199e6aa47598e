"""What a stream remembers: rules over all rows so far, lists of neighbours, and both after a resume."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from prefopt.data import PreferenceStream, load_preferences
from prefopt.data.remembered import Met
from prefopt.data.rules import BOTH_WAYS, ONE_WAY, OTHER_WAY
from prefopt.errors import DataError
from tests.data.test_windows import held, loader_of, mixture, take
from tests.toys import byte_tokenizer, pair_rows, write_rows

RULES = [
    {"duplicates": "drop"},
    {"contradictions": "keep_first"},
    {"duplicates": "drop", "contradictions": "keep_first"},
]


def turned(row):
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def repeating(count=60, seed=0):
    """Pairs, some of which repeat an earlier one and some of which contradict one."""
    draw = random.Random(seed)
    rows = pair_rows(count, seed=seed)
    for at in range(5, count):
        if draw.random() < 0.4:
            earlier = rows[draw.randrange(at)]
            rows[at] = earlier if draw.random() < 0.5 else turned(earlier)
    return rows


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_leaves_out_what_a_load_leaves_out_in_every_pass(tmp_path, rules, workers):
    path = write_rows(tmp_path / "rows.jsonl", repeating())
    data = load_preferences(str(path), byte_tokenizer(), rejected_to=tmp_path / "loaded.jsonl", **rules)
    stream = PreferenceStream(
        str(path), byte_tokenizer(), window=1, workers=workers, rejected_to=tmp_path / "streamed.jsonl", **rules
    )
    found = Counter()
    for _, window in zip(range(3 * len(data)), stream.windows(1), strict=False):
        found.update(example.source for example in window.data)
    assert found == {example.source: 3 for example in data}
    assert data.summary.left_out
    summary = stream.summary
    assert (summary.left_out, summary.rows_read) == (data.summary.left_out, data.summary.rows_read)
    assert summary.contradictions == data.summary.contradictions
    assert (tmp_path / "streamed.jsonl").read_text() == (tmp_path / "loaded.jsonl").read_text()


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_stream_that_remembers_goes_on_to_the_token_from_every_step(tmp_path, rules):
    path = write_rows(tmp_path / "rows.jsonl", repeating())
    options = {"window": 10, "per_step": 5, **rules}
    whole, states = take(loader_of(str(path), **options), 24)
    for at in range(0, 23, 2):
        resumed = loader_of(str(path), **options)
        resumed.load_state_dict(states[at])
        assert resumed.state_dict() == states[at]
        assert take(resumed, 23 - at) == (whole[at + 1 :], states[at + 1 :])


def test_a_row_is_left_out_for_one_of_another_source_of_a_mixture_and_stays_so(tmp_path):
    weights = mixture(tmp_path, sizes=(40, 25))
    rows = pair_rows(40, seed=0)
    small = write_rows(tmp_path / "b.jsonl", rows[:4] + pair_rows(21, seed=5) + rows[4:8])
    options = {"weights": weights, "duplicates": "drop", "window": 20, "per_step": 4}
    loader = loader_of("", **options)
    whole, states = take(loader, 60)
    assert loader.stream.summary.left_out == {"duplicate": 8}
    assert loader.stream.summary.rows_read == 40 + len(small.read_text().splitlines())
    resumed = loader_of("", **options)
    resumed.load_state_dict(states[30])
    assert take(resumed, 29) == (whole[31:], states[31:])
    assert resumed.stream.summary == loader.stream.summary


def test_what_a_stream_can_not_know_yet_is_refused(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", pair_rows(8))
    with pytest.raises(DataError, match=r"data\.contradictions = drop .* a later one says.* write keep_first"):
        PreferenceStream(str(path), byte_tokenizer(), contradictions="drop")


def rated(count, seed=0):
    """Prompts with two to four rated answers in neighbouring rows, some of them damaged, at the end too."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        for answer in range(draw.randint(2, 4)):
            rows.append({"prompt": f"{number}?", "response": f"answer {answer}", "helpfulness": answer})
            if draw.random() < 0.2:
                rows.append({"prompt": f"{number}?", "response": "no rating"})
    return [*rows, {"prompt": "last", "response": None, "helpfulness": 1}]


@pytest.mark.parametrize("form", ["listwise", "paired"])
def test_neighbours_that_are_joined_are_streamed_as_they_are_loaded_and_resumed_in_their_places(tmp_path, form):
    path = write_rows(tmp_path / "rated.jsonl", rated(30))
    options = {"max_rejected": 0.5, "format": "helpsteer"}
    data = load_preferences(str(path), byte_tokenizer(), rejected_to=tmp_path / "loaded.jsonl", **options)
    stream = PreferenceStream(str(path), byte_tokenizer(), window=1, **options)
    window = next(stream.windows(len(data))).data
    assert sorted(window, key=str) == sorted((replace(example, meta={}) for example in data), key=str)

    loader_options = {**options, "form": form, "window": 4, "per_step": 2}
    loader = loader_of(str(path), rejected_to=tmp_path / "streamed.jsonl", **loader_options)
    whole, states = take(loader, 40)
    summary = loader.stream.summary
    assert (summary.rows_read, summary.rows_used) == (data.summary.rows_read, data.summary.rows_used)
    assert summary.rejected == data.summary.rejected
    assert (tmp_path / "streamed.jsonl").read_text() == (tmp_path / "loaded.jsonl").read_text()
    for at in range(0, 39, 3):
        resumed = loader_of(str(path), **loader_options)
        resumed.load_state_dict(states[at])
        steps, again = take(resumed, 39 - at)
        assert steps == whole[at + 1 :]
        assert [state["at"]["lanes"] for state in again] == [state["at"]["lanes"] for state in states[at + 1 :]]
    assert sum(held(loader_of(str(path), **loader_options), 30).values()) == 60


def test_what_was_met_is_known_again_and_its_beginning_is_what_was_met_earlier():
    draw = random.Random(3)
    keys = [draw.getrandbits(64) & ~1 for _ in range(500)]
    met, plain, lengths = Met(), {}, []
    for number in range(3000):
        key, way = draw.choice(keys[: 10 + number // 6]), draw.choice((ONE_WAY, OTHER_WAY, BOTH_WAYS))
        assert met.get(key, 0) == plain.get(key, 0)
        met[key] = plain[key] = plain.get(key, 0) | way
        lengths.append(len(met.log))
    assert [met.get(key, 0) for key in keys] == [plain.get(key, 0) for key in keys]
    again = Met(met.log[: lengths[1000]])
    assert again.log == met.log[: lengths[1000]]
    for key in keys:
        known = again.get(key, 0)
        assert known & met.get(key, 0) == known
    assert lengths[-1] == sum(bin(ways).count("1") for ways in plain.values())
