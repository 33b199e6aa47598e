"""Decoding with a cache that samples share: the same tokens as full passes, of every architecture."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from prefopt.sampling import decode as decoding
from prefopt.sampling.decode import batches, decode
from prefopt.sampling.draw import Sampler, uniforms
from tests.models.tiny import FALLBACK, SHARED, InFloat64, tiny_causal_lm

PROMPTS = [[5, 9, 12], [7, 3, 30, 11, 8, 21, 40, 17, 6, 19], [33, 4, 50, 8, 10]]


def by_full_passes(model: Any, prompt: Sequence[int], count: int, ends: Sequence[int]) -> tuple[int, ...]:
    """Greedy, every token from a pass over all before it."""
    row: list[int] = []
    while len(row) < count and not (row and row[-1] in ends):
        row.append(int(model(input_ids=torch.tensor([[*prompt, *row]]), use_cache=False).logits[0, -1].argmax()))
    return tuple(row)


def some(model: Any, repeats: Sequence[int], *, tokens: int = 8, temperature: float = 1.0, ends: Any = (2,)) -> Any:
    sampler = Sampler(tokens, temperature=temperature)
    with torch.no_grad():
        return decode(model, PROMPTS, repeats, uniforms(range(sum(repeats)), tokens), sampler, ends=ends)


@pytest.mark.parametrize("name", [*SHARED, *FALLBACK])
def test_greedy_tokens_are_those_of_full_passes(name: str) -> None:
    """Prompts of unequal length in one batch, two samples each; sliding windows are shorter than the longest."""
    model = tiny_causal_lm(name)
    with InFloat64(), torch.no_grad():
        expected = [by_full_passes(model, prompt, 8, [2, 11]) for prompt in PROMPTS]
        found = some(model, [2, 2, 2], temperature=0.0, ends=[2, 11])
        greedy = Sampler(8, temperature=0.0)
        alone = decode(model, PROMPTS[1:2], [3], uniforms(range(3), 8), greedy, ends=[2, 11])  # no padding, no mask
    assert found == [row for row in expected for _ in range(2)]
    assert alone == [expected[1]] * 3
    assert len(set(expected)) >= 2


def test_greedy_tokens_are_those_of_generate() -> None:
    model = tiny_causal_lm("llama", dtype=torch.float32)
    for prompt, row in zip(PROMPTS, some(model, [1, 1, 1], temperature=0.0), strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
        assert list(row) == expected[0, len(prompt) :].tolist()


def exact(model: Any, prompt: Sequence[int], length: int, end: int) -> dict[tuple[int, ...], float]:
    """The probability of every completion of up to `length` tokens."""
    open_ = {(): 1.0}
    found: dict[tuple[int, ...], float] = {}
    for step in range(length):
        after: dict[tuple[int, ...], float] = {}
        for row, p in open_.items():
            share = model(input_ids=torch.tensor([[*prompt, *row]])).logits[0, -1].softmax(-1)
            for token, q in enumerate(share.tolist()):
                (found if token == end or step == length - 1 else after)[(*row, token)] = p * q
        open_ = after
    return found


def test_samples_follow_the_models_distribution_over_whole_completions() -> None:
    model = tiny_causal_lm("llama", vocab_size=7, dtype=torch.float32)
    with torch.no_grad():
        share = exact(model, [5, 3], 3, end=2)
        drawn = Counter(decode(model, [[5, 3]], [6000], uniforms(range(6000), 3), Sampler(3), ends=[2]))
    assert sum(share.values()) == pytest.approx(1, abs=1e-5)
    common = {row: 6000 * p for row, p in share.items() if 6000 * p > 5}
    assert len(common) > 60
    chi_squared = sum((drawn[row] - count) ** 2 / count for row, count in common.items())
    assert chi_squared < len(common) + 4 * math.sqrt(2 * len(common))
    assert chi_squared > len(common) - 4 * math.sqrt(2 * len(common))  # and no less random than random


@pytest.mark.parametrize("name", ["llama", "gemma2", "lfm2"])
def test_dropping_rows_that_ended_changes_no_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_causal_lm(name)
    sizes: list[int] = []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(output.logits)))
    with InFloat64():
        dropped = some(model, [4, 3, 5], tokens=12, ends=range(20))
        assert sizes[0] == 3
        assert sizes[1] <= 12
        assert sizes[-1] < sizes[1]
        sizes.clear()
        monkeypatch.setattr(decoding, "_DROP", 0)
        assert some(model, [4, 3, 5], tokens=12, ends=range(20)) == dropped
    assert set(sizes[1:]) == {12}
    assert len({len(row) for row in dropped}) > 2


def test_a_prompt_is_computed_once_for_its_samples() -> None:
    model = tiny_causal_lm("llama", dtype=torch.float32)
    computed: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: computed.append(args[0].numel()))
    some(model, [4, 4, 4], tokens=3, ends=[])
    assert computed == [3 * max(map(len, PROMPTS)), 12, 12]


@pytest.mark.parametrize(("n", "rows"), [(1, 1), (3, 8), (8, 8), (20, 8), (4, 100)])
def test_batches_hold_every_sample_once_and_no_more_than_fit(n: int, rows: int) -> None:
    lengths = [9, 2, 30, 2, 11]
    found = list(batches(lengths, n, rows))
    samples = [(at, first + i) for batch in found for at, first, count in batch for i in range(count)]
    assert sorted(samples) == [(at, i) for at in range(5) for i in range(n)]
    assert max(sum(count for *_, count in batch) for batch in found) <= rows
    order = [lengths[at] for batch in found for at, *_ in batch]
    assert order == sorted(order)
