"""A stream: windows, books and places, against the same rows in memory."""

import json
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from prefopt.data import Packing, PreferenceStream, StreamLoader, Weighted, load_preferences
from prefopt.data.read import text
from prefopt.errors import DataError, RunError
from tests.data.test_pack import examples
from tests.toys import byte_tokenizer, list_rows, pair_rows, write_rows


def labelled_rows(count):
    return [
        {"prompt": row["prompt"], "completion": row["chosen" if i % 3 else "rejected"], "label": i % 3 > 0}
        for i, row in enumerate(pair_rows(count))
    ]


def loader_of(
    source, *, form="paired", window=24, workers=0, mismatched=False, per_step=8, seed=0, packing=None, **more
):
    stream = PreferenceStream(source, byte_tokenizer(), window=window, workers=workers, **more)
    return StreamLoader(
        stream.for_loss(form, needs_mismatched=mismatched),
        packing or Packing(400, shared=True),
        examples_per_step=per_step,
        seed=seed,
        mismatched=mismatched,
    )


def take(loader, count):
    """The next steps as tokens, and the loader's state behind each."""
    steps, states = [], []
    for item in loader:
        steps.append([(p.tokens.tolist(), p.score_at.tolist(), p.mismatched.tolist()) for p in item["micro"]])
        states.append(json.loads(json.dumps(loader.state_dict())))
        if len(steps) == count:
            return steps, states
    raise AssertionError("a stream has no end")


def held(loader, count):
    found = Counter()
    for _, item in zip(range(count), loader, strict=False):
        for pack in item["micro"]:
            found.update(examples(pack))
    return found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    rows = pair_rows(57)
    rows[5]["chosen"] = rows[5]["rejected"]
    rows[40]["prompt"] = None
    for at in (10, 30):
        rows[at + 1]["prompt"] = rows[at]["prompt"]
    path = write_rows(tmp_path_factory.mktemp("stream") / "pairs.jsonl", rows)
    path.write_text(path.read_text().replace("\n", "\n\n", 1) + "no json\n")
    return path


