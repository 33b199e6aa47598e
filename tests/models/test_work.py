"""The products of a step, counted by hand and by torch's own counter."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prefopt.data import build_packs
from prefopt.models import load_policy
from prefopt.models.packed import PackedModel
from prefopt.models.work import Work
from prefopt.records import Group, Layout

GROUPS = [Group((1, 2, 3), ((4, 5), (6,))), Group((7,), ((8, 9, 10),))]


@pytest.mark.parametrize(("window", "expected"), [(None, 6 + 9 + 4 + 1 + 9), (2, 5 + 4 + 2 + 1 + 6)])
def test_pairs_of_query_and_key_are_those_counted_by_hand(window: int | None, expected: int) -> None:
    # Prompt 1 + 2 + 3, completions 4 + 5 and 4; prompt 1, completion 2 + 3 + 4. With a window of 2: 1 + 2 + 2, ...
    layout = Layout.of((len(g.prompt), [len(c) for c in g.completions]) for g in GROUPS)
    assert layout.attended(window) == expected


@pytest.mark.parametrize("lora", [{"r": 4}, None])
def test_products_are_those_that_torch_counts_in_the_layers(tiny_model: Path, lora: dict[str, int] | None) -> None:
    policy, _ = load_policy(tiny_model, device="cpu", dtype="float32", lora=lora)
    packed = PackedModel(policy)
    work = Work.of(packed)
    assert work is not None
    (pack,) = build_packs(GROUPS, token_budget=64, shared=False)
    hidden = torch.randn(1, 16, packed.config.hidden_size)
    layers = [m for m in packed.backbone.modules() if isinstance(m, torch.nn.Linear)]
    counted = 0
    for layer in layers:
        x = torch.randn(1, 16, layer.in_features, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            out = torch.nn.functional.linear(x, layer.weight)
            forward = counter.get_total_flops()
            out.sum().backward()
        counted += counter.get_total_flops()
        assert forward == 2 * 16 * layer.weight.numel()
    assert 16 * (work.forward + work.backward) == counted
    assert hidden.shape[-1] * packed.head_weight.shape[0] * 2 == work.head_forward
    assert work.head_backward == work.head_forward * (1 if lora else 2)
    once, twice = work.flops(pack, reference=False), work.flops(pack, reference=True)
    tokens, scored = 5 + 4 + 4, 2 + 1 + 3  # rows: a prompt stands before each of its completions
    pairs = (15 + 10 + 10) * len(work.windows)
    assert twice - once == tokens * work.forward + scored * work.head_forward + pairs * work.attention


def test_what_nobody_reads_of_a_shared_prompt_is_not_counted(tiny_model: Path) -> None:
    packed = PackedModel(load_policy(tiny_model, device="cpu", dtype="float32", lora={"r": 4})[0])
    work = Work.of(packed)
    assert work is not None
    (pack,) = build_packs(GROUPS, token_budget=64, shared=True)
    # Without last tokens: a prompt of 3 with a completion of 1, and a prompt of 1 with one of 2.
    tokens, scored, pairs = 4 + 3, 2 + 1 + 3, 6 + 4 + 1 + 5
    unread = 2  # the first two tokens of the first prompt
    once, twice = work.flops(pack, reference=False), work.flops(pack, reference=True)
    assert twice - once == (
        tokens * work.forward
        - unread * work.last_forward
        + scored * work.head_forward
        + pairs * len(work.windows) * work.attention
    )
    config = packed.config
    assert work.last_forward == work.last_backward - 2 * sum(
        parameter.numel() for name, parameter in packed.model.named_parameters()
        if f"layers.{config.num_hidden_layers - 1}.mlp" in name and "lora" in name
    )  # fmt: skip
