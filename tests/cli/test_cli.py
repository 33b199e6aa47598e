"""The command line: real processes for what only a process shows, `main()` in this one for messages and exit codes."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from prefopt import cli
from prefopt.losses import available
from tests.toys import list_rows, pair_rows, write_rows

VERBS = [
    "demo",
    "train",
    "plan",
    "eval pairs",
    "report",
    "eval compare",
    "eval rewardbench",
    "eval frontier",
    "eval winrate",
    "eval text",
    "eval harness",
    "chat",
    "merge",
    "push",
    "data inspect",
    "data convert",
    "data split",
    "losses",
    "losses plot",
    "reference build",
    "reference status",
    "reference clear",
    "reward train",
    "rounds",
    "rounds run",
    "rounds status",
    "rounds plot",
    "doctor",
    "version",
]
ROOT = Path(__file__).parents[2]
ROWS = pair_rows(40)
PAIRS = '{"prompt": "Is it good?", "chosen": " It is.", "rejected": " No."}\n'
RECIPE = """\
model: {name: MODEL, dtype: float32}
data: {train: pairs.jsonl}
train: {output_dir: OUT, max_steps: 1}
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def process(*arguments: str) -> Ended:
    """Run the console script's function in a process of its own."""
    script = "from prefopt.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def prefopt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command line in this process."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["prefopt", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    """A recipe that would run."""
    (tmp_path / "pairs.jsonl").write_text(PAIRS * 4)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("MODEL", str(tiny_model)).replace("OUT", str(tmp_path / "run")))
    return path


def test_help_and_version_answer_without_importing_torch() -> None:
    script = """
import sys
from prefopt.cli import main
heavy = {"torch", "transformers", "datasets", "peft", "numpy"}
for arguments in VERBS:
    sys.argv = ["prefopt", *arguments.split(), "--help"]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, arguments
    loaded = heavy & sys.modules.keys()
    assert not loaded, (arguments, loaded)
""".replace("VERBS", repr(["", *VERBS]))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_goes_to_stdout_and_ends_well(verb: str) -> None:
    code, out, err = process(*verb.split(), "--help")
    assert code == 0
    assert f"prefopt {verb}" in out
    assert err == ""


def test_the_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("prefopt")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("prefopt 0.")


def test_a_wrong_recipe_ends_a_process_with_2_one_sentence_and_no_traceback(recipe: Path) -> None:
    code, out, err = process("train", str(recipe), "train.learning_rat=1e-5")
    assert code == 2
    assert out == ""
    assert err.splitlines()[-1] == (
        "error: override 'train.learning_rat=1e-5': train.learning_rat is neither a prefopt setting nor a field of "
        "transformers.TrainingArguments; did you mean 'learning_rate'?"
    )
    assert "Traceback" not in err
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "RECIPE", "loss.beta=0"], "loss.beta: beta = 0 is not allowed"),
        (["train", "RECIPE", "model.dtpye=float32"], "did you mean 'dtype'?"),
        (["train", "RECIPE", "data.train=pair.jsonl"], "there is no "),
        (["train", "RECIPE", "reference=none"], "reference: auto"),
        (["train", "recipe.yml"], "There is no recipe recipe.yml"),
        (["eval", "pairs", "RECIPE"], "--data"),
        (["eval", "pairs", "no-such-run"], "no-such-run"),
        (["chat", "FOLDER"], "has not finished training"),
        (["chat", "FOLDER/none"], "no run directory"),
        (["data", "inspect", "pear.jsonl"], "pear.jsonl is missing"),
        (["losses", "plot", "dop", "--out", "FOLDER/x.png"], "did you mean 'dpo'?"),
        (["losses", "plot", "bco", "--out", "FOLDER/x.png"], "it depends on the other pairs of its step"),
        (["losses", "plot", "aot", "--out", "FOLDER/x.png"], "it depends on the other pairs of its step"),
        (["losses", "plot", "--out", "FOLDER/x.gif"], "must end in one of .png, .svg, .pdf"),
        (["data", "inspect", "FOLDER/pairs.jsonl", "--column", "prompt"], "not of the form field=column"),
        (["data", "inspect", "FOLDER/pairs.jsonl", "--format", "pears"], "pears"),
        (["data", "inspect", "FOLDER/pairs.jsonl", "--eval", "FOLDER/pear.jsonl"], "pear.jsonl is missing"),
        (["data", "convert", "FOLDER/pairs.jsonl", "FOLDER/out.jsonl"], "doesn't end in .parquet"),
        (["data", "convert", "FOLDER/pairs.jsonl", "FOLDER/out.parquet", "--column", "prompt"], "field=column"),
        (["data", "split", "FOLDER/pairs.jsonl", "--out", "FOLDER", "--eval-share", "1"], "between 0 and 1"),
        (["data", "split", "FOLDER/pairs.jsonl", "--out", "FOLDER"], "None of the 1 distinct prompts fell on"),
    ],
)
def test_what_the_user_can_mend_ends_with_2_and_a_sentence(
    prefopt: Callable[..., Ended], recipe: Path, arguments: list[str], message: str
) -> None:
    filled = [a.replace("RECIPE", str(recipe)).replace("FOLDER", str(recipe.parent)) for a in arguments]
    code, out, err = prefopt(*filled)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["train"], ["tran"], ["chat", "--top-p", "3", "run"], ["eval", "--nope"]])