@pytest.mark.parametrize(
    ("form", "rows", "mismatched"),
    [
        ("paired", pair_rows, False),
        ("unpaired", pair_rows, True),
        ("demonstration", pair_rows, False),
        ("listwise", pair_rows, False),
        ("unpaired", labelled_rows, True),
        ("demonstration", labelled_rows, False),
        ("paired", list_rows, False),
        ("listwise", list_rows, False),
        ("unpaired", list_rows, False),
    ],
)
def test_a_pass_of_a_stream_holds_what_the_loaded_data_hold(tmp_path, form, rows, mismatched):
    path = write_rows(tmp_path / "rows.jsonl", rows(48))
    data = load_preferences(str(path), byte_tokenizer()).for_loss(form)
    assert len(data) % 4 == 0
    loader = loader_of(str(path), form=form, per_step=4, mismatched=mismatched, window=len(data) // 2)
    found = held(loader, len(data) // 4)
    wanted = Counter()
    for example in data:
        texts = [(example.prompt, completion) for completion in example.completions]
        if data.form == "listwise":
            wanted["list", *zip(texts, example.scores, strict=True)] += 1
        elif data.form == "paired":
            wanted["pair", *texts, example.scores or None] += 1
        else:
            wanted["label", texts[0], example.label] += 1
    others = {key: n for key, n in found.items() if key[0] == "mismatched"}
    assert sum(others.values()) == mismatched * len(data)
    assert found - Counter(others) == wanted


def test_lists_that_prefer_nothing_are_passed_over_and_steps_stay_full(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", list_rows(10, tied=True) + list_rows(16))
    for item, _ in zip(loader_of(str(path)), range(6), strict=False):
        assert sum(pack.num_examples for pack in item["micro"]) == 8
    tied = write_rows(tmp_path / "tied.jsonl", list_rows(10, tied=True))
    with pytest.raises(DataError, match="No row of the sources makes an example that this loss can use"):
        next(iter(loader_of(str(tied))))


@pytest.mark.parametrize("window", [1, 20, 56, 500])
@pytest.mark.parametrize(("form", "mismatched"), [("paired", False), ("unpaired", True)])
def test_a_resumed_stream_goes_on_to_the_token_from_every_step(pairs, window, form, mismatched):
    options = {"form": form, "mismatched": mismatched, "window": window, "max_rejected": 0.1, "per_step": 9}
    whole, states = take(loader_of(str(pairs), **options), 20)
    for at in range(0, 19, 3):
        resumed = loader_of(str(pairs), **options)
        resumed.load_state_dict(states[at])
        steps, again = take(resumed, 19 - at)
        assert steps == whole[at + 1 :]
        assert again == states[at + 1 :]


def test_the_stream_is_the_same_for_any_number_of_workers_and_from_any_place(pairs):
    whole, states = take(loader_of(str(pairs), max_rejected=0.1), 30)
    for workers in (1, 4):
        assert take(loader_of(str(pairs), max_rejected=0.1, workers=workers), 30) == (whole, states)
    resumed = loader_of(str(pairs), max_rejected=0.1, workers=4)
    resumed.load_state_dict(states[10])
    assert take(resumed, 19)[0] == whole[11:]


def test_windows_are_shuffled_and_every_pass_shows_each_example_once(pairs):
    first, second = (take(loader_of(str(pairs), max_rejected=0.1, seed=seed), 3)[0] for seed in (0, 1))
    assert first != second
    everything = held(loader_of(str(pairs), max_rejected=0.1, per_step=5, window=20), 44)
    assert set(everything.values()) == {4}, "44 steps of 5 are 11 windows of 20, and four passes over 55 examples"


def test_bad_rows_are_listed_and_counted_once_and_after_a_resume_as_without(pairs, tmp_path):
    def books(steps, state=None, name="rejected.jsonl"):
        loader = loader_of(str(pairs), max_rejected=0.1, rejected_to=tmp_path / name)
        if state:
            loader.load_state_dict(state)
        found = take(loader, steps)[1][-1]
        return loader.stream.summary, found, (tmp_path / name).read_text()

    summary, _, listed = books(30)
    loaded = load_preferences(str(pairs), byte_tokenizer(), max_rejected=0.1, rejected_to=tmp_path / "loaded.jsonl")
    assert (summary.rows_read, summary.rows_used, summary.rejected) == (58, 55, loaded.summary.rejected)
    assert listed == (tmp_path / "loaded.jsonl").read_text()
    _, state, _ = books(4, name="resumed.jsonl")
    (tmp_path / "resumed.jsonl").open("a").write("half a li")
    again, _, listed_again = books(26, state, "resumed.jsonl")
    assert (again, listed_again) == (summary, listed)


def test_too_many_bad_rows_end_a_stream_with_the_sentence_of_a_load(pairs, tmp_path):
    with pytest.raises(DataError, match=r"3 of 58 rows \(5\.2%\) can't be used, and data\.max_rejected allows 1\.0%"):
        take(loader_of(str(pairs)), 30)
    rows = pair_rows(3000)
    for at in range(1500, 1600):
        rows[at]["chosen"] = rows[at]["rejected"]
    path = write_rows(tmp_path / "late.jsonl", rows)
    with pytest.raises(DataError, match=r"16 of 1516 rows \(1\.1%\) can't be used"):
        take(loader_of(str(path)), 400)


def test_a_resume_reads_one_window_and_no_more(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "long.jsonl", pair_rows(4000))
    lines = []
    parse = text._parse_line
    monkeypatch.setattr(text, "_parse_line", lambda *args: lines.append(args[1]) or parse(*args))
    loader = loader_of(str(path), window=512)
    _, states = take(loader, 400)
    resumed = loader_of(str(path), window=512)
    lines.clear()
    resumed.load_state_dict(states[-1])
    take(resumed, 1)
    assert min(lines) > 3000
    assert len(lines) <= 512 + 256 + 1  # the window, what is tokenized in one call, and a look ahead


def mixture(tmp_path, sizes=(40, 25), weights=(0.75, 0.25)):
    names = []
    for number, size in enumerate(sizes):
        path = write_rows(tmp_path / f"{'ab'[number]}.jsonl", pair_rows(size, seed=number))
        names.append(Weighted((str(path),), weights[number]))
    return tuple(names)


def test_a_mixture_is_interleaved_by_weight_and_resumes_with_each_source_in_its_place(tmp_path):
    weights = mixture(tmp_path)
    whole, states = take(loader_of("", weights=weights), 30)
    lanes = states[-1]["at"]["lanes"]
    assert [lane["drawn"] for lane in lanes] == [162, 54], "where the tenth window of 24 began"
    for workers, at in ((0, 3), (0, 17), (4, 22)):
        resumed = loader_of("", weights=weights, workers=workers)
        resumed.load_state_dict(states[at])
        assert take(resumed, 29 - at)[0] == whole[at + 1 :]


def test_ranks_of_a_stream_read_disjoint_parts_that_are_the_whole(pairs):
    options = {"max_rejected": 0.1}
    alone = held(loader_of(str(pairs), **options), 8)
    for world in (2, 3):
        parts = [Packing(150, shared=True, rank=rank, world=world) for rank in range(world)]
        loaders = [loader_of(str(pairs), packing=part, **options) for part in parts]
        assert sum((held(loader, 8) for loader in loaders), Counter()) == alone


def test_a_place_in_another_stream_is_refused(pairs, tmp_path):
    loader = loader_of(str(pairs), max_rejected=0.1)
    _, states = take(loader, 2)
    copy = tmp_path / "pairs.jsonl"
    copy.write_text(pairs.read_text())
    for other in (
        loader_of(str(pairs), max_rejected=0.1, window=25),
        loader_of(str(pairs), max_rejected=0.1, max_length=900),
        loader_of(str(copy), max_rejected=0.1),
    ):
        with pytest.raises(DataError, match="its data was"):
            other.load_state_dict(states[-1])
    with pytest.raises(DataError, match="its seed was 0 and now is 1"):
        loader_of(str(pairs), max_rejected=0.1, seed=1).load_state_dict(states[-1])


def test_what_a_stream_can_not_be_is_said_before_it_is_read(tmp_path):
    labels = write_rows(tmp_path / "labels.jsonl", labelled_rows(6))
    with pytest.raises(DataError, match="single completions with a label"):
        PreferenceStream(str(labels), byte_tokenizer()).for_loss("paired")
    with pytest.raises(DataError, match=r"data\.window must be at least 1"):
        PreferenceStream(str(labels), byte_tokenizer(), window=0)
    one = write_rows(tmp_path / "one.jsonl", [{**row, "prompt": pair_rows(1)[0]["prompt"]} for row in pair_rows(9)])
    with pytest.raises(DataError, match=r"In a window of 12 examples .* only one distinct prompt"):
        next(iter(loader_of(str(one), form="unpaired", mismatched=True)))


class Dies:
    def __call__(self, task):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_an_error_and_no_wait():
    from prefopt.data.workers import in_order

    with pytest.raises((RunError, RuntimeError), match=r"DataLoader worker"):
        list(in_order(Dies(), range(4), 2))


def test_asking_how_processes_start_does_not_settle_it(monkeypatch):
    from prefopt.data import workers

    context = multiprocessing.context.DefaultContext(multiprocessing.get_context("spawn"))
    monkeypatch.setattr(multiprocessing, "get_start_method", context.get_start_method)
    workers.processes()
    assert context.get_start_method(allow_none=True) is None
    context.set_start_method("spawn")
    assert workers.processes() == 0


FIXTURES = Path(__file__).parent / "fixtures"
SCHEMAS = sorted(FIXTURES.glob("*.jsonl"))


@pytest.mark.parametrize("source", SCHEMAS, ids=lambda path: path.stem)
def test_published_schemas_are_streamed_as_they_are_loaded(source):
    tokenizer = byte_tokenizer()
    options = {"max_rejected": 1.0, "ties": "drop", "truncation": "cut_completion", "max_length": 300}
    data = load_preferences(source, tokenizer, **options)
    stream = PreferenceStream(source, tokenizer, window=1, **options)
    windows = stream.windows(len(data))
    window = next(windows).data
    next(windows)  # rows behind the last example are read too
    assert sorted(window, key=str) == sorted((replace(example, meta={}) for example in data), key=str)
    assert window.form == data.form
    found, whole = stream.summary, data.summary
    assert (found.form, found.rejected, found.left_out) == (whole.form, whole.rejected, whole.left_out)
    assert (found.rows_read, found.rows_used, found.ties) == (whole.rows_read, whole.rows_used, whole.ties)
    assert (found.cut_prompts, found.cut_completions) == (whole.cut_prompts, whole.cut_completions)


def test_demonstrations_of_a_stream_serve_no_loss_that_compares():
    stream = PreferenceStream(str(FIXTURES / "demonstrations.jsonl"), byte_tokenizer(), max_rejected=1.0)
    with pytest.raises(DataError, match="the data are demonstrations"):
        stream.for_loss("unpaired")
    assert next(stream.for_loss("demonstration").windows(1)).data.labels.all()


def test_lists_of_a_stream_that_prefer_nothing_are_left_out_where_the_loss_ignores_them(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", list_rows(5) + list_rows(3, tied=True))
    stream = PreferenceStream(str(path), byte_tokenizer(), window=1)
    assert len(next(stream.for_loss("listwise", scores="given").windows(8)).data) == 8
    assert len(next(stream.for_loss("listwise", scores="given", needs_preference=True).windows(5)).data) == 5
