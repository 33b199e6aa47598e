"""The packs of a step among ranks: simulated, and as processes that meet after every pack."""

import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import StepLoader, StepPlan, build_packs, shard
from prefopt.data.shard import empty_pack
from prefopt.errors import DataError
from tests.data.test_order import sharing
from tests.data.test_pack import examples, groups

ROOT = Path(__file__).resolve().parents[2]


@settings(max_examples=60, deadline=None)
@given(st.lists(groups(), min_size=1, max_size=6), st.integers(5, 60), st.integers(1, 5), st.booleans())
def test_ranks_get_equally_many_packs_that_together_are_the_step(group_list, budget, world, shared):
    packs = build_packs(group_list, token_budget=budget, shared=shared)
    parts = [shard(packs, rank, world) for rank in range(world)]
    assert {len(part) for part in parts} == {-(-len(packs) // world)}
    own = [id(pack) for part in parts for pack in part if pack.num_sequences]
    assert sorted(own) == sorted(map(id, packs))
    arrived = sum((examples(pack) for part in parts for pack in part), Counter())
    assert arrived == sum(map(examples, packs), Counter())


def test_tokens_are_shared_out_evenly():
    step = StepPlan(sharing(512, 512), examples_per_step=512, seed=0).groups(0, 0)
    packs = build_packs(step, token_budget=150, shared=True)
    tokens = [sum(pack.tokens.numel() for pack in shard(packs, rank, 4)) for rank in range(4)]
    assert max(tokens) - min(tokens) <= 150, "a pack at most"


def test_there_is_no_rank_beyond_the_last():
    with pytest.raises(DataError, match="Rank 2 of 2 can't be; ranks count from 0 to 1"):
        shard([], 2, 2)


@pytest.mark.parametrize("shared", [True, False])
def test_an_empty_pack_scores_nothing(shared):
    pack = empty_pack(shared=shared)
    assert (pack.num_sequences, pack.num_examples, pack.tokens.shape) == (0, 0, (1, 1))
    assert pack.score_at.numel() == pack.target.numel() == 0
    assert (pack.layout is not None) is shared
    assert (pack.mask is not None) is not shared
    ordinary = build_packs(
        StepPlan(sharing(4, 4), examples_per_step=4, seed=0).groups(0, 0), token_budget=99, shared=True
    )
    assert all(
        getattr(pack, name).dtype == getattr(ordinary[0], name).dtype
        for name in ("pair", "label", "list_score", "length")
    )


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_of_a_loader_hold_the_same_whole_for_any_number_of_them(world):
    def loaded(rank, of):
        plan = StepPlan(sharing(40, 9), examples_per_step=7, seed=0)
        return list(StepLoader(plan, token_budget=40, shared=True, rank=rank, world=of))

    alone = loaded(0, 1)
    parts = [loaded(rank, world) for rank in range(world)]
    for step, items in zip(alone, zip(*parts, strict=True), strict=True):
        assert len({len(item["micro"]) for item in items}) == 1
        together = sum((examples(pack) for item in items for pack in item["micro"]), Counter())
        assert together == sum(map(examples, step["micro"]), Counter())


def test_processes_that_meet_after_every_pack_end_together():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.data.test_shard"]
    ranks = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)}, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    found = [rank.communicate(timeout=120)[0] for rank in ranks]
    plan = StepPlan(sharing(41, 9), examples_per_step=7, seed=0)
    tokens = sum(
        pack.tokens.numel() for item in StepLoader(plan, token_budget=40, shared=True) for pack in item["micro"]
    )
    assert [int(text) for text in found] == [tokens, tokens]


def meet() -> None:
    """Walk this rank's packs, all-reducing after each, as a trainer does with gradients."""
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    plan = StepPlan(sharing(41, 9), examples_per_step=7, seed=0)
    total = 0
    for item in StepLoader(plan, token_budget=40, shared=True, rank=rank, world=world):
        for pack in item["micro"]:
            tokens = torch.tensor(pack.tokens.numel() if pack.num_sequences else 0)
            torch.distributed.all_reduce(tokens)
            total += int(tokens)
    print(total)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    meet()
