"""What went wrong is one sentence on stderr and an exit code, and a traceback only with --debug."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.processes import Ended, process


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
