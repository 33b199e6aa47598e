"""Losses of a user's own, in a file."""

from __future__ import annotations

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import Mixture, Share, build
from prefopt.recipe import dump_recipe, load_recipe
from tests.losses.toys import random_sequences

TEN_LINES = '''\
from torch import Tensor
from prefopt.losses import PairLoss

class Squared(PairLoss):
    """A square: pulls the margin of log-ratios to `target` nats."""

    def __init__(self, *, target: float = 5.0) -> None:
        super().__init__()
        self.target = self.number("target", target, above=0)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return (chosen - rejected - self.target) ** 2
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_losses.py"
    path.write_text(TEN_LINES)
    return path


def test_ten_lines_are_a_loss(file) -> None:
    loss, seqs = build("my_losses.py:Squared(target=2)"), random_sequences(0)
    assert loss.hyper() == {"target": 2.0}
    chosen, rejected = (seqs.policy - seqs.reference)[seqs.pair].unbind(1)
    torch.testing.assert_close(loss(seqs).loss, (chosen - rejected - 2) ** 2)
    assert build({"name": "my_losses.py:Squared", "target": 2}).hyper() == loss.hyper()


SETTINGS = """\
from prefopt.losses import PairLoss

class Kept(PairLoss):
    \"\"\"Keeps what it is given.\"\"\"

    def __init__(self, *, k: int = 3, cap: float | None = None, word: str = "sum", on: bool = True) -> None:
        super().__init__()
        self.k, self.cap, self.word, self.on = k, cap, word, on

    def value(self, chosen, rejected):
        return rejected - chosen

class Asks(Kept):
    \"\"\"Has no default.\"\"\"

    def __init__(self, *, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma

class Forgets(Kept):
    \"\"\"Does not keep it.\"\"\"

    def __init__(self, *, gamma: float = 1.0) -> None:
        super().__init__()
"""


def test_settings_of_every_kind_survive_a_mixture(file) -> None:
    file.write_text(SETTINGS)
    mixed = build("my_losses.py:Kept(cap=0.5, on=false, word=mean) + my_losses.py:Kept")
    again = build(mixed.name)
    for loss in (mixed, again):
        assert [part.hyper() for part in loss.parts] == [
            {"k": 3, "cap": 0.5, "word": "mean", "on": False},
            {"k": 3, "cap": None, "word": "sum", "on": True},
        ]
        assert isinstance(loss.parts[0].k, int)
    with pytest.raises(RecipeError, match=r"word = 'a b' of the loss .*Kept can't be written in a formula"):
        Mixture([Share(1.0, build({"name": "my_losses.py:Kept", "word": "a b"}))])


@pytest.mark.parametrize(
    ("name", "words"),
    [("Asks", r"The loss my_losses\.py:Asks needs gamma: write gamma=\.\.\."), ("Forgets", r"write `self\.gamma = ")],
)
def test_a_loss_that_could_not_be_built_again_is_refused(file, name: str, words: str) -> None:
    file.write_text(SETTINGS)
    with pytest.raises(RecipeError, match=words):
        build(f"my_losses.py:{name}")


def test_a_changed_file_is_another_loss_to_a_checkpoint(file) -> None:
    before = repr(build("dpo + my_losses.py:Squared"))
    assert repr(build("dpo + my_losses.py:Squared")) == before
    file.write_text(TEN_LINES.replace("** 2", "** 4"))  # the same size, within the same second
    after = build("dpo + my_losses.py:Squared")
    assert repr(after) != before
    assert float(after(random_sequences(0)).parts[1].loss.max()) > 1000


def test_a_recipe_finds_it_beside_itself_wherever_that_is(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "my own (losses), here"
    folder.mkdir()
    (folder / "a.py").write_text(TEN_LINES)
    for written in (
        '"a.py:Squared"',
        '"dpo + 0.5*a.py:Squared"',
        "\"dpo + 'a.py:Squared'(target=2)\"",
        '"wpo(a.py:Squared(target=2)) + sft"',
        "{name: wpo, of: 'a.py:Squared'}",
        "{name: wpo, of: {name: 'a.py:Squared', target: 2}}",
    ):
        recipe = folder / "recipe.yaml"
        recipe.write_text(f"model: tiny\ndata: {{train: x.jsonl}}\nloss: {written}\ntrain: {{output_dir: runs/x}}\n")
        monkeypatch.chdir(tmp_path)
        loaded = load_recipe(recipe, check_files=False)
        saved = tmp_path / "saved.yaml"
        saved.write_text(dump_recipe(loaded))
        assert load_recipe(saved, check_files=False).loss == loaded.loss
        assert str(folder) in str(loaded.loss)
        loaded.loss.build()


def test_it_mixes_and_is_found_again_from_anywhere(file, tmp_path, monkeypatch) -> None:
    mixed = build("0.5*my_losses.py:Squared + sft")
    assert mixed.name == f"0.5*{file}:Squared(target=5.0) + sft"
    monkeypatch.chdir(tmp_path.parent)
    assert build(mixed.name).name == mixed.name


def test_a_path_with_spaces_is_taken_alone(tmp_path) -> None:
    folder = tmp_path / "my own (losses)"
    folder.mkdir()
    (folder / "a.py").write_text(TEN_LINES)
    assert build(f"{folder}/a.py:Squared").hyper() == {"target": 5.0}


def test_a_changed_file_is_read_again(file) -> None:
    assert build("my_losses.py:Squared").hyper() == {"target": 5.0}
    file.write_text(TEN_LINES.replace("5.0", "7.0"))
    assert build("my_losses.py:Squared").hyper() == {"target": 7.0}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_losses.py:Square", r"has no loss 'Square': it has Squared; did you mean 'Squared'"),
        ("other.py:Squared", r"found in .*other\.py, which can't be read: No such file"),
        ("my_losses.py:Squared(target=0)", r"target = 0 is not allowed .* greater than 0"),
        ("my_losses.py:PairLoss", r"has no loss 'PairLoss'"),
        ("broken.py:Squared", r"broken\.py of the loss broken\.py:Squared fails: SyntaxError"),
        ("empty.py:Squared", r"it has no subclass of Loss\."),
        (
            "bare.py:Bare",
            r"bare\.py:Bare does not say what an example is: set its `form` to one of paired, unp",
        ),
    ],
)
def test_what_is_wrong_with_it_is_said(file, name: str, words: str) -> None:
    file.with_name("broken.py").write_text("class Squared(:\n")
    file.with_name("empty.py").write_text("")
    file.with_name("bare.py").write_text("from prefopt.losses import Loss\nclass Bare(Loss):\n    pass\n")
    with pytest.raises(RecipeError, match=words):
        build(name)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            'extras = frozenset({"log_sum_p_2"})',
            r"asks for 'log_sum_p_2' in its `extras`: .*; did you mean 'log_sum_p2'",
        ),
        ("def end_step(self, seqs): ...", r"has an `end_step`, .*: set its `statistics` to \"step\""),
    ],
)
def test_a_declaration_that_would_do_nothing_is_refused(file, body: str, words: str) -> None:
    file.write_text(f"from prefopt.losses import PairLoss\n\nclass Mine(PairLoss):\n    {body}\n")
    with pytest.raises(RecipeError, match=words):
        build("my_losses.py:Mine")
