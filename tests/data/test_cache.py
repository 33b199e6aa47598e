"""Tokenized data on disk: a warm load says and gives what the cold one did, and nothing broken is ever used."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken

from prefopt.data import cache, load_preferences
from prefopt.data.arrow import FILES
from prefopt.errors import DataError
from tests.data import toy_tokenizers as toys
from tests.data.test_load import conversation, listed, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache that takes sources of any size."""
    monkeypatch.setattr(cache, "SMALL", 0)
    monkeypatch.setattr(cache, "default_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    rows = [{**conversation(i), "score": i / 3, "kind": "é" if i % 2 else None} for i in range(30)]
    return write(tmp_path / "a.jsonl", [*rows, "{broken", conversation(1, chosen="")])


def entries(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def forbid_reading(monkeypatch):
    def read_into(*_):
        raise AssertionError("the source is read again")

    monkeypatch.setattr("prefopt.data.load.read_into", read_into)


@pytest.mark.parametrize("rows", [[conversation(i) for i in range(9)], [listed(i) for i in range(9)]])
def test_a_warm_load_gives_and_says_what_the_cold_one_did(folder, tmp_path, monkeypatch, rows):
    path = write(tmp_path / "b.jsonl", [*rows, "{broken"])
    plain = load_preferences(path, toys.llama(), cache=False, max_rejected=0.5)
    assert not folder.exists()
    cold = load_preferences(path, toys.llama(), rejected_to=tmp_path / "cold.jsonl", max_rejected=0.5)
    forbid_reading(monkeypatch)
    warm = load_preferences(path, toys.llama(), rejected_to=tmp_path / "warm.jsonl", max_rejected=0.5)
    assert list(warm) == list(cold) == list(plain)
    assert warm.summary == cold.summary == plain.summary
    assert warm.fingerprint == cold.fingerprint == plain.fingerprint
    assert (tmp_path / "warm.jsonl").read_text() == (tmp_path / "cold.jsonl").read_text() != ""
    assert np.array_equal(warm.prompt_ids, plain.prompt_ids)
    assert list(warm.for_loss("unpaired")) == list(plain.for_loss("unpaired"))


def test_columns_beside_the_pair_and_their_types_come_back(folder, source, monkeypatch):
    cold = load_preferences(source, toys.chatml(), max_rejected=0.5)
    forbid_reading(monkeypatch)
    warm = load_preferences(source, toys.chatml(), max_rejected=0.5)
    assert [e.meta for e in warm] == [e.meta for e in cold]
    assert warm[1].meta == {"score": 1 / 3, "kind": "é"}
    assert warm[4].source == f"{source}:5"
    assert warm.columns.sources[3:5] == [f"{source}:4", f"{source}:5"]


def test_a_warm_load_refuses_what_a_cold_one_would(folder, source, monkeypatch):
    with pytest.raises(DataError) as cold:
        load_preferences(source, toys.chatml())
    assert entries(folder) == []
    load_preferences(source, toys.chatml(), max_rejected=1.0)
    forbid_reading(monkeypatch)
    with pytest.raises(DataError) as warm:
        load_preferences(source, toys.chatml())
    assert str(warm.value) == str(cold.value)


def test_the_length_that_would_hold_all_is_said_by_a_warm_load_too(folder, tmp_path, monkeypatch):
    rows = [conversation(i) for i in range(5)] + [conversation(5, chosen="Yes. " * 30)]
    path, said = write(tmp_path / "b.jsonl", rows), []
    load_preferences(path, toys.chatml(), max_length=60, max_rejected=1.0)
    for forbid in (False, True):
        if forbid:
            forbid_reading(monkeypatch)
        with pytest.raises(DataError, match=r"raise data.max_length \(\d+ would hold") as caught:
            load_preferences(path, toys.chatml(), max_length=60)
        said.append(str(caught.value))
    assert said[0] == said[1]


def changes():
    def other_template(tokenizer):
        tokenizer.chat_template = tokenizer.chat_template.replace("\n", " ")

    def other_token(tokenizer):
        tokenizer.add_tokens([AddedToken("answer", normalized=False)])

    def other_eos(tokenizer):
        tokenizer.eos_token = "<|endoftext|>"

    return [other_template, other_token, other_eos]


def test_everything_that_the_tokens_depend_on_makes_an_entry_of_its_own(folder, source, tmp_path):
    def count(path=source, tokenizer=None, **options):
        load_preferences(path, tokenizer or toys.chatml(), max_rejected=0.5, **options)
        return len(entries(folder))

    assert count() == 1
    for number, options in enumerate(
        [{"max_length": 500}, {"truncation": "keep_end"}, {"thinking": "drop"}, {"format": "pairs"}], start=2
    ):
        assert count(**options) == number
        assert count(**options) == number
    made = len(entries(folder))
    for number, change in enumerate(changes(), start=made + 1):
        tokenizer = toys.byte_level.__wrapped__("chatml", toys.CHATML, bos=None, eos="<|im_end|>", adds_bos=False)
        change(tokenizer)
        assert count(tokenizer=tokenizer) == number
    made = len(entries(folder))
    text, times = source.read_text(), source.stat()
    source.write_text(text.replace("answer 7?", "answer 8?"))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and time, another content
    assert count() == made + 1
    copy = write(tmp_path / "copy.jsonl", text.splitlines())
    assert count(copy) == made + 2  # rows say where they come from
    assert count([source, copy]) == made + 3
    assert count([copy, source]) == made + 4


def test_another_format_of_the_cache_is_not_read(folder, source, monkeypatch):
    load_preferences(source, toys.chatml(), max_rejected=0.5)
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    load_preferences(source, toys.chatml(), max_rejected=0.5)
    assert len(entries(folder)) == 2


def test_rows_in_memory_small_sources_and_whoever_says_so_are_not_kept(folder, source, monkeypatch):
    load_preferences([conversation(1)], toys.chatml())
    load_preferences(source, toys.chatml(), cache=False, max_rejected=0.5)
    monkeypatch.setattr(cache, "SMALL", 1 << 20)
    load_preferences(source, toys.chatml(), max_rejected=0.5)
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty"])
@pytest.mark.parametrize("name", [*FILES, cache.RECORD, "rejected_rows.jsonl"])
def test_a_damaged_entry_is_made_anew_and_that_is_said(folder, source, caplog, name, damage):
    cold = load_preferences(source, toys.chatml(), max_rejected=0.5)
    (entry,) = folder.iterdir()
    path = entry / name
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 4
    path.unlink()  # the old one stays whole under data that was loaded from it
    if damage != "remove":
        path.write_bytes({"flip": bytes(held), "cut": bytes(held[:-9]), "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        again = load_preferences(source, toys.chatml(), max_rejected=0.5)
    assert "is damaged" in caplog.text
    assert list(again) == list(cold)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert list(load_preferences(source, toys.chatml(), max_rejected=0.5)) == list(cold)
    assert not caplog.text
    assert [path.name for path in folder.iterdir()] == [entry.name]


def test_a_source_that_is_written_to_while_it_is_read_is_not_kept(folder, source, monkeypatch):
    from prefopt.data import load

    read_into = load.read_into

    def and_change(*arguments):
        read_into(*arguments)
        source.write_text(source.read_text() + "\n")

    monkeypatch.setattr(load, "read_into", and_change)
    data = load_preferences(source, toys.chatml(), max_rejected=0.5)
    assert len(data) == len(list(data)) == 30
    assert entries(folder) == []


def test_a_folder_that_cannot_be_written_is_said_and_the_data_is_loaded(folder, source, caplog):
    folder.write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        assert len(load_preferences(source, toys.chatml(), max_rejected=0.5)) == 30
    assert "can't be kept" in caplog.text


def test_entries_that_nobody_uses_and_drafts_of_killed_processes_are_removed(folder, source):
    load_preferences(source, toys.chatml(), max_rejected=0.5)
    (entry,) = folder.iterdir()
    (folder / ".draft").mkdir()
    long_ago = time.time() - 40 * 86400
    os.utime(folder / ".draft", (long_ago, long_ago))
    os.utime(entry, (long_ago, long_ago))
    load_preferences(source, toys.chatml(), max_rejected=0.5)  # using it makes it young
    load_preferences(source, toys.chatml(), max_rejected=0.5, max_length=99)
    assert len(list(folder.iterdir())) == 2
    os.utime(entry, (long_ago, long_ago))
    load_preferences(source, toys.chatml(), max_rejected=0.5, max_length=98)
    assert entry.name not in entries(folder)


SCRIPT = """
import sys
from pathlib import Path
from prefopt.data import cache, load_preferences
from tests.data import toy_tokenizers as toys
cache.SMALL = 0
cache.default_folder = lambda: Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
data = load_preferences(sys.argv[2], toys.chatml(), max_rejected=0.5)
print(data.fingerprint, len(data))
"""


def start(folder, source):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(source)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_at_once_give_the_same_and_leave_one_entry(folder, source):
    both = [start(folder, source) for _ in range(2)]
    for process in both:
        go(process)
    expected = load_preferences(source, toys.chatml(), cache=False, max_rejected=0.5)
    for process in both:
        assert process.communicate()[0] == f"{expected.fingerprint} 30\n"
        assert process.returncode == 0
    assert len(list(folder.iterdir())) == 1


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_that_is_used(folder, tmp_path, monkeypatch):
    source = write(tmp_path / "many.jsonl", [conversation(i, chosen=f"Yes {i}. " * 20) for i in range(20_000)])
    expected = load_preferences(source, toys.chatml(), cache=False).fingerprint
    seen = 0
    for number in range(3):
        process = start(folder, source)
        go(process)
        deadline = time.time() + 60
        while not list(folder.glob(".*/tokens.*")) and process.poll() is None and time.time() < deadline:
            time.sleep(0.005)
        time.sleep(0.2 * number)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        seen += bool(list(folder.glob(".*")))
    assert seen  # at least one was in the middle of it
    assert load_preferences(source, toys.chatml()).fingerprint == expected
    forbid_reading(monkeypatch)
    assert load_preferences(source, toys.chatml()).fingerprint == expected


def test_the_record_is_plain_json_with_a_digest_before_it(folder, source):
    data = load_preferences(source, toys.chatml(), max_rejected=0.5)
    (entry,) = folder.iterdir()
    record = json.loads((entry / cache.RECORD).read_text().partition("\n")[2])
    assert record["fingerprint"] == data.fingerprint
    assert type(data.summary).from_dict(record["summary"]) == data.summary
    assert dataclasses.asdict(data.summary)["rows_used"] == 30
