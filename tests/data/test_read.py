"""Real files, whole and broken: every line is a row, or a row with a problem, and a file that is none says so."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from prefopt.data.config import DataOptions
from prefopt.data.read import read_file
from prefopt.data.sources import open_sources
from prefopt.errors import DataError

ROWS = [{"prompt": f"p{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(5)]


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(source):
    return [raw for named in open_sources(source, DataOptions()) for raw in named.read(None)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet", "misnamed.jsonl"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    if name == "a.jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + lines_of(ROWS).replace(b"\n", b"\r\n") + b"\n  \n")
    elif name == "a.json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        path.write_bytes(gzip.compress(lines_of(ROWS)))
    rows = read(path)
    assert [raw.row for raw in rows] == ROWS
    assert [raw.where for raw in rows] == [f"{path}:{i}" for i in range(1, 6)]
    assert [raw.row for raw in read(str(path))] == ROWS


def test_a_glob_and_a_list_read_files_in_order(tmp_path):
    for name, row in (("b.jsonl", ROWS[1]), ("a.jsonl", ROWS[0]), ("c.txt", ROWS[2])):
        (tmp_path / name).write_bytes(lines_of([row]))
    assert [raw.row for raw in read(f"{tmp_path}/*.jsonl")] == ROWS[:2]
    assert [raw.row for raw in read([f"{tmp_path}/c.txt", tmp_path / "a.jsonl"])] == [ROWS[2], ROWS[0]]
    assert [raw.where for raw in read(ROWS)][:2] == ["rows:1", "rows:2"]


def test_each_broken_line_is_a_row_with_its_number_and_its_reason(tmp_path):
    path = tmp_path / "broken.jsonl"
    broken = [
        b'{"prompt": "p", "chosen"',
        b'{"prompt": "\xff"}',
        b"[1, 2]",
        b"null",
        b'{"a": ' + b"[" * 20000,
        b'{"a": ' + b"1" * 5000 + b"}",
    ]
    path.write_bytes(lines_of(ROWS[:1]) + b"\n".join(broken) + b"\n" + lines_of(ROWS[1:2]))
    rows = read(path)
    assert [raw.line for raw in rows] == list(range(1, 9))
    assert [raw.row for raw in rows if raw.row is not None] == ROWS[:2]
    assert [raw.problem.split(":")[0] for raw in rows[1:-1]] == [
        "not JSON",
        "not UTF-8",
        "not an object with columns",
        "not an object with columns",
        "not JSON that can be read",
        "not JSON that can be read",
    ]
    assert [raw.problem.partition(": ")[2] for raw in rows[2:5]] == ["at byte 12", "a list", "null"]
    assert rows[1].problem == "not JSON: Expecting ':' delimiter at column 25"
    assert rows[1].text == '{"prompt": "p", "chosen"'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"prompt,chosen,rejected\na,b,c\n", "is not JSON Lines: none of its 2 lines"),
        (b"[]", "an empty array"),
        (b'[{"a": 1}', "begins like a JSON array but is not one"),
        (gzip.compress(lines_of(ROWS * 100))[:-20], "is cut off or damaged"),
        (b"PAR1 and nothing else", "is a damaged Parquet file"),
    ],
)
def test_a_file_that_holds_no_rows_says_what_is_wrong_with_it(tmp_path, content, words):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_names_the_nearest_one(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(lines_of(ROWS))
    with pytest.raises(DataError, match=r"The file .*trian.jsonl is missing; did you mean '.*train.jsonl'\?"):
        read(str(tmp_path / "trian.jsonl"))
    with pytest.raises(DataError, match="missing, and so is its folder"):
        read(str(tmp_path / "nowhere" / "a.jsonl"))
    with pytest.raises(DataError, match=r"The file train.jsonl is missing\."):
        read("train.jsonl")


def test_a_directory_an_unmatched_glob_and_nothing_at_all_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"is a directory; name its files"):
        read(str(tmp_path))
    with pytest.raises(DataError, match="No file matches"):
        read(f"{tmp_path}/*.jsonl")
    with pytest.raises(DataError, match="list of sources is empty"):
        read([])


def test_a_dataset_that_the_hub_does_not_give_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'nobody/no-such-preferences' .* is no file here and could not be loaded"):
        read("nobody/no-such-preferences")


def test_a_hub_dataset_is_read_by_config_split_and_revision(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    options = DataOptions(config="en", split="test_prefs", revision="v2")
    (named,) = open_sources("owner/name", options)
    rows = list(named.read(None))
    assert [raw.row for raw in rows] == ROWS
    assert rows[3].where == "owner/name:4"
    assert asked == [(("owner/name", "en"), {"split": "test_prefs", "revision": "v2"})]


def test_reading_goes_on_behind_any_row(tmp_path) -> None:
    rows = [{"n": n, "text": "é" * (n % 5)} for n in range(300)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines[7] = "{broken"
    plain, packed, array, table = (tmp_path / name for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"))
    plain.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(lines).encode())
    with gzip.open(packed, "wb") as file:
        file.write("\r\n".join(lines).encode())
    array.write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table, row_group_size=37)
    for path in (plain, packed, array, table):
        whole = list(read_file(path))
        assert len(whole) == 300
        for stopped in (0, 1, 6, 7, 36, 37, 38, 150, 298):
            assert list(read_file(path, whole[stopped].after)) == whole[stopped + 1 :]
        assert list(read_file(path, json.loads(json.dumps(whole[-1].after)))) == []
