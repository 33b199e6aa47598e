"""Real files, whole and broken: every line is a row, or a row with a problem, and a file that is none says so."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile

import datasets
import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefopt.data import load_preferences
from prefopt.data.config import DataOptions
from prefopt.data.sources import open_sources
from prefopt.errors import DataError
from tests.data import toy_tokenizers as toys

ROWS = [{"prompt": f"p{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(5)]


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(source, **options):
    return [raw for named in open_sources(source, DataOptions(**options)) for raw in named.read(None)]


def parquet(rows):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, row_group_size=37)
    return sink.getvalue()


def arrow(rows, opened):
    sink = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    with opened(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=37)
    return sink.getvalue()


def delimited(rows, delimiter):
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def zstd(content):
    return pyarrow.compress(content, "zstd", asbytes=True)


KINDS = {
    "a.jsonl": lambda rows: b"\xef\xbb\xbf" + lines_of(rows).replace(b"\n", b"\r\n") + b"\n  \n",
    "a.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "a.parquet": parquet,
    "a.arrow": lambda rows: arrow(rows, pyarrow.ipc.new_file),
    "stream.arrow": lambda rows: arrow(rows, pyarrow.ipc.new_stream),
    "a.csv": lambda rows: b"\xef\xbb\xbf" + delimited(rows, ","),
    "a.tsv": lambda rows: delimited(rows, "\t"),
    "semicolons.csv": lambda rows: delimited(rows, ";"),
}
PACKINGS = {"": bytes, ".gz": gzip.compress, ".zst": zstd, ".xz": lzma.compress, ".bz2": bz2.compress}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows_compressed_or_not_and_whatever_its_name(tmp_path, name, packing):
    content = PACKINGS[packing](KINDS[name](ROWS))
    lines = range(2, 7) if name.endswith(("csv", "tsv")) else range(1, 6)
    for path in (tmp_path / (name + packing), tmp_path / "misnamed.jsonl"):
        path.write_bytes(content)
        rows = read(path)
        assert [raw.row for raw in rows] == ROWS
        assert [raw.where for raw in rows] == [f"{path}:{i}" for i in lines]
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
        (
            b"hello there\nno rows, here\n",
            "is not JSON Lines: none of its 2 lines .* reads JSON Lines .* CSV or TSV",
        ),
        (b"a,b\n\n", "has a header and no rows"),
        (b"a,b,a\n1,2,3\n", "names the column 'a' twice"),
        (b'a,b\n1,"2\n3,4\n5,6\n', "a quote that opens in the row at line 2 and is never closed"),
        (b"PK\x03\x04rest", r"is a ZIP archive \(name a file in it, as zip://.*prefopt reads JSON Lines"),
        (b"\x00\x01\x02", "a binary file of a kind that prefopt doesn't know"),
        ("[1]".encode("utf-16"), "text in UTF-16"),
        (b"ARROW1 and nothing else", "is a damaged Arrow file"),
        (b"\xff\xff\xff\xff\x01", "is a damaged Arrow file"),
        (zstd(lines_of(ROWS * 100))[:-20], "is cut off or damaged"),
        (lzma.compress(lines_of(ROWS * 100))[:-20], "is cut off or damaged"),
        (bz2.compress(lines_of(ROWS * 100))[:-20], "is cut off or damaged"),
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
    with pytest.raises(DataError, match=r"is a directory, and no dataset that `save_to_disk` wrote; name its files"):
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


LONG = [{"n": n, "text": "é,\n" * (n % 5) or "none"} for n in range(300)]


def goes_on(named, count=300):
    whole = list(named.read(None))
    assert len(whole) == count
    for stopped in (0, 1, 6, 7, 36, 37, 38, 150, count - 2):
        assert list(named.read(whole[stopped].after)) == whole[stopped + 1 :]
    assert list(named.read(json.loads(json.dumps(whole[-1].after)))) == []
    return whole


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", KINDS)
def test_reading_goes_on_behind_any_row(tmp_path, name, packing):
    path = tmp_path / (name + packing)
    path.write_bytes(PACKINGS[packing](KINDS[name](LONG)))
    for source in (path, f"file://{path}"):
        [named] = open_sources(source, DataOptions())
        whole = goes_on(named)
        assert [(int(raw.row["n"]), raw.row["text"]) for raw in whole] == [(r["n"], r["text"]) for r in LONG]


def test_reading_goes_on_behind_a_broken_line_and_blank_ones(tmp_path):
    lines = [json.dumps(row, ensure_ascii=False) for row in LONG]
    lines[7] = "{broken"
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(lines).encode())
    goes_on(*open_sources(path, DataOptions()))
    table = tmp_path / "a.csv"
    table.write_bytes(b"n,text\n" + b"\n\n".join(b'%d,"a\nb"' % n if n % 7 else b"1,2,3" for n in range(300)))
    rows = goes_on(*open_sources(table, DataOptions()))
    assert sum(raw.row is None for raw in rows) == 43


def test_rows_in_memory_and_saved_datasets_go_on_behind_any_row(tmp_path):
    datasets.Dataset.from_list(LONG).save_to_disk(tmp_path / "saved")
    for source in (LONG, tmp_path / "saved", str(tmp_path / "saved")):
        [named] = open_sources(source, DataOptions())
        assert [raw.row for raw in goes_on(named)] == LONG


def test_a_saved_dataset_is_read_by_its_split(tmp_path):
    whole = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:2]))
    whole.save_to_disk(tmp_path / "saved")
    rows = read(tmp_path / "saved", split="test")
    assert [raw.row for raw in rows] == ROWS[:2]
    assert rows[1].where == f"{tmp_path}/saved/test:2"
    with pytest.raises(DataError, match=r"has the splits test, train, and data.split is tset; did you mean 'test'"):
        read(tmp_path / "saved", split="tset")
    datasets.Dataset.from_list(ROWS).select([]).save_to_disk(tmp_path / "empty")
    with pytest.raises(DataError, match=r"empty has no rows or is damaged"):
        read(tmp_path / "empty")
    (tmp_path / "empty" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"empty has no rows or is damaged"):
        read(tmp_path / "empty")


def test_urls_of_any_scheme_are_read_and_may_hold_a_glob(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/room/a.jsonl", lines_of(ROWS[:2]))
    memory.pipe("/room/b.jsonl.zst", zstd(lines_of(ROWS[2:])))
    memory.pipe("/room/c.parquet", parquet(ROWS))
    assert [raw.row for raw in read("memory://room/a.jsonl")] == ROWS[:2]
    assert [raw.row for raw in read("memory://room/*.jsonl*")] == ROWS
    assert read("memory://room/a.jsonl")[1].where == "memory://room/a.jsonl:2"
    assert [raw.row for raw in read(["memory://room/c.parquet", "memory://room/a.jsonl"])] == ROWS + ROWS[:2]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("inner/a.csv", delimited(ROWS, ","))
    assert [raw.row for raw in read(f"zip://inner/a.csv::{tmp_path}/all.zip")] == ROWS
    assert read(f"zip://*/*.csv::{tmp_path}/all.zip")[0].source == f"zip://inner/a.csv::{tmp_path}/all.zip"


def test_a_url_that_leads_nowhere_says_so(tmp_path):
    with pytest.raises(DataError, match=r"There is no file at 'memory://nowhere/a.jsonl'"):
        read("memory://nowhere/a.jsonl")
    with pytest.raises(DataError, match=r"No file matches 'memory://nowhere/\*.jsonl'"):
        read("memory://nowhere/*.jsonl")
    with pytest.raises(DataError, match=r"the scheme 'memry', which fsspec doesn't know; did you mean 'memory'\?"):
        read("memry://a.jsonl")
    with pytest.raises(DataError, match=r"can't be opened"):
        read(f"zip://a.jsonl::{tmp_path}/missing.zip")


def test_a_table_keeps_its_text_counts_its_lines_and_lacks_its_empty_cells(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,chosen,rejected\n"a ""b"",\n\nc",007,"x"\n\n,1e3,\n1,2\n"a"b,c,d\n', newline="")
    first, second, short, broken = read(path)
    assert first.row == {"prompt": 'a "b",\n\nc', "chosen": "007", "rejected": "x"}
    assert second.row == {"prompt": None, "chosen": "1e3", "rejected": None}
    assert [raw.line for raw in (first, second, short, broken)] == [2, 6, 7, 8]
    assert short.problem == "not a row of the table: 2 cells, and the header names 3 columns"
    assert broken.problem.startswith("not CSV: ")
    assert broken.text == '"a"b,c,d'
    large = "x" * 400_000
    path.write_text(f"a,b\n{large},1\n")
    assert read(path)[0].row == {"a": large, "b": "1"}
    path.write_bytes(b"a,b\n\xff,1\n2,3\n")
    assert [raw.problem or raw.row for raw in read(path)] == ["not UTF-8: at byte 0", {"a": "2", "b": "3"}]


def test_numbers_of_a_table_are_numbers_where_a_format_needs_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "prompt,chosen,rejected,score_chosen,score_rejected,gap\n7,42,3.10,8,2.5,0.5\n9,81,3,9,,1\n1,2,3,4,1,0\n"
    )
    data = load_preferences(path, toys.chatml(None))
    assert [example.scores for example in data] == [(8.0, 2.5), (), (4.0, 1.0)]
    assert [example.meta["gap"] for example in data] == [0.5, 1, 0]
    assert toys.chatml(None).decode(list(data[0].completions[1])[:-1]) == "3.10"
    listed = tmp_path / "e.csv"
    listed.write_text('prompt,chosen,rejected\n"[1, 2] reversed","[2, 1]","[{""a"": 1}]"\n')
    assert (
        toys.chatml(None).decode(list(load_preferences(listed, toys.chatml(None))[0].completions[0])[:-1]) == "[2, 1]"
    )
    labels = tmp_path / "b.csv"
    labels.write_text("prompt,completion,label\na,b,True\na,c,false\na,d,1\na,e,0\n")
    assert load_preferences(labels, toys.chatml(None)).labels.tolist() == [True, False, True, False]
    lists = tmp_path / "c.csv"
    lists.write_text('prompt,completions,scores\na,"[""b"", ""c""]","[1, 2.5]"\n')
    assert load_preferences(lists, toys.chatml(None))[0].scores == (2.5, 1.0)
    messages = tmp_path / "d.tsv"
    row = [json.dumps([{"role": "assistant", "content": text}]) for text in ("yes", "no")]
    messages.write_text(
        delimited([dict(zip(("prompt", "chosen", "rejected"), ("a", *row), strict=True))], "\t").decode()
    )
    assert len(load_preferences(messages, toys.chatml())) == 1


HEADS = [
    b"",
    b"PAR1",
    b"ARROW1\0\0",
    b"\xff\xff\xff\xff",
    b"[",
    b"{",
    b"a,b\n",
    b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd",
    b"BZh9",
    b'a\tb\n"',
]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    packing=st.sampled_from(sorted(PACKINGS)),
    cut=st.integers(0, 400),
    head=st.sampled_from(HEADS),
    noise=st.binary(max_size=60),
)
def test_whatever_bytes_a_file_holds_they_are_rows_or_a_sentence(tmp_path, kind, packing, cut, head, noise):
    whole = KINDS[kind](ROWS)
    for content in (head + noise, whole[:cut] + noise + whole[cut:], PACKINGS[packing](whole)[:cut] + noise):
        path = tmp_path / f"a{packing}"
        path.write_bytes(content)
        sentence, rows = "", []
        try:
            rows = read(path)
        except DataError as error:
            sentence = str(error)
        assert str(path) in sentence if sentence else read(path) == rows
        assert all((raw.row is None) == bool(raw.problem) for raw in rows)
