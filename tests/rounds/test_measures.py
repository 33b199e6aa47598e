"""What a round is measured by, and why a run ends early: by hand."""

import math

import pytest

from prefopt.rounds.config import RoundsEvalConfig, StopSection
from prefopt.rounds.evaluating import why_stop
from prefopt.rounds.measures import drift, measure, pass_at
from prefopt.rounds.tables import ScoreRow
from prefopt.sampling import Rollout


def rollout(
    prompt: str, sample: int, ids: tuple[int, ...], *, policy: float = -1.0, reference: float = -1.0
) -> Rollout:
    return Rollout(prompt, sample, 0, (1,), ids, "", "end" if ids[-1] == 2 else "length", policy, reference)


def row(prompt: str, sample: int, score: float | None, correct: bool | None = None, broken: bool = False) -> ScoreRow:
    return ScoreRow(prompt, sample, score, correct, broken, None if score is not None else "why")


SCORED = [
    (rollout("a", 0, (5, 6, 2), policy=-1.0, reference=-3.0), row("a", 0, 1.0, True)),
    (rollout("a", 1, (5, 6, 2), policy=-1.0, reference=-3.0), row("a", 1, 0.0, False)),
    (rollout("b", 0, (7, 7, 7, 7, 7), policy=-2.0, reference=-1.0), row("b", 0, None, False, True)),
    (rollout("b", 1, (5, 2), policy=-2.0, reference=-1.0), row("b", 1, 0.5, False)),
]
CONFIG = RoundsEvalConfig(n=2, resamples=100)


def test_means_are_over_prompts_of_the_mean_of_each() -> None:
    found = measure(SCORED, CONFIG)
    assert (found["prompts"], found["completions"], found["k"]) == (2, 4, 2)
    assert found["reward"]["value"] == pytest.approx((0.5 + 0.5) / 2)
    assert found["pass@1"]["value"] == pytest.approx((0.5 + 0.0) / 2)
    assert found["pass@k"]["value"] == pytest.approx((1.0 + 0.0) / 2)
    assert found["kl"]["value"] == pytest.approx((2.0 - 1.0) / 2)
    assert found["kl_per_token"] == pytest.approx((2 + 2 - 1 - 1) / (3 + 3 + 5 + 2))
    assert found["length"]["value"] == pytest.approx((3 + 3.5) / 2)
    assert found["pass@1"]["low"] == 0
    assert found["pass@1"]["high"] == 0.5
    assert (found["ended"], found["broken"], found["failed"]) == (0.75, 0.25, 0.25)
    assert found["distinct_1"] == pytest.approx(4 / 13)  # 5, 6, 2, 7
    assert found["distinct_2"] == pytest.approx(4 / 9)  # 5 6, 6 2, 7 7, 5 2
    assert found["duplicates"] == pytest.approx(1 / 4)


def test_kl_is_not_measured_on_samples_that_are_not_the_policys() -> None:
    assert measure(SCORED, CONFIG.model_copy(update={"temperature": 0.7}))["kl"] is None


def test_nothing_is_right_or_wrong_where_nothing_says_so() -> None:
    unknown = [(rollout, ScoreRow(row.prompt_id, row.sample, row.score, None, False, None)) for rollout, row in SCORED]
    assert measure(unknown, CONFIG)["pass@1"] is None


def test_pass_at_k_is_the_share_of_draws_of_k_that_hold_a_right_one() -> None:
    prompt = [(rollout("a", at, (2,)), row("a", at, 1.0, at < 2)) for at in range(5)]
    assert pass_at(1, prompt) == pytest.approx(2 / 5)
    assert pass_at(3, prompt) == pytest.approx(1 - 1 / math.comb(5, 3))
    assert pass_at(4, prompt) == 1
    assert pass_at(6, prompt) is None


def test_drift_is_what_changed_since_the_start() -> None:
    start = measure(SCORED, CONFIG)
    now = {**start, "length": {"value": 2 * start["length"]["value"]}, "broken": 0.75}
    found = drift(now, start)
    assert (found["length"], found["broken"], found["ended"]) == (2, 0.5, 0)


def measured(*rewards: float, kl: float = 0.0) -> list[dict[str, object]]:
    return [{"reward": {"value": reward}, "kl": {"value": kl}} for reward in rewards]


def test_a_run_ends_when_the_reward_has_not_risen_for_so_many_rounds() -> None:
    rules = StopSection(no_gain=2)
    assert why_stop(rules, measured(0.5, 0.4), 0) is None
    assert why_stop(rules, measured(0.5, 0.4, 0.51), 0) is None
    assert "has not been above 0.5 for 2 rounds" in str(why_stop(rules, measured(0.5, 0.4, 0.5), 0))
    assert why_stop(rules, measured(0.1, 0.5, 0.4, 0.6), 0) is None
    assert "above 0.6" in str(why_stop(rules, measured(0.1, 0.6, 0.4, 0.6), 0))


def test_a_run_ends_above_a_divergence_and_at_the_end_of_its_budget() -> None:
    assert why_stop(StopSection(kl=2), measured(0.5, kl=2.0), 0) is None
    assert "2.1 nats" in str(why_stop(StopSection(kl=2), measured(0.5, kl=2.1), 0))
    assert why_stop(StopSection(kl=2), [{"reward": None, "kl": None}], 0) is None
    assert why_stop(StopSection(tokens=100), measured(0.5), 99) is None
    assert "100 tokens were sampled" in str(why_stop(StopSection(tokens=100), measured(0.5), 100))
    assert why_stop(StopSection(), measured(0.5, 0.1, 0.1, kl=99), 10**9) is None
