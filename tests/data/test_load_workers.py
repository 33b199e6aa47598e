"""Loading by several processes: what comes out is what one process makes, to the byte."""

import json
import os
import signal
from multiprocessing import parent_process

import pytest

from prefopt.data import cache, encode, load_preferences, loading, workers
from prefopt.data.arrow import FILES
from prefopt.data.config import DataOptions
from prefopt.data.encode import RowEncoder, encoded
from prefopt.data.formats import recognise
from prefopt.data.rejected import FILE_NAME
from prefopt.data.tokenize import Shortcuts
from prefopt.errors import RunError
from tests.data import toy_tokenizers as toys
from tests.data.hostile import damaged_bytes
from tests.data.test_load import conversation, write


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Batches of four rows, and a cache that takes sources of any size."""
    monkeypatch.setattr(loading, "BATCH", 4)
    monkeypatch.setattr(cache, "SMALL", 0)
    monkeypatch.setattr(cache, "default_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(workers, "processes", lambda: 2)
    return tmp_path


def load(folder, source, count, **options):
    """Load anew; returns everything that comes of it."""
    cache.default_folder = lambda: folder / f"cache-{count}"
    listed = folder / f"rejected-{count}.jsonl"
    data = load_preferences(source, toys.chatml(), rejected_to=listed, max_rejected=1.0, workers=count, **options)
    (entry,) = (path for path in (folder / f"cache-{count}").iterdir() if not path.name.startswith("."))
    kept = [(entry.name, name, (entry / name).read_bytes()) for name in (*FILES, FILE_NAME, cache.RECORD)]
    return list(data), data.summary, data.fingerprint, listed.read_bytes(), kept


def repeating(count):
    rows = [conversation(i % 7, chosen=f"Yes {i % 3}.") | {"kind": i, "score": i / 3} for i in range(count)]
    rows[9] = conversation(2, chosen="No.", rejected="Yes 2.")
    return [*rows, "{broken", conversation(3, rejected="No. " * 900), conversation(4, chosen="")]


@pytest.mark.parametrize("rules", [{}, {"duplicates": "drop", "contradictions": "keep_first"}])
def test_any_number_of_processes_makes_the_same_data_books_and_files(small, rules):
    source = write(small / "a.jsonl", repeating(50))
    alone = load(small, source, 0, **rules)
    assert alone[1].rows_rejected == 3
    assert bool(alone[1].rows_left_out) == bool(rules)
    for count in (1, 3, None):
        assert load(small, source, count, **rules) == alone


def test_rows_that_are_joined_or_damaged_come_out_alike(small):
    rows = [
        {"prompt": f"what is {i // 3}?", "response": f"Yes {i}." * (i % 11 > 0), "helpfulness": i % 4, "verbosity": 2}
        for i in range(40)
    ]
    write(small / "joined.jsonl", [*rows[:20], {"prompt": 3}, "[]", *rows[20:]])
    for name in ("pairs", "conversational lists"):
        (small / f"{name}.jsonl").write_bytes(damaged_bytes(3, name))
    for name in ("joined", "pairs", "conversational lists"):
        folder = small / name
        folder.mkdir()
        alone = load(folder, small / f"{name}.jsonl", 0)
        assert alone[1].rows_rejected
        assert load(folder, small / f"{name}.jsonl", 2) == alone


def test_few_rows_start_no_process(small, monkeypatch):
    def started(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(workers, "_loader", started)
    source = write(small / "a.jsonl", [conversation(i) for i in range(4 * workers.HERE)])
    assert len(load_preferences(source, toys.chatml())) == 4 * workers.HERE
    assert len(load_preferences([conversation(i) for i in range(50)], toys.chatml(), workers=2)) == 50  # in memory
    with pytest.raises(AssertionError, match="a process was started"):
        load_preferences(write(small / "b.jsonl", repeating(50)), toys.chatml(), max_rejected=1.0)


def test_what_cannot_travel_is_worked_on_here():
    tasks = [1, lambda: None, 2, 3]
    assert list(workers.in_order(type, tasks, 2)) == [int, type(lambda: None), int, int]


def test_a_shortcut_that_one_process_gives_up_is_given_up_behind_it_in_all(monkeypatch):
    """Batch 3 finds a shortcut wrong; whoever has batch 4 doesn't know, and must not be believed."""
    own, relied = RowEncoder(toys.chatml(), DataOptions()), []

    def in_order(work, tasks, *_, **__):
        for number, batch in enumerate(tasks):
            knows = number > 4
            yield work(batch)._replace(
                before=Shortcuts(cuts=not knows), after=Shortcuts(cuts=not (knows or number == 3))
            )

    def rely_on(self, shortcuts):
        relied.append(shortcuts)
        own._own.rely_on(shortcuts)

    monkeypatch.setattr(encode, "in_order", in_order)
    monkeypatch.setattr(RowEncoder, "rely_on", rely_on)
    format_ = recognise([conversation(0)], DataOptions(), source="a")
    batches = [[(number, encode.Task(conversation(number), "", format_))] for number in range(7)]
    found = [item for item, outcome in encoded(own, batches, 2, after_death="") if outcome.ids is not None]
    assert found == list(range(7))
    assert relied == [Shortcuts(cuts=False)]
    assert not own.shortcuts.cuts


def test_a_process_that_is_killed_ends_the_load_in_a_sentence_and_leaves_no_half_cache(small, monkeypatch):
    call = RowEncoder.__call__

    def killed(self, tasks):
        if parent_process() is not None and any(task.row and task.row.get("kind") == 30 for task in tasks):
            os.kill(os.getpid(), signal.SIGKILL)
        return call(self, tasks)

    monkeypatch.setattr(RowEncoder, "__call__", killed)
    source = write(small / "a.jsonl", repeating(50))
    for count in (2, None):
        with pytest.raises(RunError, match=r"A process that prepares data died.*load again"):
            load_preferences(source, toys.chatml(), max_rejected=1.0, workers=count)
        assert list((small / "cache").iterdir()) == []
    monkeypatch.setattr(RowEncoder, "__call__", call)
    data = load_preferences(source, toys.chatml(), max_rejected=1.0)
    assert len(data) == 50
    assert json.loads((next((small / "cache").iterdir()) / cache.RECORD).read_text().partition("\n")[2])["form"]


class Refuses:
    def __call__(self, task):
        raise RuntimeError("the work itself is wrong")


def test_an_error_of_the_work_is_not_told_as_a_death_of_its_worker():
    with pytest.raises(RuntimeError, match="the work itself is wrong") as raised:
        list(workers.in_order(Refuses(), range(4), 2))
    assert workers.death_of_a_worker(raised.value) is None
    for news in ("is killed by signal: Killed. ", "exited unexpectedly with exit code 1."):
        assert workers.death_of_a_worker(RuntimeError(f"DataLoader worker (pid 7) {news}")) is not None
    assert workers.death_of_a_worker(RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly")) is not None
