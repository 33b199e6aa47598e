"""Log-probs of references on disk: the first stored value wins, and nothing that is damaged is ever given back."""

import os
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest

from prefopt.errors import RunError
from prefopt.models.references import store as store_module
from prefopt.models.references.store import ReferenceRow, Store, Value

ROOT = Path(__file__).resolve().parents[2]
ONE = ReferenceRow("a" * 32, "setting", "weights", "a model")
OTHER = ReferenceRow("b" * 32, "setting", "other weights", "another model")


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def value(number: int, logprob: float, length: int = 3) -> Value:
    return Value(number.to_bytes(16, "little"), length, floats(logprob))


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def read(store: Store, *numbers: int, reference: ReferenceRow = ONE, length: int = 3) -> dict[bytes, bytes]:
    return store.read(reference, {key(number): length for number in numbers}, per_token=False)[0]


def change(store: Store, sql: str, *values: object) -> None:
    """Do to the database what a broken disk does."""
    with sqlite3.connect(store.path) as connection:
        assert connection.execute(sql, values).rowcount > 0


def test_the_first_stored_value_wins_and_is_the_one_given_back(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    assert first.write(ONE, [value(1, -1.5)], {}) == {(key(1), False): floats(-1.5)}
    won = second.write(ONE, [value(1, -1.25), value(2, -2.0)], {})
    assert won == {(key(1), False): floats(-1.5), (key(2), False): floats(-2.0)}
    assert read(first, 1, 2, 3) == {key(1): floats(-1.5), key(2): floats(-2.0)}


def test_references_and_their_single_tokens_are_kept_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(ONE, [value(1, -1.0), Value(key(1), 3, floats(-0.25, -0.25, -0.5), per_token=True)], {})
    assert read(store, 1, reference=OTHER) == {}
    assert read(store, 1) == {key(1): floats(-1.0)}
    assert store.read(ONE, {key(1): 3}, per_token=True)[0] == {key(1): floats(-0.25, -0.25, -0.5)}


def test_more_keys_than_one_query_takes_are_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(ONE, [value(n, -float(n)) for n in range(1, 2001)], {})
    assert len(read(store, *range(1, 2002))) == 2000


DAMAGE = {
    "another number": ("UPDATE value SET data = ?", floats(-9.0)),
    "half a number": ("UPDATE value SET data = ?", floats(-1.0)[:2]),
    "nothing": ("UPDATE value SET data = ?", b""),
    "text": ("UPDATE value SET data = ?", "-1.0"),
    "no checksum": ("UPDATE value SET checksum = ?", b""),
    "another length": ("UPDATE value SET length = ?", 4),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_entry_is_not_given_back_and_is_replaced(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    store.write(ONE, [value(1, -1.0)], {})
    change(store, *DAMAGE[name])
    good, damaged = store.read(ONE, {key(1): 3}, per_token=False)
    assert good == {}
    assert damaged.keys() == {key(1)}
    store.write(ONE, [value(1, -1.5)], damaged)
    assert read(store, 1) == {key(1): floats(-1.5)}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 0.5])
def test_what_can_be_no_log_prob_is_not_given_back_even_with_a_right_checksum(tmp_path: Path, number: float) -> None:
    store = Store(tmp_path)
    store.write(ONE, [value(1, number)], {})
    assert read(store, 1) == {}


def test_a_value_that_another_process_mended_is_not_replaced_again(tmp_path: Path) -> None:
    store, other = Store(tmp_path), Store(tmp_path)
    store.write(ONE, [value(1, -1.0)], {})
    change(store, "UPDATE value SET data = ?", floats(-9.0))
    seen = [s.read(ONE, {key(1): 3}, per_token=False)[1] for s in (store, other)]
    store.write(ONE, [value(1, -1.5)], seen[0])
    assert other.write(ONE, [value(1, -1.25)], seen[1]) == {(key(1), False): floats(-1.5)}


def test_a_value_moved_to_another_reference_or_completion_is_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(ONE, [value(1, -1.0)], {})
    store.write(OTHER, [value(2, -2.0)], {})
    number = "(SELECT id FROM reference WHERE key = ?)"
    change(store, f"UPDATE value SET reference = {number} WHERE completion = ?", OTHER.key, key(1))
    assert read(store, 1, reference=OTHER) == {}
    change(store, "UPDATE value SET completion = ? WHERE completion = ?", key(3), key(2))
    assert read(store, 3, reference=OTHER) == {}


def overwritten(path: Path, start: int, count: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(os.urandom(count))


@pytest.mark.parametrize("start", [0, 16, 100, 4096])
def test_a_damaged_database_is_set_aside_with_a_sentence_and_begun_anew(tmp_path: Path, start: int) -> None:
    store = Store(tmp_path)
    store.write(ONE, [value(n, -1.0) for n in range(300)], {})
    store.close()
    overwritten(store.path, start, store.path.stat().st_size - start)
    with pytest.warns(UserWarning, match=r"reference cache .* is damaged .* computed anew"):  # noqa: PT031
        new = Store(tmp_path)  # or when it reads: pages behind the first are seen then
        assert read(new, *range(300)) == {}
    assert new.write(ONE, [value(1, -1.5)], {}) == {(key(1), False): floats(-1.5)}
    assert read(Store(tmp_path), 1) == {key(1): floats(-1.5)}
    assert len(list(tmp_path.glob("damaged-*"))) == 1


def test_a_database_damaged_under_a_run_does_not_end_it_and_is_set_aside_once(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    first.write(ONE, [value(n, -1.0) for n in range(2000)], {})
    first._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    overwritten(first.path, 0, first.path.stat().st_size)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for store in (first, second):
            store.read(ONE, {key(n): 3 for n in range(2000)}, per_token=False)
            store.write(ONE, [value(5000, -2.0)], {})
    assert len([w for w in said if "is damaged" in str(w.message)]) == 1
    assert read(Store(tmp_path), 5000) == {key(5000): floats(-2.0)}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cant_be_written_is_a_warning_or_an_error_where_the_cache_was_asked_for(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.warns(UserWarning, match="can't be kept in"):
        store = Store(tmp_path / "below")
    assert store.write(ONE, [value(1, -1.0)], {}) == {(key(1), False): floats(-1.0)}
    assert read(store, 1) == {}
    with pytest.raises(RunError, match=r"reference\.cache is true, but .* Permission denied"):
        Store(tmp_path / "below", required=True)
    tmp_path.chmod(0o700)


def test_a_place_that_is_a_file_is_a_warning_or_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="can't be kept in"):
        assert not Store(tmp_path / "file").works
    with pytest.raises(RunError, match=r"reference\.cache_dir"):
        Store(tmp_path / "file", required=True)


def test_a_full_disk_is_one_warning_and_what_is_there_is_still_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(ONE, [value(1, -1.0)], {})
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite says then is what a full disk says
    many = [value(n, -1.0) for n in range(100, 5000)]
    with pytest.warns(UserWarning, match="full") as said:  # noqa: PT031  (one for both)
        won = store.write(ONE, many, {})
        assert len(won) == len(many)
        store.write(ONE, many, {})
    assert len(said) == 1
    assert read(store, 1, 200) == {key(1): floats(-1.0)}


# The file by itself: its package would import torch, which takes each process longer than all of the test.
FILL = """
import importlib.util, struct, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("store", sys.argv[3])
store = sys.modules["store"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(store)
one = store.ReferenceRow("a" * 32, "setting", "weights", "a model")
data = struct.pack("<f", -float(sys.argv[2]))
found = store.Store(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for first in range(0, 400, 4):
    own = [store.Value(n.to_bytes(16, "little"), 3, data) for n in range(first, first + 4)]
    for _, won in sorted(found.write(one, own, {}).items()):
        print(won.hex(), flush=True)
"""


def start(folder: Path, number: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FILL, str(folder), str(number), store_module.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_two_processes_that_fill_one_store_use_the_same_values(tmp_path: Path) -> None:
    processes = [start(tmp_path, number) for number in (1, 2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in processes:  # both are ready: they begin within a moment
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        said.append(process.communicate(timeout=120)[0].split())
        assert process.returncode == 0
    assert said[0] == said[1]
    assert len(said[0]) == 400
    assert len(read(Store(tmp_path), *range(400))) == 400


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03])
def test_a_store_whose_writer_was_killed_is_usable_and_whole(tmp_path: Path, delay: float) -> None:
    process = start(tmp_path, 1)
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = Store(tmp_path)
        found = read(store, *range(400))
        assert len(found) % 4 == 0, "what one pack wrote is there whole or not at all"
        assert set(found.values()) <= {floats(-1.0)}
        store.write(ONE, [value(n, -2.0) for n in range(400)], {})
        assert len(read(store, *range(400))) == 400


def test_what_no_run_uses_is_cleared_and_usage_says_what_is_held(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(ONE, [value(1, -1.0), value(2, -1.0)], {})
    store.write(OTHER, [value(1, -1.0)], {})
    change(store, "UPDATE reference SET used = 5 WHERE key = ?", OTHER.key)
    assert [(row.key, row.completions, row.bytes) for row in store.usage()] == [(ONE.key, 2, 8), (OTHER.key, 1, 4)]
    other = Store(tmp_path)
    assert read(other, 1, reference=ONE) == {key(1): floats(-1.0)}
    assert store.clear(unused_for=3600) == 1
    assert [row.key for row in store.usage()] == [ONE.key]
    assert store.clear() == 1
    assert other.write(ONE, [value(1, -1.5)], {}) == {(key(1), False): floats(-1.5)}, "a run goes on after a clear"
    assert read(other, 1) == {key(1): floats(-1.5)}


def test_what_lies_in_a_folder_that_may_only_be_read_is_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = Store(folder)
        own.write(ONE, [value(1, -1.0)], {})
        own.close()
        below = folder / "v1"
        folder.chmod(0o755)
        below.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may write anywhere
        try:
            with pytest.warns(UserWarning, match="can't be kept in"):
                store = Store(folder)
            assert not store.works
            assert read(store, 1, 2) == {key(1): floats(-1.0)}
            assert store.write(ONE, [value(2, -2.0)], {}) == {(key(2), False): floats(-2.0)}
            assert read(store, 1, 2) == {key(1): floats(-1.0)}
            store.close()
        finally:
            os.seteuid(user)
            below.chmod(0o755)
