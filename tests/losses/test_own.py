"""Losses of a user's own, in a file."""

from __future__ import annotations

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import build
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
        ("other.py:Squared", r"found in .*other\.py, but there is no such file"),
        ("my_losses.py:Squared(target=0)", r"target = 0\.0 is not allowed .* greater than 0"),
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
