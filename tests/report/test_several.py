"""Several runs on one page, runs of rounds, and what else was measured: what the page says of it in words."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from prefopt.errors import RunError
from prefopt.eval.compare import compare_evaluations
from prefopt.eval.rewardbench import rewardbench
from prefopt.report import write_report, write_reports
from prefopt.report.measured import measured_sections
from prefopt.report.read import read_run
from prefopt.report.samples import text_of as prompt_text
from prefopt.report.shading import answer
from tests.report.fixture_evals import EVALS, write_evals
from tests.report.fixture_rounds import write_rounds
from tests.report.fixture_run import evaluation, write_run
from tests.report.test_page import Page

pytestmark = pytest.mark.usefixtures("undrawn")


def text_of(path: Path) -> str:
    return Page(path.read_text(encoding="utf-8")).text.replace("\u00a0", " ")


def worse(run: Path, other: Path, pairs: int) -> Path:
    """A copy of a run that ranks the first `pairs` of its rightly ranked pairs wrong."""
    shutil.copytree(run, other)
    path = other / "eval" / "after.json"
    found = json.loads(path.read_text())
    scores = found["pairs"]
    right = [
        at
        for at, (ours, theirs) in enumerate(zip(scores["policy"], scores["reference"], strict=True))
        if ours[0] - theirs[0] > ours[1] - theirs[1]
    ]
    for at in right[:pairs]:
        scores["policy"][at] = scores["policy"][at][::-1]
        scores["reference"][at] = [theirs + 1 for theirs in scores["policy"][at]]
        scores["reference"][at][1] -= 2
    total = len(scores["policy"])
    reward = found["metrics"]["reward"]
    reward["value"] = (reward["right"] - pairs) / total
    path.write_text(json.dumps(found))
    return other


def test_the_best_run_is_said_with_the_interval_of_the_paired_difference(run: Path, tmp_path: Path) -> None:
    other = worse(run, tmp_path / "other", 40)
    page = text_of(write_reports([other, run], tmp_path / "page.html"))
    assert "Best on held-out pairs: reviews" in page
    # 40 of 800 pairs differ, all one way: 5 points, and a standard error of sqrt(0.05 * 0.95 / 800) = 0.77
    said = r"It is 5 points ahead of other \(95 % interval ([\d.]+) to ([\d.]+) of the differences of 800 pairs\)"
    found = re.search(said, page)
    assert found is not None
    assert float(found[1]) == pytest.approx(5 - 1.96 * 0.77, abs=0.25)
    assert float(found[2]) == pytest.approx(5 + 1.96 * 0.77, abs=0.25)


def test_a_lead_that_may_be_chance_is_no_win_and_other_pairs_are_no_comparison(run: Path, tmp_path: Path) -> None:
    close = worse(run, tmp_path / "close", 1)
    other = worse(run, tmp_path / "other", 200)
    path = other / "eval" / "after.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "other"}))
    page = text_of(write_reports([close, run, other], tmp_path / "page.html"))
    assert "No clear winner; reviews is ahead on held-out pairs" in page
    assert "which may be chance" in page
    assert "other was measured on other pairs" in page
    assert "picked from 3 after the fact" in page


def test_runs_that_are_named_alike_are_told_apart_and_one_named_twice_counts_once(run: Path, tmp_path: Path) -> None:
    again = shutil.copytree(run, tmp_path / "else" / "reviews")
    page = text_of(write_reports([run, again, run], tmp_path / "page.html"))
    assert "2 runs, side by side" in page
    assert "else/reviews" in page
    assert f"{tmp_path.name}/reviews" in page


def test_only_settings_that_differ_are_listed(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    recipe = other / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("beta: 0.1", "beta: 0.3"))
    page = Page(write_reports([run, other], tmp_path / "page.html").read_text())
    rows = page.text[page.text.index("Where they differ") :]
    assert "loss. beta 0.1 0.3" in rows  # may wrap behind the dot
    assert "rate" not in rows


def test_a_page_of_several_lies_beside_the_first(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "b" / "other")
    assert write_reports([other, run]) == tmp_path / "b" / "report.html"
    with pytest.raises(RunError, match="There is no run directory"):
        write_reports([run, tmp_path / "nowhere"])


def test_rounds_say_whether_the_reward_rose(tmp_path: Path) -> None:
    page = text_of(write_report(write_rounds(tmp_path / "rounds", prompts=40)))
    assert re.search(r"The reward rose: from 0\.\d+ to 0\.\d+ on held-out prompts", page)
    assert "After 2 rounds the mean held-out reward has risen by" in page
    for words in (
        "After round 1",
        "At the start",
        "What each round sampled, selected and learned from",
        "Duplicates",
        "pass@4",
        "✓ right, reward 1",
    ):
        assert words in page
    assert "<b>perhaps</b>" in page  # as text
    assert "not finished" not in page


def test_one_run_of_rounds_beside_a_training_is_drawn_as_one_of_several(run: Path, tmp_path: Path) -> None:
    rounds = write_rounds(tmp_path / "mine", prompts=40)
    page = text_of(write_reports([run, rounds], tmp_path / "page.html"))
    assert "2 runs, side by side" in page
    assert "Duplicates" in page
    assert "Variety of answers" not in page  # of a page that has no other run
    assert "held out:" not in page


def test_rounds_that_did_not_change_are_not_praised(tmp_path: Path) -> None:
    page = text_of(write_report(write_rounds(tmp_path / "rounds", right=0.0)))
    assert re.search(r"No clear change of the reward|The reward fell", page)


def test_rounds_under_way_are_reported_as_far_as_they_are(tmp_path: Path) -> None:
    page = text_of(write_report(write_rounds(tmp_path / "rounds", rounds=0, finished=False)))
    assert "Not finished" in page
    assert "under way, or interrupted: train of round 0" in page
    assert "No round has trained yet." in page
    going = write_rounds(tmp_path / "going", rounds=1, finished=False, prompts=40)
    for name in ("eval-rollouts.parquet", "eval-scores.parquet"):
        (going / "round-000" / name).write_bytes(b"torn")
    page = text_of(write_report(going))
    assert "round-000/eval-scores.parquet can't be read." in page
    assert "Not finished; so far: the reward went" in page


def test_runs_of_rounds_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    one = write_rounds(tmp_path / "one", right=0.4, prompts=40)
    two = write_rounds(tmp_path / "two", right=0.05, prompts=40)
    page = text_of(write_reports([two, one], tmp_path / "page.html"))
    assert "Highest held-out reward: one" in page
    assert re.search(r"ahead of two \(95 % interval 0\.\d+ to 0\.\d+ of the differences of 40 prompts\)", page)


def test_no_run_is_called_best_where_none_was_measured_on_the_same(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    path = other / "eval" / "after.json"
    path.write_text(path.read_text().replace("3f" * 32, "4e" * 32))
    page = text_of(write_reports([run, other], tmp_path / "page.html"))
    assert "No comparison: " in page
    assert "Best on held-out pairs" not in page


def test_what_the_commands_compute_is_drawn(run: Path) -> None:
    first, second = evaluation(trained=True), evaluation(trained=True, seed=0)
    compared = compare_evaluations(first, second, ("dpo", "ipo"), resamples=100)
    scores = rewardbench(np.array([1.0, -1.0]), ["alpacaeval-easy", "math-prm"])
    for name, found in (("compare", compared), ("rewardbench", scores)):
        (run / "eval" / f"{name}.json").write_text(json.dumps({"kind": name, "prefopt": "0.1.0", **found.to_dict()}))
    page = text_of(write_report(run))
    assert "No clear difference: by implicit reward dpo prefers the chosen completion in" in page
    assert "(p = 1)" in page
    assert "No overall score: the file has no rows of some subsets" in page
    assert "1 of 447 published" in page


def test_what_was_measured_elsewhere_is_shown_where_it_is_named(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    rounds = write_rounds(tmp_path / "rounds")
    written = write_evals(shutil.copytree(run, tmp_path / "elsewhere")) / "eval"
    folder = tmp_path / "frontier"
    folder.mkdir()
    shutil.copy(written / "frontier.json", folder)
    best = "No other gives more reward at less divergence than dpo 0.1, dpo 1."
    for alone in (run, rounds):
        assert best not in text_of(write_reports([alone], tmp_path / "page.html"))
        page = text_of(write_reports([alone], tmp_path / "page.html", [folder, written / "winrate.json"]))
        assert best in page
        assert "dpo is better than sft" in page
    for several in ([run, other], [rounds, run]):
        assert "Frontier" not in text_of(write_reports(several, tmp_path / "page.html"))
        assert "Frontier" in text_of(write_reports(several, tmp_path / "page.html", [folder]))

    twice = text_of(write_reports([run], tmp_path / "page.html", [folder, folder]))
    assert twice.count(best) == 2
    with pytest.raises(RunError, match=r"winrate\.json is of kind winrate, but a page of several runs shows frontiers"):
        write_reports([run, other], tmp_path / "page.html", [written / "winrate.json"])
    with pytest.raises(RunError, match="its kind is none of pairs, compare, winrate"):
        write_reports([run], tmp_path / "page.html", [run / "eval" / "after.json"])
    (tmp_path / "broken.json").write_text('{"kind": "frontier", "points": [1]}')
    for runs in ([run], [run, other]):
        with pytest.raises(RunError, match="holds something else than its kind, frontier, says"):
            write_reports(runs, tmp_path / "page.html", [tmp_path / "broken.json"])
    with pytest.raises(RunError, match=r"nowhere can't be read \(No such file or directory\): name a file"):
        write_reports([run], tmp_path / "page.html", [tmp_path / "nowhere"])


def test_a_broken_frontier_is_named_and_the_other_runs_is_drawn(run: Path, tmp_path: Path) -> None:
    other = write_evals(shutil.copytree(run, tmp_path / "other"))
    (run / "eval" / "frontier.json").write_text('{"kind": "frontier", "points": [{"reward": 1}]}')
    page = text_of(write_reports([run, other], tmp_path / "page.html"))
    assert f"{run.name}: eval/frontier.json holds something else than its kind says and is left out." in page
    assert "other: eval/frontier.json" not in page
    assert "Frontier" in page


def test_what_was_measured_of_rounds_stands_on_their_page(run: Path, tmp_path: Path) -> None:
    rounds = write_rounds(tmp_path / "rounds")
    (rounds / "eval").mkdir()
    for name in ("frontier", "rewardbench"):
        shutil.copy(write_evals(run) / "eval" / f"{name}.json", rounds / "eval")
    page = text_of(write_report(rounds))
    assert "No other gives more reward at less divergence than dpo 0.1, dpo 1." in page
    assert "It prefers the chosen answer in 73.0 % of RewardBench" in page


def test_a_recipe_without_held_out_pairs_promises_no_measurement(tmp_path: Path) -> None:
    going = write_run(tmp_path / "going", steps=17, finished=False)
    shutil.rmtree(going / "eval")
    (going / "recipe.yaml").write_text("data: {train: a.jsonl}\ntrain: {max_steps: 40}\neval: {samples: 0}\n")
    page = text_of(write_report(going))
    assert "Not finished: step 17 of 40" in page
    assert "names no held-out pairs (data.eval)" in page
    assert "is measured on held-out pairs at the end" not in page
    assert "asks for no samples" in page


def test_a_prompt_that_a_chat_template_made_is_shown_by_its_turns() -> None:
    assert prompt_text("system\nBe kind.\nuser\nHello\nassistant\n") == "system: Be kind.\nuser: Hello"
    assert prompt_text("user\nHello\nassistant") == "Hello"
    for kept in ("The user\nis here", "user\nHello", "user\nHello\nassistant\nHi", "Complete: it is"):
        assert prompt_text(kept) == kept


def test_every_kind_of_measurement_has_its_section(run: Path) -> None:
    page = text_of(write_report(write_evals(run)))
    for words in (
        "dpo is better than sft: it wins 64.1 % of comparisons at equal length (95 % interval 59.1 to 69.1 %",
        "No other gives more reward at less divergence than dpo 0.1, dpo 1.",
        "It prefers the chosen answer in 73.0 % of RewardBench, the mean of its sections.",
        "math-prm Reasoning 55.0 % 447",
        "Perplexity rose from 21 to 24; entropy fell from 2.50 to 2.10. No clear change: refusals, length, cut.",
        "distinct-2 share of different pairs of tokens 81.0 % 73.0 %",
        "Worse after training: hellaswag, acc_norm; wikitext, word_perplexity.",
        "dpo is better: by implicit reward dpo prefers the chosen completion in 91.0 % and ipo in 88.0 % of the same "
        "800 pairs (p = 0.0018).",
        "By log-prob. chosen preferred 60.0 % 55.0 to 65.0 % 61.0 % 56.0 to 66.0 % +1.0 points −1.0 to +3.0 points 20 "
        "28 0.31",
        "Further pairs: hard",
        "Accuracy by how far raters agree, beside people",
        "people side with it in 71.0 %",
        "AUC",
    ):
        assert words in page, words
    assert "/home/somebody" not in page
    assert "is left out" not in page.replace("Rows left out by a rule", "").replace("rows left out by a rule", "")


@pytest.mark.parametrize("name", EVALS)
@pytest.mark.parametrize("broken", [{}, {"points": [1], "subsets": [], "a": None, "raw": 3, "metrics": 1}])
def test_a_file_that_holds_something_else_costs_its_section_alone(run: Path, name: str, broken: dict) -> None:
    (run / "eval" / f"{name}.json").write_text(json.dumps({"kind": name, **broken}))
    sections, problems = measured_sections(read_run(run))
    assert len(sections) + len(problems) == 1


def test_shading_says_in_words_what_it_shows() -> None:
    found = answer("good bad", [["good ", 3.0], ["bad", -0.5], [".", 0.1]])
    assert [piece.level for piece in found.pieces] == ["u3", "d1", ""]
    assert [piece.said for piece in found.pieces] == ["+3.00 nats", "−0.50 nats", "+0.10 nats"]
    assert found.words == "+2.60 nats over 3 pieces; raised most: “good” +3.00; lowered most: “bad” −0.50"
    assert answer("text", [["torn"]]).pieces == ()
    assert answer("text", None).pieces == ()
