"""The verdict says what the numbers say, and no more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.eval.pairs import PairScores, pair_metrics
from prefopt.report.read import read_run
from prefopt.report.verdict import Verdict, judge
from prefopt.report.words import duration, number, percent


def verdict(run: Path, before: PairScores, after: PairScores) -> Verdict:
    for name, scores in (("before", before), ("after", after)):
        metrics = pair_metrics(scores, beta=0.1, resamples=200).to_dict()
        (run / "eval" / f"{name}.json").write_text(json.dumps({"metrics": metrics}))
    return judge(read_run(run))


def pairs(wins: int, losses: int, *, shift: float = 0.0, reference: bool = True) -> PairScores:
    """Pairs with log-ratios +-1 about `shift`; without training all would be ties."""
    sign = np.concatenate([np.ones(wins), -np.ones(losses)])
    frozen = np.full((wins + losses, 2), -50.0)
    policy = frozen + np.stack([shift + sign, shift - sign], axis=1)
    return PairScores(policy, frozen if reference else None, np.full((wins + losses, 2), 10))


UNTRAINED = PairScores(np.full((100, 2), -50.0), np.full((100, 2), -50.0), np.full((100, 2), 10))


@pytest.mark.parametrize(
    ("wins", "tone", "words"),
    [
        (90, "good", "It learned the preferences: 90.0\u00a0% of held-out pairs ranked right"),
        (55, "unclear", "No clear preference learned: 55.0\u00a0%"),  # Wilson at 55 of 100: 45.2 to 64.4
        (10, "bad", "It learned the opposite: 10.0\u00a0%"),
    ],
)
def test_the_interval_decides_whether_anything_was_learned(run: Path, wins: int, tone: str, words: str) -> None:
    found = verdict(run, UNTRAINED, pairs(wins, 100 - wins))
    assert found.tone == tone
    assert found.title.startswith(words)


@pytest.mark.parametrize(
    ("then", "now", "tone", "words"),
    [(40, 90, "good", "It got better"), (90, 40, "bad", "It got worse"), (50, 55, "unclear", "No clear change")],
)
def test_without_a_reference_it_is_compared_with_itself_before(
    run: Path, then: int, now: int, tone: str, words: str
) -> None:
    found = verdict(run, pairs(then, 100 - then, reference=False), pairs(now, 100 - now, reference=False))
    assert (found.tone, found.title.split(":")[0]) == (tone, words)


def test_a_model_that_did_not_move_makes_no_difference(run: Path) -> None:
    found = verdict(run, UNTRAINED, UNTRAINED)
    assert found.tone == "unclear"
    assert "makes no difference" in found.title


def test_displacement_is_said_in_words(run: Path) -> None:
    up = " ".join(verdict(run, UNTRAINED, pairs(90, 10, shift=5.0)).sentences)
    down = " ".join(verdict(run, UNTRAINED, pairs(90, 10, shift=-5.0)).sentences)
    # the mean chosen log-ratio is the shift plus (90 - 10) / 100
    assert (
        "became more likely, by 5.80 nats on average; in 0.0\u00a0% of pairs the chosen one became less likely." in up
    )
    assert "became less likely, by 4.20 nats on average; in 100.0\u00a0% of pairs" in down
    assert "pushing the rejected ones down further" in down
    assert "pushing the rejected ones down further" not in up


def test_length_bias_is_said_only_where_the_intervals_part(run: Path) -> None:
    scores = pairs(80, 20)
    even = replace(scores, length=np.tile([[5, 9], [9, 5]], (50, 1)))
    skewed = replace(scores, length=np.repeat([[5, 9], [9, 5]], [80, 20], axis=0))
    assert "favours" not in " ".join(verdict(run, UNTRAINED, even).sentences)
    assert "favours shorter completions" in " ".join(verdict(run, UNTRAINED, skewed).sentences)


def test_the_verdict_does_not_mention_people_when_no_raters_are_known(run: Path) -> None:
    assert any("one person agrees" in sentence for sentence in judge(read_run(run)).sentences)
    assert not any("one person agrees" in sentence for sentence in verdict(run, UNTRAINED, pairs(90, 10)).sentences)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (-0.0, "0"),
        (1234567, "1\u202f234\u202f567"),
        (0.69, "0.690"),
        (-3.14159, "−3.14"),
        (12.0, "12"),
        (123.456, "123"),
        (9.999, "10.0"),
        (0.00123, "0.00123"),
        (0.0000123, "1.23e−05"),
        (None, "–"),
        (float("nan"), "–"),
        ("x", "–"),
        (True, "–"),
    ],
)
def test_numbers_are_written_as_readers_write_them(value: Any, text: str) -> None:
    assert number(value) == text


def test_shares_and_times_are_written_as_readers_write_them() -> None:
    assert percent(0.95234) == "95.2\u00a0%"
    assert percent(None) == "–"
    assert [duration(s) for s in (5, 75, 3725, None)] == ["5 s", "1 min 15 s", "1 h 2 min", "–"]
