"""A stage is done once and for as long as its inputs, its parameters and its files are what they were."""

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from prefopt.data.files import written
from prefopt.errors import RunError
from prefopt.rounds.events import Events, locked, read_events
from prefopt.rounds.files import bytes_hash, content_hash, write_text
from prefopt.rounds.stage import Stage
from prefopt.sampling import Rollout, read_rollouts, write_rollouts


def stage(folder: Path, **about: object) -> Stage:
    said = {"inputs": {"prompts": "a1"}, "parameters": {"temperature": 1.0, "ends": (1, 2)}, "seed": 3} | about
    return Stage("sample", folder, **said)  # type: ignore[arg-type]


def finish(todo: Stage) -> None:
    write_text(todo.folder / "out.txt", "tokens")
    todo.commit({"out.txt": content_hash(["tokens"])}, {"rollouts": 4})


def test_a_stage_is_done_with_its_manifest_and_what_it_says_reads_back(tmp_path: Path) -> None:
    todo = stage(tmp_path)
    write_text(tmp_path / "out.txt", "tokens")
    assert todo.done() is None, "a file without a manifest is no finished stage"
    finish(todo)
    found = stage(tmp_path).done()
    assert found is not None
    assert (found.content("out.txt"), found.counts) == (content_hash(["tokens"]), {"rollouts": 4})


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"inputs": {"prompts": "b2"}}, ["prompts"]),
        ({"parameters": {"temperature": 0.7, "ends": (1, 2)}}, ["temperature"]),
        ({"parameters": {"temperature": 1.0, "ends": (1, 2), "top_p": 0.9}}, ["top_p"]),
        ({"seed": 4}, ["seed"]),
    ],
)
def test_other_inputs_parameters_or_seed_make_it_another_stage_and_are_named(
    tmp_path: Path, changed: dict[str, object], names: list[str]
) -> None:
    finish(stage(tmp_path))
    other = stage(tmp_path, **changed)
    assert other.done() is None
    assert other.changes() == names
    assert stage(tmp_path).changes() == []


def test_a_damaged_file_is_noticed_though_its_size_is_right_and_the_stage_is_done_again(tmp_path: Path) -> None:
    todo = stage(tmp_path)
    finish(todo)
    (tmp_path / "out.txt").write_text("tokenz")
    with pytest.warns(UserWarning, match=r"out\.txt is damaged, so sample is done again"):
        assert todo.done() is None
    (tmp_path / "out.txt").unlink()
    with pytest.warns(UserWarning, match=r"out\.txt is missing"):
        assert todo.done() is None


def test_a_damaged_file_in_an_output_folder_is_noticed(tmp_path: Path) -> None:
    todo = stage(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/weights").write_bytes(b"1234")
    todo.commit({"adapter": "c"}, {})
    assert todo.done() is not None
    (tmp_path / "adapter/weights").write_bytes(b"1235")
    with pytest.warns(UserWarning, match="adapter is damaged"):
        assert todo.done() is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"stage": "sample"}', '{"outputs": 3}'])
def test_a_torn_manifest_is_a_warning_and_no_finished_stage(tmp_path: Path, text: str) -> None:
    todo = stage(tmp_path)
    finish(todo)
    todo.manifest.write_text(text)
    with pytest.warns(UserWarning, match=r"sample\.json is damaged"):
        assert todo.done() is None


def test_a_kill_while_a_file_is_written_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "out.txt", "old")
    if not (child := os.fork()):
        with written(tmp_path / "out.txt") as aside:
            aside.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "out.txt").read_text() == "old"
    write_text(tmp_path / "out.txt", "new")
    assert (tmp_path / "out.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"], "what the kill left was overwritten"


def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "out.txt", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(RunError, match=r"out\.txt could not be written: File too large"):
            write_text(tmp_path / "out.txt", "much more than ten bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_an_error_that_is_not_of_the_disk_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written(tmp_path / "out.txt") as aside:
        aside.write_text("half")
        aside.write_text(str(1 / 0))
    assert not list(tmp_path.iterdir()), "neither the file nor what was written aside"


def test_rollouts_that_a_kill_left_half_written_are_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.parquet"
    one = Rollout("a" * 16, 0, 1, (1,), (2,), "x", "end", -1.0, None)
    if not (child := os.fork()):

        def torn(_: object, file: Any, **__: object) -> None:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        pyarrow.parquet.write_table = torn
        write_rollouts(path, [one])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not path.exists()
    write_rollouts(path, [one])
    assert [left.name for left in tmp_path.iterdir()] == ["rollouts.parquet"]
    assert read_rollouts(path) == [one]


def test_the_hash_of_a_folder_tells_names_and_bytes(tmp_path: Path) -> None:
    hashes = set()
    for name, text in (("a", "1"), ("b", "1"), ("a", "2")):
        folder = tmp_path / f"{name}{text}"
        folder.mkdir()
        (folder / name).write_text(text)
        hashes.add(bytes_hash(folder))
    assert len(hashes) == 3


def test_content_is_compared_to_the_last_bit_of_a_number() -> None:
    assert content_hash([{"a": 0.1, "b": 1}]) == content_hash([{"b": 1, "a": 0.1}])
    assert content_hash([0.1]) != content_hash([0.1 + 1e-17 * 8])
    assert content_hash(["a", "b"]) != content_hash(["ab"])


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    events.add("start")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "begi')
    with events.timed("sample", round=1):
        pass
    found = read_events(tmp_path)
    assert [event["event"] for event in found] == ["start", "begin", "end"]
    assert (found[2]["stage"], found[2]["round"], found[0]["process"]) == ("sample", 1, os.getpid())
    assert found[2]["seconds"] >= 0


def test_one_process_at_a_time_works_on_a_run(tmp_path: Path) -> None:
    def other() -> int:
        if not (child := os.fork()):
            try:
                with locked(tmp_path):
                    os._exit(0)
            except RunError as error:
                os._exit(7 if "another process works on" in str(error) else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with locked(tmp_path):
        assert other() == 7
    assert other() == 0


def test_the_manifest_is_json_that_people_can_read(tmp_path: Path) -> None:
    finish(stage(tmp_path))
    said = json.loads((tmp_path / "sample.json").read_text())
    assert said["parameters"] == {"temperature": 1.0, "ends": [1, 2]}
    assert said["outputs"]["out.txt"]["content"] == content_hash(["tokens"])
