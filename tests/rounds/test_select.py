"""Selectors: what each accepts or pairs, exactly; and what none of them depends on."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from prefopt.errors import DataError, RecipeError
from prefopt.rounds.select import Selector, build_selector, generator_of, target_warning
from prefopt.rounds.select_config import READS, SelectConfig
from prefopt.rounds.select_records import Candidate, Selection

NEEDS: dict[str, dict[str, Any]] = {
    "rejection": {"beta": 0.5, "bound": 2.0},
    "rso": {"beta": 0.5, "k": 2},
    "top_k": {"k": 2},
    "threshold": {"threshold": 1.0},
    "best_vs_worst": {},
    "best_vs_random": {},
    "correct_vs_incorrect": {"threshold": 1.0},
    "west_of_n": {"confidence": 0.6},
}


def candidates(scores: Sequence[float | None], **fields: Sequence[Any]) -> list[Candidate]:
    """Distinct candidates with these scores."""
    return [
        Candidate(
            index,
            fields.get("keys", [(i,) for i in range(len(scores))])[index],
            score,
            fields.get("lengths", [1] * len(scores))[index],
            fields.get("correct", [None] * len(scores))[index],
        )
        for index, score in enumerate(scores)
    ]


def selector(name: str, **options: Any) -> Selector:
    return build_selector(SelectConfig(selector=name, **NEEDS[name] | options))  # type: ignore[arg-type]


def draw(chosen: Selector, pool: Sequence[Candidate], seed: int = 0) -> Selection:
    return chosen(pool, np.random.default_rng(seed))


def chi_square(counts: Counter[Any], expected: dict[Any, float]) -> float:
    """Chi-square over its degrees of freedom: its mean is 1, and its deviation sqrt(2 / degrees)."""
    assert set(counts) <= {key for key, p in expected.items() if p > 0}
    total = sum(counts.values())
    return sum((counts[key] - total * p) ** 2 / (total * p) for key, p in expected.items() if p > 0) / (
        len(expected) - 1
    )


# ---- rejection ----


def tilted(q: Sequence[float], r: Sequence[float], beta: float) -> list[float]:
    weights = [p * math.exp(score / beta) for p, score in zip(q, r, strict=True)]
    return [weight / sum(weights) for weight in weights]


Q = [0.4, 0.3, 0.15, 0.1, 0.05]
R = [0.0, 0.5, 1.0, -1.0, 2.0]


def sampled(n: int, random: np.random.Generator) -> list[Candidate]:
    """n candidates drawn from Q, equal ones with equal token ids."""
    drawn = random.choice(len(Q), n, p=Q)
    return [Candidate(i, (int(text),), R[text], 1) for i, text in enumerate(drawn)]


@pytest.mark.parametrize(("beta", "bound"), [(0.7, 2.0), (0.7, 3.0), (2.0, 2.0)])
def test_what_rejection_accepts_follows_q_exp_r_over_beta(beta: float, bound: float) -> None:
    chosen, random = selector("rejection", beta=beta, bound=bound), np.random.default_rng(1)
    counts: Counter[int] = Counter()
    passed = 0
    for _ in range(1500):
        pool = sampled(8, random)
        found = chosen(pool, random)
        counts.update(pool[index].text_key[0] for index in found.accepted)
        passed += found.passed
    target = tilted(Q, R, beta)
    assert chi_square(counts, dict(enumerate(target))) < 1 + 3 * math.sqrt(2 / 4)
    assert chi_square(counts, dict(enumerate(Q))) > 10
    rate = sum(p * math.exp((r - bound) / beta) for p, r in zip(Q, R, strict=True))
    assert passed == pytest.approx(12000 * rate, abs=4 * math.sqrt(12000 * rate * (1 - rate)))


def test_rejection_takes_no_bound_from_the_candidates() -> None:
    """With the bound far above all scores, hardly anything is accepted, however the candidates compare."""
    found = draw(selector("rejection", bound=60.0, beta=1.0), candidates([0.0, 1.0, 2.0]))
    assert found.empty
    assert found.reason == "no candidate was accepted"


def test_a_score_above_the_bound_is_refused() -> None:
    with pytest.raises(DataError, match=r"candidate 1 has the score 2\.5, above the bound 2"):
        draw(selector("rejection"), candidates([0.0, 2.5]))


# ---- rso ----


def enumerated(scores: Sequence[float], k: int, beta: float) -> dict[tuple[int, ...], float]:
    """Algorithm 1 on shuffled candidates, by hand: the probability of every sequence of accepted candidates."""
    found: Counter[tuple[int, ...]] = Counter()

    def walk(remaining: list[int], at: int, highest: float, accepted: tuple[int, ...], p: float) -> None:
        """One candidate of a sweep: at `at` of those that remain."""
        if p == 0:
            return
        if len(accepted) == k or not remaining:
            found[accepted] += p
        elif at == len(remaining):  # the sweep is over, and the next begins
            walk(remaining, 0, max(scores[i] for i in remaining), accepted, p)
        else:
            own = remaining[at]
            takes = math.exp((scores[own] - highest) / beta)
            walk(remaining[:at] + remaining[at + 1 :], at, highest, (*accepted, own), p * takes)
            walk(remaining, at + 1, highest, accepted, p * (1 - takes))

    orders = list(itertools.permutations(range(len(scores))))
    for order in orders:
        walk(list(order), 0, max(scores), (), 1 / len(orders))
    return found


@pytest.mark.parametrize("k", [1, 2, 3])
def test_rso_is_the_enumerated_algorithm(k: int) -> None:
    scores = [0.3, 1.0, 0.0, 0.7]
    expected = enumerated(scores, k, 0.5)
    assert sum(expected.values()) == pytest.approx(1)
    chosen, random = selector("rso", k=k, beta=0.5), np.random.default_rng(0)
    counts = Counter(chosen(candidates(scores), random).accepted for _ in range(8000))
    assert chi_square(counts, expected) < 1 + 3.5 * math.sqrt(2 / (len(expected) - 1))


def rso_distance(n: int, *, draws: int) -> float:
    """Total variation distance of the one that rso accepts of n samples from q exp(r / beta)."""
    chosen, random = selector("rso", k=1, beta=0.7, duplicates="keep"), np.random.default_rng(2)
    counts: Counter[int] = Counter()
    for _ in range(draws):
        pool = sampled(n, random)
        counts[pool[chosen(pool, random).accepted[0]].text_key[0]] += 1
    target = tilted(Q, R, 0.7)
    return sum(abs(counts[text] / draws - p) for text, p in enumerate(target)) / 2


def test_the_bias_of_rso_falls_as_there_are_more_candidates_a_place() -> None:
    one, four, sixteen, many = (rso_distance(n, draws=2500) for n in (1, 4, 16, 64))
    at_first = sum(abs(p - t) for p, t in zip(Q, tilted(Q, R, 0.7), strict=True)) / 2
    assert one == pytest.approx(at_first, abs=0.03)  # of one candidate that one is accepted: q itself
    assert one > four + 0.05
    assert four > sixteen + 0.05
    assert many < 0.04


def test_with_beta_near_zero_rso_takes_the_best_in_their_order() -> None:
    scores = [0.1, 3.0, -2.0, 2.0, 2.5]
    for seed in range(20):
        assert draw(selector("rso", k=3, beta=1e-9), candidates(scores), seed).accepted == (1, 4, 3)


def test_with_a_huge_beta_rso_takes_each_subset_equally_often() -> None:
    chosen, random = selector("rso", k=2, beta=1e300), np.random.default_rng(0)
    counts = Counter(tuple(sorted(chosen(candidates([0.0, 5.0, -9.0, 1.0]), random).accepted)) for _ in range(3000))
    assert chi_square(counts, dict.fromkeys(itertools.combinations(range(4), 2), 1 / 6)) < 1 + 3 * math.sqrt(2 / 5)


def test_equal_scores_make_rso_uniform_and_fewer_uniques_than_k_are_all_taken() -> None:
    chosen, random = selector("rso", k=2, beta=0.1), np.random.default_rng(0)
    counts = Counter(tuple(sorted(chosen(candidates([1.0] * 4), random).accepted)) for _ in range(3000))
    assert chi_square(counts, dict.fromkeys(itertools.combinations(range(4), 2), 1 / 6)) < 1 + 3 * math.sqrt(2 / 5)
    few = draw(selector("rso", k=4), candidates([1.0, 0.0, 1.0, 1.0], keys=[(7,), (8,), (7,), (7,)]))
    assert sorted(few.accepted) == [0, 1]
    assert few.duplicates == 2


# ---- the best, and those over a threshold ----


def test_top_k_takes_the_highest_scores() -> None:
    assert draw(selector("top_k", k=3), candidates([1.0, 5.0, -1.0, 3.0])).accepted == (1, 3, 0)


def test_ties_are_broken_by_the_rule() -> None:
    pool = candidates([1.0, 1.0, 1.0, 0.0], lengths=[5, 3, 4, 1])
    assert draw(selector("top_k", ties="shorter"), pool).accepted == (1, 2)
    assert draw(selector("top_k", ties="earlier"), pool).accepted == (0, 1)
    counts = Counter(draw(selector("top_k", k=1), pool, seed).accepted for seed in range(900))
    assert chi_square(counts, {(i,): 1 / 3 for i in range(3)}) < 4


def test_threshold_takes_all_that_reach_it_or_k_of_them_at_random() -> None:
    pool = candidates([1.0, 0.99, 2.0, 1.5])
    assert draw(selector("threshold"), pool).accepted == (0, 2, 3)
    counts = Counter(draw(selector("threshold", k=1), pool, seed).accepted for seed in range(900))
    assert chi_square(counts, {(i,): 1 / 3 for i in (0, 2, 3)}) < 4


def test_without_a_threshold_the_scorer_says_what_is_correct() -> None:
    pool = candidates([0.2, 0.9], correct=[True, False])
    assert draw(selector("threshold", threshold=None), pool).accepted == (0,)
    assert draw(selector("correct_vs_incorrect", threshold=None), pool).pairs == ((0, 1),)
    with pytest.raises(DataError, match=r"set select\.threshold"):
        draw(selector("threshold", threshold=None), candidates([0.2]))


# ---- pairs ----


def test_best_vs_worst_goes_inwards_and_stops_where_scores_meet() -> None:
    pool = candidates([2.0, 0.0, 3.0, 1.0, 1.0])
    assert draw(selector("best_vs_worst"), pool).pairs == ((2, 1),)
    found = draw(selector("best_vs_worst", pairs_per_prompt=9, ties="earlier"), pool).pairs
    assert found == ((2, 1), (0, 4))  # and then the third with itself


def test_best_vs_random_draws_from_all_that_are_worse() -> None:
    pool = candidates([3.0, 0.0, 3.0, 1.0])
    counts = Counter(draw(selector("best_vs_random", ties="earlier"), pool, seed).pairs for seed in range(600))
    assert set(counts) == {((0, 1),), ((0, 3),)}
    assert 240 < counts[((0, 1),)] < 360
    both = draw(selector("best_vs_random", pairs_per_prompt=5, ties="earlier"), pool).pairs
    assert sorted(both) == [(0, 1), (0, 3)]


def test_correct_vs_incorrect_uses_each_side_evenly_and_no_pair_twice() -> None:
    pool = candidates([1.0, 1.0, 0.0, 0.0, 0.0])
    four = draw(selector("correct_vs_incorrect", pairs_per_prompt=4), pool).pairs
    assert len(set(four)) == 4
    assert sorted(Counter(chosen for chosen, _ in four).values()) == [2, 2]
    assert max(Counter(rejected for _, rejected in four).values()) == 2
    every = draw(selector("correct_vs_incorrect", pairs_per_prompt=99), pool).pairs
    assert sorted(every) == list(itertools.product([0, 1], [2, 3, 4]))
    turned = draw(selector("correct_vs_incorrect", pairs_per_prompt=99), candidates([1.0, 1.0, 1.0, 0.0, 0.0])).pairs
    assert sorted(turned) == list(itertools.product([0, 1, 2], [3, 4]))


def test_west_of_n_wants_a_sure_preference() -> None:
    """sigmoid(1) = 0.731."""
    pool = candidates([0.0, 1.0, 0.5])
    assert draw(selector("west_of_n", confidence=0.73), pool).pairs == ((1, 0),)
    unsure = draw(selector("west_of_n", confidence=0.74), pool)
    assert unsure.empty
    assert unsure.reason == "no two make a pair"


def test_accepted_candidates_become_pairs_two_by_two() -> None:
    pool = candidates([0.0, 3.0, 1.0, 1.0, 2.0])
    found = draw(selector("rso", k=4, beta=1e-9, form="pairs"), pool)
    assert found.pairs == ((1, 4),)  # accepted 3, 2, 1, 1: the last two are equal
    assert found.passed == 4
    limited = draw(selector("rso", k=4, beta=1e-9, form="pairs", pairs_per_prompt=1), candidates([4.0, 3.0, 2.0, 1.0]))
    assert limited.pairs == ((0, 1),)


def test_accepted_candidates_become_labels_or_a_list() -> None:
    pool = candidates([0.0, 3.0, None, 1.0])
    assert draw(selector("top_k", form="labels"), pool).labels == ((0, False), (1, True), (3, True))
    assert draw(selector("top_k", form="lists"), pool).accepted == (1, 3)
    alike = draw(selector("top_k", form="lists"), candidates([1.0, 1.0]))
    assert alike.empty
    assert "don't differ" in alike.reason
    graded = draw(selector("correct_vs_incorrect", form="labels"), pool)
    assert graded.labels == ((0, False), (1, True), (3, True))


# ---- all of them ----


@pytest.mark.parametrize("name", READS)
def test_a_candidate_whose_scorer_failed_is_counted_and_never_selected(name: str) -> None:
    pool = candidates([None, 2.0, None, 0.0, 1.0], correct=[True, True, False, False, True])
    for seed in range(30):
        found = draw(selector(name), pool, seed)
        assert (found.failed, found.candidates) == (2, 5)
        assert not {0, 2} & {*found.accepted, *itertools.chain(*found.pairs), *(i for i, _ in found.labels)}
    assert draw(selector(name), candidates([None, None])).reason == "no candidate has a score"


@pytest.mark.parametrize("name", READS)
def test_the_order_of_the_candidates_does_not_matter(name: str) -> None:
    pool = candidates([0.4, 2.0, 0.4, 0.0, 1.0, 1.0], correct=[False, True, False, False, True, True])
    for seed in range(10):
        assert draw(selector(name), pool, seed) == draw(selector(name), pool[::-1], seed)


@pytest.mark.parametrize("name", ["best_vs_worst", "best_vs_random", "west_of_n", "correct_vs_incorrect"])
def test_equal_scores_make_no_pair(name: str) -> None:
    found = draw(selector(name), candidates([1.0] * 4))
    assert found.empty
    assert found.reason == "all candidates have the same score"


def test_of_duplicates_the_first_that_has_a_score_stays_unless_all_are_kept() -> None:
    pool = candidates([None, 2.0, 2.0, 1.0], keys=[(5,), (5,), (5,), (6,)])
    found = draw(selector("top_k", k=3), pool)
    assert (found.accepted, found.duplicates, found.failed) == ((1, 3), 1, 1)
    kept = draw(selector("top_k", k=3, duplicates="keep", ties="earlier"), pool)
    assert (kept.accepted, kept.duplicates) == ((1, 2, 3), 0)


def test_a_prompts_selection_depends_on_seed_round_and_id_alone() -> None:
    pool = candidates([0.0] * 6)
    chosen = selector("rso", k=3)

    def of(seed: int, round_: int, prompt_id: str) -> tuple[int, ...]:
        return chosen.of_prompt(pool, seed=seed, round_=round_, prompt_id=prompt_id).accepted

    ids = [f"{number:016x}" for number in range(40)]
    forwards = {name: of(0, 1, name) for name in ids}
    assert {name: of(0, 1, name) for name in reversed(ids)} == forwards
    assert len(set(forwards.values())) > 10
    assert {name: of(1, 1, name) for name in ids} != forwards != {name: of(0, 2, name) for name in ids}


def test_a_selections_random_numbers_are_those_of_all_versions() -> None:
    """Frozen: a run that is resumed under another numpy must select the same."""
    found = generator_of(7, 2, "00000000deadbeef").random(3)
    assert found.tolist() == [0.24847656896122894, 0.04711792331365483, 0.2792969202954071]


def test_an_error_names_the_prompt() -> None:
    with pytest.raises(DataError, match=r"Prompt 00ab of round 3: candidate 0 .* above the bound"):
        selector("rejection").of_prompt(candidates([9.0]), seed=0, round_=3, prompt_id="00ab")


def test_scores_that_are_no_numbers_and_repeated_indices_are_refused() -> None:
    with pytest.raises(DataError, match="score nan"):
        Candidate(0, (1,), math.nan, 1)
    with pytest.raises(DataError, match="same index"):
        draw(selector("top_k"), [*candidates([1.0]), *candidates([2.0])])


# ---- what makes no sense ----


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"selector": "rso", "k": 2}, "select.beta is missing; select.selector=rso needs it"),
        ({"selector": "top_k"}, "select.k is missing"),
        ({"selector": "top_k", "k": 1, "beta": 1.0}, "select.beta is set, but select.selector=top_k doesn't read it"),
        ({"selector": "rso", "k": 2, "beta": 0.0}, "greater than 0"),
        ({"selector": "rso", "k": 2, "beta": -1.0}, "greater than 0"),
        ({"selector": "best_vs_worst", "form": "demonstrations"}, "makes pairs: leave select.form out"),
        ({"selector": "west_of_n", "confidence": 0.6, "form": "labels"}, "select.form is labels"),
        ({"selector": "top_k", "k": 2, "pairs_per_prompt": 1}, "select.pairs_per_prompt is set, but the form is"),
        ({"selector": "raft"}, "Input should be 'rejection', 'rso'"),
    ],
)
def test_sections_that_make_no_sense_name_the_key(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as error:
        SelectConfig(**options)
    assert sentence in str(error.value)


def test_selectors_that_cannot_work_here_name_the_key() -> None:
    top = SelectConfig(selector="top_k", k=9)
    with pytest.raises(RecipeError, match=r"select\.k is 9, but a prompt has 8 samples"):
        build_selector(top, n=8)
    with pytest.raises(RecipeError, match="one sample a prompt never makes"):
        build_selector(SelectConfig(selector="best_vs_worst"), n=1)
    with pytest.raises(RecipeError, match=r"select\.k is 1 and select\.form lists"):
        build_selector(SelectConfig(selector="top_k", k=1, form="lists"))
    unbounded = SelectConfig(selector="rejection", beta=1.0)
    with pytest.raises(RecipeError, match=r"select\.bound is not set"):
        build_selector(unbounded)
    assert build_selector(unbounded, high=1.0).bound == 1.0
    with pytest.raises(RecipeError, match=r"select\.bound is 0\.5, but the scorer gives up to 1"):
        build_selector(SelectConfig(selector="rejection", beta=1.0, bound=0.5), high=1.0)


def test_a_changed_sampler_or_dropped_duplicates_say_what_the_target_becomes() -> None:
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    rso = SelectConfig(selector="rso", k=1, beta=1.0)
    assert target_warning(rso, plain) is None
    said = target_warning(rso, plain | {"temperature": 0.7, "top_p": 0.9})
    assert said is not None
    assert "temperature 0.7 and top_p 0.9" in said
    assert "q exp(r / beta)" in said
    assert target_warning(SelectConfig(selector="top_k", k=1), plain | {"top_k": 5}) is None
    assert "made elsewhere" in str(target_warning(rso, {"engine": "file"}))
    dropping = SelectConfig(selector="rejection", beta=1.0, duplicates="drop")
    assert "select.duplicates=drop" in str(target_warning(dropping, plain))
