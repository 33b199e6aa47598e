"""Prompts from files, and rollouts to and from Parquet."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from prefopt.data.config import DataOptions
from prefopt.errors import DataError, RunError
from prefopt.sampling.rollouts import Prompt, Rollout, read_prompts, read_rollouts, write_rollouts
from tests.toys import byte_tokenizer

CHAT = [{"role": "user", "content": "2 + 2?"}]
ROLLOUTS = [
    Rollout("00ff" * 4, 0, 2**62, (1, 2, 3), (4, 2), "vier ☃", "end", -1.2345678901234567, None),
    Rollout("00ff" * 4, 1, 0, (1, 2, 3), (4, 5), "", "length", -2.5, -0.1),
]


def lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rollouts_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_rollouts(tmp_path / "deep" / "a.parquet", ROLLOUTS)
    assert read_rollouts(tmp_path / "deep" / "a.parquet") == ROLLOUTS
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.parquet"]


def test_no_rollouts_are_a_file_too(tmp_path: Path) -> None:
    write_rollouts(tmp_path / "none.parquet", [])
    assert read_rollouts(tmp_path / "none.parquet") == []


def test_the_same_rollouts_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rollouts(tmp_path / name, ROLLOUTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    write_rollouts(path, ROLLOUTS)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(RunError, match="No space left"):
        write_rollouts(path, ROLLOUTS[:1])
    assert read_rollouts(path) == ROLLOUTS
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_file_that_holds_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("no parquet")
    with pytest.raises(RunError, match="can't be read"):
        read_rollouts(tmp_path / "a")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), tmp_path / "b")
    with pytest.raises(RunError, match="'prompt_id' is missing"):
        read_rollouts(tmp_path / "b")


def test_prompts_are_the_same_from_json_lines_and_parquet_in_any_order(tmp_path: Path) -> None:
    rows: list[object] = [
        {"prompt": CHAT, "answer": "4"},
        {"prompt": [{"role": "user", "content": "3?"}], "answer": "3"},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    one = read_prompts(lines(tmp_path / "a.jsonl", rows))
    assert one == read_prompts(tmp_path / "a.parquet")
    assert one[::-1] == read_prompts(lines(tmp_path / "b.jsonl", rows[::-1]))
    assert one[0].prompt == tuple(CHAT)
    assert one[0].row == {"answer": "4"}
    assert len(one[0].prompt_id) == 16
    assert int(one[0].prompt_id, 16) >= 0


def test_the_id_tells_rows_with_another_prompt_or_another_answer_apart() -> None:
    prompts = [Prompt.of("a", {"answer": 1}), Prompt.of("a", {"answer": 2}), Prompt.of("b", {"answer": 1})]
    assert len({prompt.prompt_id for prompt in prompts}) == 3
    assert Prompt.of("a", {"x": 1, "y": 2}).prompt_id == Prompt.of("a", {"y": 2, "x": 1}).prompt_id


def test_duplicates_and_empty_prompts_are_counted_and_left_out() -> None:
    rows = [{"prompt": "a"}, {"prompt": " "}, {"prompt": "a"}, {"prompt": None}, {"prompt": []}, {"prompt": "b"}]
    found = read_prompts(rows)
    assert [prompt.prompt for prompt in found] == ["a", "b"]
    assert (found.duplicates, found.empty, found.rejected) == (1, 3, [])


def test_rows_that_cannot_be_used_are_listed_and_too_many_fail() -> None:
    rows = [{"prompt": "a"}, {"prompt": 3}, {"prompt": "abcdef"}]
    with pytest.raises(DataError, match="1 of 3 prompts can't be used"):
        read_prompts(rows)
    found = read_prompts(rows, byte_tokenizer(), max_tokens=5, options=DataOptions(max_rejected=0.7))
    assert [prompt.prompt for prompt in found] == ["a"]
    assert found.rejected[0].startswith("rows:2: the prompt is of type int")
    assert found.rejected[1] == "rows:3: the prompt has 6 tokens, more than 5"


def test_a_column_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no column 'promt'.*did you mean 'prompt'"):
        read_prompts([{"prompt": "a"}], column="promt")
    with pytest.raises(DataError, match="no prompt to sample from"):
        read_prompts([{"prompt": ""}])
