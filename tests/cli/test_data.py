"""`prefopt data`: what a file is, what becomes of it, and that the documentation shows just that."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.processes import Ended
from tests.toys import list_rows, pair_rows, write_rows

ROOT = Path(__file__).parents[2]
ROWS = pair_rows(40)


def test_data_inspect_says_what_a_file_is_on_stdout(
    prefopt: Callable[..., Ended], recipe: Path, tiny_model: Path
) -> None:
    source = str(recipe.parent / "pairs.jsonl")
    code, out, err = prefopt("data", "inspect", source, "--rows", "1")
    assert (code, err) == (0, "")
    assert "4 rows read, 4 used, 0 rejected" in out
    assert "Is it good?" in out
    code, out, _ = prefopt("data", "inspect", source, "--tokenizer", str(tiny_model), "--json")
    assert code == 0
    summary = json.loads(out)["summary"]
    assert (summary["rows_used"], summary["unit"], summary["duplicates"]) == (4, "tokens", 3)


def test_data_inspect_says_what_lists_are(prefopt: Callable[..., Ended], tmp_path: Path, tiny_model: Path) -> None:
    source = str(write_rows(tmp_path / "lists.jsonl", list_rows(3)))
    code, out, err = prefopt("data", "inspect", source, "--rows", "1")
    assert (code, err) == (0, "")
    assert "lists, because it has the columns 'prompt', 'completions', 'scores'" in out
    assert "3 completions a list" in out
    assert out.index("score 1") < out.index("score 0.5") < out.index("score 0\n")
    code, out, _ = prefopt("data", "inspect", source, "--tokenizer", str(tiny_model), "--format", "lists", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["summary"]["form"], found["summary"]["completions_per_list"]) == ("listwise", 3.0)
    assert [name for name, _ in found["rows"][0]["completions"]] == ["score 1", "score 0.5", "score 0"]


def test_data_inspect_draws_bars_at_80_columns_and_says_all_without_colour(
    prefopt: Callable[..., Ended], tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    source = str(write_rows(tmp_path / "pairs.jsonl", pair_rows(20)))
    scored = str(write_rows(tmp_path / "lists.jsonl", list_rows(5)))
    code, out, _ = prefopt("data", "inspect", source, "--tokenizer", str(tiny_model), "--eval", source)
    assert code == 0
    assert "\x1b" not in out
    for title in ("What it is", "Rows", "Repetition", "Lengths", "max_length", "Overlap with the held-out data"):
        assert f"{title}\n" in out
    bars = [line for line in out.splitlines() if "█" in line]
    assert len(bars) > 2
    assert all(len(line) <= 80 for line in bars)
    assert "with 20 of its 20 rows" in out
    assert "▸yes" in out.lower()
    code, out, _ = prefopt("data", "inspect", scored)
    assert "difference of scores" in out


def test_what_the_documentation_shows_of_the_data_verbs_is_what_they_print(
    prefopt: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    prefopt (data .*)$", page, flags=re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["inspect", "convert", "split"]
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "film_pairs.jsonl").symlink_to(ROOT / "recipes/data/film_pairs.jsonl")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        code, out, err = prefopt(*command.split())
        assert (code, err) == (0, "")
        shown = "".join(f"    {line.rstrip()}\n" for line in out.splitlines())
        assert shown in page, command


def test_data_convert_and_split_say_what_they_wrote_and_the_next_verb_reads_it(
    prefopt: Callable[..., Ended], tmp_path: Path
) -> None:
    source = str(write_rows(tmp_path / "pairs.jsonl", [{**row, "prompt": f"{i}?"} for i, row in enumerate(ROWS)]))
    out = str(tmp_path / "pairs.parquet")
    code, said, _ = prefopt("data", "convert", source, out)
    assert (code, said) == (0, f"{out}: 40 of 40 rows\n")
    code, _, err = prefopt("data", "convert", source, out)
    assert (code, "--overwrite" in err) == (2, True)
    code, said, _ = prefopt("data", "split", out, "--out", str(tmp_path), "--eval-share", "0.4", "--json")
    assert code == 0
    found = json.loads(said)
    assert sum(found["rows"].values()) == 40
    train, held_out = (found["paths"][side] for side in ("train", "eval"))
    code, said, _ = prefopt("data", "inspect", train, "--eval", held_out, "--json")
    assert json.loads(said)["statistics"]["overlap"]["shared_prompts"] == 0