def test_wrong_usage_ends_with_2(prefopt: Callable[..., Ended], arguments: list[str]) -> None:
    code, out, err = prefopt(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in err


@pytest.mark.parametrize("place", [0, 3])
def test_debug_shows_the_traceback_wherever_it_stands(prefopt: Callable[..., Ended], recipe: Path, place: int) -> None:
    arguments = ["train", str(recipe), "loss.beta=0"]
    arguments.insert(place, "--debug")
    code, _, err = prefopt(*arguments)
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: override 'loss.beta=0'")


def test_an_output_directory_in_use_or_not_writable_is_refused(prefopt: Callable[..., Ended], recipe: Path) -> None:
    run = recipe.parent / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    code, _, err = prefopt("train", str(recipe))
    assert code == 2
    assert "not empty" in err
    code, _, err = prefopt("train", str(recipe), f"train.output_dir={recipe}")
    assert code == 2
    assert "is a file" in err
    code, _, err = prefopt("train", str(recipe), "train.output_dir=/proc/run")
    assert code == 2
    assert "can't be written" in err


def test_an_interrupted_training_says_how_to_go_on(
    prefopt: Callable[..., Ended], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prefopt.workflow.train_run", interrupted)
    code, out, err = prefopt("train", str(recipe), "loss=ipo", "train.run_name=two words")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == f"  prefopt train {recipe} loss=ipo 'train.run_name=two words' --resume"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_a_failed_run_ends_with_1_and_a_sentence(
    prefopt: Callable[..., Ended], recipe: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("prefopt.workflow.train_run", failing)
    code, _, err = prefopt("train", str(recipe))
    assert code == 1
    assert err.startswith("error: The run failed: ")
    assert "Traceback" not in err


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


def test_doctor_prints_what_is_here_and_json_for_programs(prefopt: Callable[..., Ended]) -> None:
    code, out, _ = prefopt("doctor")
    assert code == 0
    assert "bitsandbytes" in out
    code, out, _ = prefopt("doctor", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["packages"]["prefopt"] in process("version").out
    assert {"GPU", "bfloat16", "Triton"} <= {found["name"] for found in facts["capabilities"]}


def test_losses_lists_what_each_needs_and_json_for_programs(prefopt: Callable[..., Ended]) -> None:
    code, out, err = prefopt("losses")
    assert (code, err) == (0, "")
    assert "arXiv:2305.18290" in out
    assert "labels or pairs" in out
    found = {entry["name"]: entry for entry in json.loads(prefopt("losses", "--json").out)}
    assert list(found) == sorted(available())
    assert found["simpo"]["needs_reference"] is False
    assert found["kto"]["statistics"] == "mismatched"
    assert found["dpo"]["hyper"]["divergence"] == "reverse_kl"


def test_losses_plot_writes_a_figure_and_prints_where(prefopt: Callable[..., Ended], tmp_path: Path) -> None:
    code, out, _ = prefopt("losses", "plot", "hinge", "simpo", "--out", str(tmp_path / "two.png"))
    assert (code, out) == (0, f"{tmp_path / 'two.png'}\n")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")


def test_plan_says_what_a_recipe_takes_and_json_for_programs(prefopt: Callable[..., Ended], recipe: Path) -> None:
    code, out, _ = prefopt("plan", str(recipe), "--gpu", "4090", "--json", "--tokens-per-example", "64")
    assert code == 0
    found = json.loads(out)
    assert found["machine"]["name"] == "RTX 4090"
    assert found["total"] == pytest.approx(sum(found["parts"].values()))
    assert found["fits"]
    code, out, _ = prefopt("plan", str(recipe), "--memory", "650MB", "--tokens-per-example", "64")
    assert code == 0
    assert "It does not fit." in out
    assert "not measured on one" in out
    code, _, err = prefopt("plan", str(recipe), "--gpu", "490")
    assert code == 2
    assert "did you mean '4090'?" in err
    code, _, err = prefopt("plan")
    assert code == 2
    assert "needs a recipe" in err


def test_roofline_predicts_for_one_gpu_and_refuses_an_unknown_one(prefopt: Callable[..., Ended]) -> None:
    code, out, _ = prefopt("kernels", "roofline", "--gpu", "4090", "--json")
    assert code == 0
    found = json.loads(out)
    rows = found["rows"]
    assert found["scores_alone"]["4090"]["faster"] == "ours, tiles"
    assert {row["gpu"] for row in rows} == {"RTX 4090"}
    assert all(row["predicted_ms"] >= max(row["compute_ms"], row["memory_ms"]) - 1e-9 for row in rows)
    code, out, _ = prefopt("kernels", "roofline", "--gpu", "4090")
    assert code == 0
    assert "1008 GB/s" in out
    assert "'one kernel' is the faster one below a hidden size of" in out
    code, _, err = prefopt("kernels", "roofline", "--gpu", "409")
    assert code == 2
    assert "did you mean '4090'?" in err


def test_kernels_check_prints_what_each_takes(prefopt: Callable[..., Ended]) -> None:
    code, out, _ = prefopt("kernels", "check", "--dtype", "float32", "--architecture", "80", "--json")
    assert code == 0
    found = json.loads(out)
    assert {(usage["dtype"], usage["capability"]) for usage in found} == {("float32", 80)}
    assert all(usage["complaints"] == [] for usage in found)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Ended, Path]:
    """A run that a process trained, and what the process said."""
    folder = tmp_path_factory.mktemp("finished")
    for name, count in (("pairs.jsonl", 16), ("held_out.jsonl", 8)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in pair_rows(count)))
    (folder / "recipe.yaml").write_text(
        f"model: {{name: {tiny_model}, dtype: float32}}\ndata: {{train: pairs.jsonl, eval: held_out.jsonl}}\n"
        f"train: {{output_dir: {folder}/run, max_steps: 2, examples_per_step: 8, learning_rate: 1e-2}}\n"
        "eval: {samples: 1, max_new_tokens: 4, resamples: 100}\n"
    )
    return process("train", str(folder / "recipe.yaml")), folder / "run"


def test_train_prints_the_run_directory_and_nothing_else_on_stdout(finished: tuple[Ended, Path]) -> None:
    (code, out, err), run = finished
    assert code == 0, err
    assert out == f"{run}\n"
    assert f"report: {run}/report.html" in err
    assert (run / "report.html").is_file()
    assert (run / "adapter/adapter_model.safetensors").is_file()


def test_eval_pairs_prints_a_table_or_json(prefopt: Callable[..., Ended], finished: tuple[Ended, Path]) -> None:
    run = str(finished[1])
    code, out, _ = prefopt("eval", "pairs", run)
    assert code == 0
    assert "8 held-out pairs" in out
    code, out, _ = prefopt("eval", "pairs", run, "--json")
    assert code == 0
    saved = json.loads((finished[1] / "eval/after.json").read_text())
    assert json.loads(out)["metrics"]["reward"] == saved["metrics"]["reward"]
    code, out, _ = prefopt("eval", "pairs", f"{finished[1].parent}/recipe.yaml", "--json")
    assert json.loads(out)["metrics"]["reward"] is None


def test_eval_pairs_keeps_what_it_measured_in_the_run_or_where_it_is_told(
    prefopt: Callable[..., Ended], finished: tuple[Ended, Path], tmp_path: Path
) -> None:
    run = finished[1]
    rows = [{**row, "topic": "tea" if at % 2 else "rain", "share": 0.9} for at, row in enumerate(pair_rows(6))]
    other = str(write_rows(tmp_path / "other.jsonl", rows))
    code, out, _ = prefopt("eval", "pairs", str(run), "--data", other, "--slice-by", "topic", "--name", "other")
    assert code == 0
    assert "rain" in out
    kept = json.loads((run / "eval/pairs_other.json").read_text())
    assert (kept["kind"], kept["source"], kept["slice_by"]) == ("pairs", [other], "topic")
    assert {(part["label"], part["n"]) for part in kept["slices"]} == {("rain", 3), ("tea", 3)}
    assert kept["calibration"]["against"] == "outcomes"
    recipe = str(run.parent / "recipe.yaml")
    raters = ["--data", other, "--slice-by", "share"]
    assert prefopt("eval", "pairs", recipe, *raters, "--out", str(tmp_path / "base.json")).code == 0
    assert json.loads((tmp_path / "base.json").read_text())["slices"][0]["label"] == "0.9 to 0.9"
    code, _, err = prefopt("eval", "pairs", recipe, "--name", "base")
    assert code == 2
    assert "--out FILE" in err
    code, _, err = prefopt("eval", "pairs", str(run), "--slice-by", "topc", "--data", other)
    assert code == 2
    assert "did you mean 'topic'?" in err


def test_eval_compare_says_that_a_run_is_no_better_than_its_copy(
    prefopt: Callable[..., Ended], finished: tuple[Ended, Path], tmp_path: Path
) -> None:
    run = finished[1]
    twin = shutil.copytree(run, tmp_path / "twin")
    code, out, _ = prefopt("eval", "compare", str(run), str(twin))
    assert code == 0
    assert "It can't be told which of run and twin" in out
    kept = json.loads((run / "eval/compare.json").read_text())
    assert (kept["kind"], kept["n"], kept["contrasts"][0]["p"]) == ("compare", 8, 1.0)
    code, _, err = prefopt("eval", "compare", str(run), str(run / ".." / run.name))
    assert code == 2
    assert "are one run, which never differs from itself" in err
    (twin / "eval/after.json").unlink()
    code, _, err = prefopt("eval", "compare", str(run), str(twin))
    assert code == 2
    assert f"prefopt eval pairs {twin} --data FILE" in err


def test_eval_rewardbench_scores_a_run_by_its_log_ratios(
    prefopt: Callable[..., Ended], finished: tuple[Ended, Path], tmp_path: Path
) -> None:
    run = finished[1]
    rows = [{**row, "prompt": row["prompt"][0]["content"], "subset": "hep-go"} for row in pair_rows(8)]
    bench = str(write_rows(tmp_path / "bench.jsonl", rows))
    code, out, _ = prefopt("eval", "rewardbench", str(run), bench)
    assert code == 0
    assert "Reasoning: - (no rows of math-prm" in out
    kept = json.loads((run / "eval/rewardbench.json").read_text())
    pairs = json.loads((run / "eval/after.json").read_text())  # the same rows
    assert (kept["kind"], kept["mode"]) == ("rewardbench", "implicit reward")
    assert kept["subsets"]["hep-go"]["accuracy"] == pairs["metrics"]["reward"]["right"] / 8


def test_chat_answers_every_piped_line_with_both_models(
    prefopt: Callable[..., Ended], finished: tuple[Ended, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(text: str, *options: str) -> Ended:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return prefopt("chat", str(finished[1]), "--max-new-tokens", "8", "--temperature", "0", *options)

    code, out, _ = said("Hello\n\n/new\nHello\n", "--json")
    assert code == 0
    first, again = (json.loads(line) for line in out.splitlines())
    assert first["prompt"] == "Hello"
    assert first == again, "/new forgets what was said"
    assert first["base"] != first["tuned"]
    code, out, _ = said("Hello\nHello\n", "--json")
    assert json.loads(out.splitlines()[1]) != first, "the conversation goes on"
    code, out, _ = said("Hello [bold]you\n")
    assert code == 0
    assert "Hello [bold]you" in out
    assert "base" in out
    assert "tuned" in out


def test_chat_asks_as_the_data_of_the_run_were_asked(
    prefopt: Callable[..., Ended], finished: tuple[Ended, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[1], run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "data": {**recipe["data"], "thinking": "drop"}}))
    asked = []
    monkeypatch.setattr(
        import_module("prefopt.sampling.generation"), "encode_prompt", lambda *_, **how: asked.append(how) or [5, 6]
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert prefopt("chat", str(run), "--max-new-tokens", "2")[0] == 0
    assert asked == [{"thinking": "drop"}] * 2
