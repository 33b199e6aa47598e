"""A held-out part by prompt: nothing on both sides, nothing lost, nothing moved by further rows."""

import random

import pyarrow.parquet
import pytest

from prefopt.data import load_preferences
from prefopt.data.near import fold
from prefopt.data.split import split_source
from prefopt.errors import DataError
from tests.data import toy_tokenizers as toys
from tests.data.every_format import FORMATS


def rows(count, first=0):
    return [
        {
            "prompt": f"Question {i // 2}?" if i % 2 else f"question  {i // 2}? ",
            "chosen": f" Yes {i}.",
            "rejected": " No",
        }
        for i in range(first, first + count)
    ]


def prompts(folder, side):
    return [fold(row["prompt"]) for row in pyarrow.parquet.read_table(folder / f"{side}.parquet").to_pylist()]


def test_no_prompt_is_on_both_sides_and_no_row_is_lost(tmp_path):
    found = split_source(rows(1000), tmp_path, eval_share=0.2)
    train, held_out = prompts(tmp_path, "train"), prompts(tmp_path, "eval")
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == 1000
    assert found.rows == {"train": len(train), "eval": len(held_out)}
    assert found.prompts == {"train": len(set(train)), "eval": len(set(held_out))}
    assert 60 <= found.prompts["eval"] <= 140  # of 500, binomial: 100 and 9
    assert f"eval.parquet: {len(held_out)} rows" in found.lines()[1]


def test_further_rows_in_any_order_move_none(tmp_path):
    split_source(rows(300), tmp_path / "few", eval_share=0.3)
    more = rows(700)
    random.Random(1).shuffle(more)
    split_source(more, tmp_path / "many", eval_share=0.3)
    for side in ("train", "eval"):
        assert set(prompts(tmp_path / "few", side)) <= set(prompts(tmp_path / "many", side))


def test_the_seed_changes_what_is_held_out_and_a_larger_share_only_adds(tmp_path):
    held_out = {}
    for seed, share in ((0, 0.1), (0, 0.3), (1, 0.1)):
        folder = tmp_path / f"{seed}-{share}"
        split_source(rows(400), folder, eval_share=share, seed=seed)
        held_out[seed, share] = set(prompts(folder, "eval"))
    assert held_out[0, 0.1] < held_out[0, 0.3]
    assert held_out[0, 0.1] != held_out[1, 0.1]


@pytest.mark.parametrize("name", FORMATS)
def test_both_sides_of_every_format_load_as_they_did(name, tmp_path):
    split_source(FORMATS[name], tmp_path, eval_share=0.5, seed=1)
    whole = load_preferences(FORMATS[name], toys.chatml())
    parts = [
        example
        for side in ("train", "eval")
        for example in load_preferences(tmp_path / f"{side}.parquet", toys.chatml())
    ]
    assert sorted((e.prompt, e.completions, str(e.label), e.scores) for e in parts) == sorted(
        (e.prompt, e.completions, str(e.label), e.scores) for e in whole
    )


def test_a_share_a_file_or_a_side_that_can_not_be_is_refused(tmp_path):
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(DataError, match="must lie between 0 and 1"):
            split_source(rows(10), tmp_path, eval_share=share)
    with pytest.raises(DataError, match=r"None of the 1 distinct prompts fell on the (train|eval) side"):
        split_source(rows(2), tmp_path)
    assert list(tmp_path.iterdir()) == []
    split_source(rows(100), tmp_path, eval_share=0.5)
    with pytest.raises(DataError, match=r"train\.parquet exists already"):
        split_source(rows(100), tmp_path, eval_share=0.5)
    split_source(rows(100), tmp_path, eval_share=0.5, overwrite=True)
