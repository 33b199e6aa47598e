"""Whatever rows are: a sentence or a result, and every row read is used or listed as rejected."""

import json
import os
import random
import re

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefopt.data import convert_source, inspect_lines, inspect_source, load_preferences
from prefopt.errors import DataError
from tests.data import toy_tokenizers as toys
from tests.data.every_format import FORMATS
from tests.data.hostile import damaged_bytes, rows_of

bounded = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def check_sentence(error, pattern=""):
    assert len(str(error)) > 20
    assert re.search(pattern, str(error)), error


def check_load(source, out, count):
    """Load what may be anything; returns the data, or None where a sentence came instead."""
    listed = out / "rejected_rows.jsonl"
    try:
        data = load_preferences(source, toys.chatml(), rejected_to=listed, max_rejected=1.0)
    except DataError as error:
        check_sentence(error)
        return None
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert data.summary.rows_read == count
    assert len(data) + len(lines) == count
    assert len(lines) == data.summary.rows_rejected
    places = [int(e.source.rpartition(":")[2]) for e in data] + [line["line"] for line in lines]
    assert len(set(places)) == count
    assert all(line["reason"] for line in lines)
    return data


def check_seen(source, out, data):
    """Inspect and convert the same; the converted file holds the rows that are used, and loads as they do."""
    found = inspect_source(source, toys.chatml())
    assert found.summary.rows_used == len(data)
    json.dumps(found.to_dict())
    assert inspect_lines(found)
    path = out / "out.parquet"
    try:
        converted = convert_source(source, path, max_rejected=1.0, overwrite=True)
    except DataError as error:  # strings beside conversations, or messages that no Parquet column holds
        check_sentence(error, "Parquet|would be read otherwise")
        return
    assert converted.rows_written + sum(converted.rejected.values()) == converted.rows_read == data.summary.rows_read
    assert pyarrow.parquet.read_metadata(path).num_rows == converted.rows_written
    again = load_preferences(path, toys.chatml(), max_rejected=1.0, columns=dict(converted.read_with))
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_any_kind_are_used_or_listed(name, tmp_path):
    @bounded
    @given(rows=rows_of(name))
    def run(rows):
        data = check_load(rows, tmp_path, len(rows))
        if data is not None:
            check_seen(rows, tmp_path, data)

    run()


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_rows_in_a_file_are_used_or_listed(name, tmp_path):
    @bounded
    @given(rows=rows_of(name), seed=st.integers(0, 2**32))
    def run(rows, seed):
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))
        check_load(path, tmp_path, len(rows))
        content = damaged_bytes(seed, name, 12)
        path.write_bytes(content)
        check_load(path, tmp_path, sum(bool(line.strip()) for line in content.split(b"\n")))

    run()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_files_damaged_byte_by_byte_are_used_or_listed(tmp_path, capsys):
    seed = int(os.environ.get("PREFOPT_SEED", random.SystemRandom().randrange(2**32)))
    rounds = int(os.environ.get("PREFOPT_ROUNDS", "40"))
    path = tmp_path / "a.jsonl"
    read = refused = 0
    for name, own in ((name, seed + i) for i in range(rounds) for name in FORMATS):
        content = damaged_bytes(own, name)
        path.write_bytes(content)
        count = sum(bool(line.strip()) for line in content.split(b"\n"))
        try:
            data = check_load(path, tmp_path, count)
            if data is not None and own % 10 == 0:
                check_seen(path, tmp_path, data)
        except BaseException:
            print(f"PREFOPT_SEED={own} fails with {name!r}")
            raise
        read += data is not None
        refused += data is None
    with capsys.disabled():
        print(f"PREFOPT_SEED={seed}: {read} files read, {refused} refused in a sentence")
    assert read > refused


@pytest.mark.soak
@pytest.mark.xfail(strict=True, raises=BaseException, reason="the tokenizers library panics on so long a run of spaces")
def test_ten_million_spaces_are_one_rejected_row(tmp_path):
    rows = [{**row} for row in FORMATS["pairs"]]
    rows[3]["chosen"] = " " * 10_000_000 + "Yes."
    check_load(rows, tmp_path, len(rows))
