"""The training model as an engine: what a rollout says of itself is so, and depends on its shard alone."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.errors import DataError, RecipeError
from prefopt.models import PackedModel, build_reference
from prefopt.models.quantization import quantized_layers
from prefopt.sampling import Prompt, Rollout, encode_prompt, read_rollouts
from prefopt.sampling.draw import Sampler, sample_seed
from prefopt.sampling.hf import HfEngine
from tests.models.loading import load
from tests.models.stepping import distance, shake, step

CHAT = ({"role": "user", "content": "hi"},)
SHARD = [Prompt.of("once"), Prompt.of(CHAT, {"answer": 3}), Prompt.of("a much longer prompt than these two")]


def engine(model: Path, sampler: Sampler, *, reference: bool = False, batch_size: int = 6, **options: Any) -> HfEngine:
    """A policy whose adapter changes it, and whose distribution is not flat."""
    policy, tokenizer = load(model, lora={"r": 4}, **options)
    shake(policy)
    with torch.no_grad():
        torch.manual_seed(1)
        head = policy.get_base_model().get_output_embeddings().weight.normal_(std=0.2)
        head[2] *= -2.5  # the end of a turn: some samples come to it, and some do not
    packed = PackedModel(policy)
    compared = build_reference("adapter_off", packed, needed=True) if reference else None
    return HfEngine(packed, tokenizer, sampler, reference=compared, batch_size=batch_size)


def by_hand(model: Any, rollout: Rollout) -> float:
    """log pi(y | x) from one pass over prompt and completion."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
    with torch.no_grad():
        share = model(input_ids=ids).logits[0].double().log_softmax(-1)
    start = len(rollout.prompt_ids)
    return sum(share[start - 1 + i, token].item() for i, token in enumerate(rollout.token_ids))


def ids(rollouts: Sequence[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.token_ids for rollout in rollouts]


def test_rollouts_stand_in_order_and_say_what_was_sampled(tiny_model: Path) -> None:
    own = engine(tiny_model, Sampler(60))
    found = own.sample(SHARD, n=4, seed=3)
    assert [(one.prompt_id, one.sample) for one in found] == [(p.prompt_id, i) for p in SHARD for i in range(4)]
    tokenizer, ends = own._tokenizer, own.judge.ends
    for prompt, one in zip([p for p in SHARD for _ in range(4)], found, strict=True):
        assert list(one.prompt_ids) == encode_prompt(tokenizer, prompt.prompt)
        assert one.seed == sample_seed(3, one.prompt_id, one.sample)
        assert (one.finish == "end") == (one.token_ids[-1] in ends)
        assert one.finish == "end" or len(one.token_ids) == 60
        assert one.text == tokenizer.decode([t for t in one.token_ids if t not in ends], skip_special_tokens=True)
        assert one.reference is None
    assert {one.finish for one in found} == {"end", "length"}
    assert len(set(ids(found))) == 12
    assert own.q == {"engine": "hf", "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 60}


def test_log_probs_are_the_policys_whatever_the_sampler_does_to_them(tiny_model: Path) -> None:
    own = engine(tiny_model, Sampler(6, temperature=0.5, top_k=20), reference=True)
    for one in own.sample(SHARD, n=2, seed=0):
        assert one.policy == pytest.approx(by_hand(own.policy.model, one), abs=1e-4)
        with own.policy.model.disable_adapter():
            assert one.reference == pytest.approx(by_hand(own.policy.model, one), abs=1e-4)
        assert one.reference is not None
        assert abs(one.policy - one.reference) > 1e-2


def test_the_same_shard_gives_the_same_rollouts_bit_for_bit(tiny_model: Path) -> None:
    own = engine(tiny_model, Sampler(12))
    first = own.sample(SHARD, n=4, seed=0)
    torch.rand(3)
    assert own.sample(SHARD, n=4, seed=0) == first
    assert ids(own.sample(SHARD, n=4, seed=1)) != ids(first)


def test_a_sample_is_the_same_in_another_shard_another_batch_and_beside_more_samples(tiny_model: Path) -> None:
    own = engine(tiny_model, Sampler(12))
    whole = own.sample(SHARD, n=4, seed=0)
    own.batch_size = 1
    assert ids(own.sample(SHARD[::-1], n=2, seed=0)) == ids([whole[at] for at in (8, 9, 4, 5, 0, 1)])
    own.batch_size = 64
    assert ids(own.sample(SHARD[1:2], n=6, seed=0))[:4] == ids(whole[4:8])


ANOTHER = """
import sys
from pathlib import Path
from prefopt.sampling import Sampler, write_rollouts
from tests.sampling.test_hf import SHARD, engine
write_rollouts(Path(sys.argv[2]), engine(Path(sys.argv[1]), Sampler(12)).sample(SHARD[2:], n=4, seed=0))
"""


def test_two_processes_with_a_shard_each_sample_what_one_does(tiny_model: Path, tmp_path: Path) -> None:
    own = engine(tiny_model, Sampler(12))
    subprocess.run([sys.executable, "-c", ANOTHER, tiny_model, tmp_path / "b"], check=True, timeout=300)
    assert own.sample(SHARD[2:], n=4, seed=0) == read_rollouts(tmp_path / "b")


def test_it_samples_while_packs_are_scored(tiny_model: Path) -> None:
    own = engine(tiny_model, Sampler(8))
    expected = own.sample(SHARD, n=2, seed=0)
    with own.policy.attached():
        assert own.sample(SHARD, n=2, seed=0) == expected


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_gradients_of_a_quantized_policy_are_right_after_sampling(tiny_model: Path, kind: str) -> None:
    """A CPU kernel of bitsandbytes repacks weights at the first pass without gradient, and gradients are wrong then."""
    untouched = engine(tiny_model, Sampler(8), quantization=kind)
    assert list(quantized_layers(untouched.policy.model))
    tokenizer = untouched._tokenizer
    _, expected = step(untouched.policy.model, tokenizer)
    sampled = engine(tiny_model, Sampler(8), quantization=kind)
    rollouts = sampled.sample(SHARD, n=4, seed=0)
    assert distance(step(sampled.policy.model, tokenizer)[1], expected) < 1e-6
    for one in rollouts[:3]:
        assert one.policy == pytest.approx(by_hand(sampled.policy.model, one), abs=2e-2)


def test_no_samples_and_prompts_without_room_are_sentences(tiny_model: Path) -> None:
    own = engine(tiny_model, Sampler(300))
    with pytest.raises(RecipeError, match=r"sample\.n is 0"):
        own.sample(SHARD, n=0, seed=0)
    long = Prompt.of("x" * 300)
    with pytest.raises(DataError, match=f"prompt {long.prompt_id} has 300 tokens, so 300 new ones don't fit"):
        own.sample([long], n=1, seed=0)
    assert own.sample([], n=3, seed=0) == []
