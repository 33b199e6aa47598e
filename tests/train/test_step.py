"""A step's loss and gradients are a function of its examples alone: not of packs, order or budget."""

import random
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from prefopt.data import Example, PreferenceData, StepPlan, build_packs
from prefopt.losses import Loss, available, build
from prefopt.models.packed import PackedModel
from prefopt.models.references import build_reference
from prefopt.models.states import States
from prefopt.records import Group, LossOutput
from prefopt.train.step import run_step
from tests.models.tiny import SHARED, VOCABULARY, InFloat64, tiny_causal_lm

# Shrinking a failure would take minutes; the seed that is printed is enough to repeat it.
QUICK = {"deadline": None, "phases": (Phase.explicit, Phase.generate)}


def adapted(name: str) -> PackedModel:
    """A tiny model in float64 with a LoRA adapter whose B is random: with B = 0 the gradient of A would be 0."""
    model = get_peft_model(tiny_causal_lm(name), LoraConfig(r=4, target_modules="all-linear")).double()
    torch.manual_seed(0)
    for weight_name, parameter in model.named_parameters():
        if "lora_B" in weight_name:
            torch.nn.init.normal_(parameter, std=0.3)
    return PackedModel(model)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """At these sizes threads wait for each other longer than they compute, ten times longer on a busy machine."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@cache
def policy_of(name: str) -> PackedModel:
    return adapted(name)


@pytest.fixture
def policy() -> PackedModel:
    return policy_of("llama")


def draw_examples(seed: int, count: int, form: str, *, scored: bool = True) -> PreferenceData:
    draw = random.Random(seed)

    def tokens(longest: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCABULARY) for _ in range(draw.randint(1, longest)))

    prompts = [(number, *tokens(9)) for number in range(max(2, count // 2))]  # some prompts come twice
    examples = []
    for number in range(count):
        prompt = prompts[number % len(prompts)]
        if form == "paired":
            scores = (2.0 + draw.random(), 2.0 * draw.random()) if scored else ()
            examples.append(Example(prompt, ((1, *tokens(8)), (2, *tokens(8))), scores=scores))
        elif form == "listwise":
            scores = tuple(sorted((float(draw.randrange(4)) for _ in range(draw.randint(2, 4))), reverse=True))
            scores = (4.0, *scores[1:])  # no list without a preference
            examples.append(Example(prompt, tuple((i + 3, *tokens(6)) for i in range(len(scores))), scores=scores))
        else:
            examples.append(Example(prompt, ((number, *tokens(8)),), label=draw.random() < 0.5))
    return PreferenceData(form, examples)


def data_for(seed: int, loss: Loss) -> PreferenceData:
    form = loss.form if loss.form in ("paired", "listwise") else "unpaired"
    return draw_examples(seed, 6, form).for_loss(loss.form, scores=loss.scores)


def step(
    policy: PackedModel, loss: str | Loss, packs, kind: str = "adapter_off"
) -> tuple[float, dict[str, float], torch.Tensor]:
    """Run one step; return its loss, its metrics and all gradients as one vector."""
    if isinstance(loss, str):
        scaled = loss.isidentifier() and "beta" in available()[loss].hyper_names()
        loss = build(loss, beta=0.5) if scaled else build(loss)
    reference = build_reference(kind, policy, needed=loss.needs_reference)
    policy.model.zero_grad()
    policy.model.train()
    with InFloat64(), policy.attached(), reference.attached():
        result = run_step(policy, reference, loss, packs, backward=lambda value: value.backward())
    gradients = [p.grad.flatten() for p in policy.model.parameters() if p.requires_grad]
    return result.loss, result.metrics.means(), torch.cat(gradients)


def all_groups(data: PreferenceData, loss) -> list[Group]:
    plan = StepPlan(data, examples_per_step=len(data), seed=0, mismatched=loss.needs_mismatched)
    return plan.groups(0, 0)


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto"])
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], **QUICK)
@given(seed=st.integers(0, 10**6), budget=st.integers(1, 120), shared=st.booleans())
def test_loss_and_gradients_do_not_depend_on_how_groups_are_packed(policy, name, seed, budget, shared) -> None:
    check_packing(policy, name, seed, budget, shared)


# The three above are drawn at random; the others differ from them in arithmetic alone, so one cut of each says enough,
# and two more of those that look at the whole step.
MIXTURES = [
    "0.8*dpo(beta=0.5) + 0.2*sft",
    "kto(beta=0.5) + 0.5*sft",
    "ipo(beta=0.5) + 2*kto(beta=0.5)",
    "dpo + 0.1*aot_unpaired + sft",
    "plackett_luce(beta=0.5) + 0.5*dpo + 0.1*sft",
    "infonca + kto(beta=0.5)",
    "wpo(kto(beta=0.5))",
    "wpo(tdpo(beta=0.5)) + 0.3*ld_dpo + 0.2*bco",
]
OTHERS = [*sorted(available().keys() - {"dpo", "ipo", "kto"}), *MIXTURES]
WHOLE_STEP = [name for name in OTHERS if build(name).statistics == "step"]
# Packs of unequally many examples: what is averaged must not be averaged pack by pack.
UNEVEN = [(name, 60, True) for name in ("wpo", "wpo(simpo)", "tdpo", "ld_dpo", "infonca")] + [("wpo(sft)", 25, True)]
CUTS = (
    [(name, 20, True) for name in OTHERS] + UNEVEN + [(n, *cut) for n in WHOLE_STEP for cut in ((1, True), (40, False))]
)


@pytest.mark.parametrize(("name", "budget", "shared"), CUTS)
def test_no_loss_depends_on_how_the_step_is_cut_into_packs(policy, name, budget, shared) -> None:
    groups = all_groups(data_for(budget, build(name)), build(name))
    assert len(build_packs(groups, token_budget=budget, shared=shared)) > 1
    check_packing(policy, name, budget, budget, shared)


@pytest.mark.parametrize("name", [name for name, kind in available().items() if not kind.needs_reference])
def test_a_loss_that_needs_no_reference_runs_without_one(policy, name) -> None:
    data = draw_examples(2, 4, "paired").for_loss(build(name).form)
    packs = build_packs(all_groups(data, build(name)), token_budget=15, shared=True)
    assert len(packs) > 1
    alone, beside = (step(policy, name, packs, kind) for kind in ("none", "adapter_off"))
    assert alone[0] == beside[0]
    assert torch.equal(alone[2], beside[2])
    assert not any(metric.startswith("log_ratios") for metric in alone[1])


@pytest.mark.parametrize("architecture", sorted(SHARED.keys() - {"llama"}))
@pytest.mark.parametrize("name", ["dpo", "kto"])
@settings(max_examples=3, **QUICK)
@given(seed=st.integers(0, 10**6), budget=st.integers(1, 120))
def test_no_architecture_depends_on_how_groups_are_packed(architecture, name, seed, budget) -> None:
    check_packing(policy_of(architecture), name, seed, budget, shared=True)


def check_packing(policy: PackedModel, name: str, seed: int, budget: int, shared: bool) -> None:
    """A shuffled step cut by `budget` against the step in one pack: loss, metrics, and all gradients norm-wise."""
    assert policy.admission.shared
    loss = build(name)
    data = data_for(seed, loss)
    groups = all_groups(data, loss)
    whole = step(policy, name, build_packs(groups, token_budget=10**6, shared=True))
    random.Random(seed).shuffle(groups)
    cut = step(policy, name, build_packs(groups, token_budget=budget, shared=shared))

    assert cut[0] == pytest.approx(whole[0], rel=1e-9)
    assert cut[1] == pytest.approx(whole[1], rel=1e-9, abs=1e-9)
    assert whole[2].norm() > 1e-6
    assert (cut[2] - whole[2]).norm() <= 1e-9 * whole[2].norm()


def test_the_dpo_step_is_the_formula_on_separate_unpadded_full_logits_passes(policy) -> None:
    data = draw_examples(3, 5, "paired")
    model = policy.model.train()

    def logprob(prompt, completion):
        ids = torch.tensor([prompt + completion])
        logits = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        return sum(logits[0, len(prompt) - 1 + i, token] for i, token in enumerate(completion))

    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    with InFloat64():
        for example in data:
            chosen, rejected = (logprob(example.prompt, c) for c in example.completions)
            with torch.no_grad(), model.disable_adapter():
                frozen_chosen, frozen_rejected = (logprob(example.prompt, c) for c in example.completions)
            margin = (chosen - frozen_chosen) - (rejected - frozen_rejected)
            total = total - torch.nn.functional.logsigmoid(0.5 * margin) / len(data)
        total.backward()
    by_hand = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).clone()

    packs = build_packs(all_groups(data, build("dpo")), token_budget=40, shared=True)
    assert len(packs) > 1
    loss, _, gradients = step(policy, "dpo", packs)
    assert loss == pytest.approx(float(total.detach()), rel=1e-9)
    assert (gradients - by_hand).norm() <= 1e-9 * by_hand.norm()


def test_duplicate_examples_are_computed_once_and_counted_twice(policy) -> None:
    examples = list(draw_examples(5, 3, "paired"))
    once = PreferenceData("paired", examples)
    doubled = PreferenceData("paired", [*examples, examples[0]])
    groups = all_groups(doubled, build("dpo"))
    assert sum(len(g.completions) for g in groups) == sum(len(g.completions) for g in all_groups(once, build("dpo")))

    single = [
        step(
            policy,
            "dpo",
            build_packs(all_groups(PreferenceData("paired", [e]), build("dpo")), token_budget=999, shared=True),
        )
        for e in [*examples, examples[0]]
    ]
    loss, _, gradients = step(policy, "dpo", build_packs(groups, token_budget=999, shared=True))
    assert loss == pytest.approx(sum(s[0] for s in single) / 4, rel=1e-9)
    expected = sum(s[2] for s in single) / 4
    assert (gradients - expected).norm() <= 1e-9 * expected.norm()


def test_mismatched_completions_are_scored_alone_and_never_with_a_gradient(policy, monkeypatch) -> None:
    data = draw_examples(7, 6, "unpaired")
    packs = build_packs(all_groups(data, build("kto")), token_budget=30, shared=True)
    assert len(packs) > 1
    computed: dict[bool, list[int]] = {True: [], False: []}  # with a gradient? -> completions of each pass
    own = policy.logprobs

    def counted(pack, reduction="sum"):
        computed[torch.is_grad_enabled()].append(pack.num_sequences)
        return own(pack, reduction=reduction)

    monkeypatch.setattr(policy, "logprobs", counted)
    step(policy, "kto", packs)
    examples = [pack.labelled.unique().numel() for pack in packs]
    mismatched = [pack.mismatched.unique().numel() for pack in packs]
    assert computed[True] == [n for n in examples if n]
    # The reference is the policy with its adapter off, and goes through the same method: whole packs.
    assert sorted(computed[False]) == sorted([n for n in mismatched if n] + [pack.num_sequences for pack in packs])


@pytest.mark.parametrize("formula", ["bco", "aot", "dpo + 0.1*kto", "bco + ld_dpo", "wpo + bco"])
def test_a_second_pass_computes_what_has_gradients_and_nothing_else(policy, formula, monkeypatch) -> None:
    data, loss = draw_examples(7, 6, "paired").for_loss("paired"), build(formula)
    packs = build_packs(all_groups(data, loss), token_budget=60, shared=True)
    assert len(packs) > 1
    reference, passes = build_reference("adapter_off", policy, needed=True), []
    own, squares = reference.logprobs, States.log_sum_p2
    monkeypatch.setattr(reference, "logprobs", lambda pack, *how: passes.append("reference") or own(pack, *how))
    monkeypatch.setattr(States, "log_sum_p2", lambda self, pack: passes.append("squares") or squares(self, pack))
    with policy.attached():
        run_step(policy, reference, loss, packs, backward=lambda value: value.backward())
    assert passes.count("reference") == len(packs)
    assert passes.count("squares") == (len(packs) if "wpo" in formula else 0)


class Centred(Loss):
    """A loss that needs the whole step: every completion's log-ratio against the mean of all of them."""

    name = "centred"
    form = "unpaired"
    statistics = "step"

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, seqs):
        log_ratio = self.log_ratio(seqs)
        loss = (log_ratio[seqs.labelled] - log_ratio[seqs.labelled].mean()).square()
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=self.beta * log_ratio.detach())


@pytest.mark.parametrize("budget", [1, 40])
def test_a_statistic_over_the_whole_step_does_not_depend_on_packs(policy, budget) -> None:
    data = draw_examples(11, 6, "unpaired")
    groups = all_groups(data, Centred())
    whole = step(policy, Centred(), build_packs(groups, token_budget=10**6, shared=True))
    cut = step(policy, Centred(), build_packs(groups, token_budget=budget, shared=True))
    assert cut[0] == pytest.approx(whole[0], rel=1e-9)
    assert (cut[2] - whole[2]).norm() <= 1e-9 * whole[2].norm()
