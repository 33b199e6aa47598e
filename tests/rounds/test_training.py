"""Where a round's training begins, what it is compared with, and what it replays."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from prefopt.data import Example
from prefopt.errors import ModelError
from prefopt.models import load_policy
from prefopt.models.adapters import copy_weights, save_weights
from prefopt.models.packed import PackedModel
from prefopt.models.references import build_reference
from prefopt.models.scoring import example_logprobs
from prefopt.recipe import load_recipe
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.recipe import load_rounds
from prefopt.rounds.run import Run
from prefopt.rounds.status import rounds_status
from prefopt.rounds.tables import GroupRow, write_groups
from prefopt.rounds.training import _start, replay, seed_of
from prefopt.train.config import TrainConfig
from prefopt.workflow import Start
from tests.rounds.toy import write_task

DRAWN = [Example((5, 6, 7), ((8, 9, 2), (10, 11)))]


def trained(model_folder: Path, folder: Path, seed: int, **options: object) -> Path:
    """Save an adapter, or a model, whose weights are not those that a new one has."""
    model, _ = load_policy(str(model_folder), dtype="float32", **options)  # type: ignore[arg-type]
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    save_weights(model, folder)
    return folder


def logprobs(packed: PackedModel, reference: object = None) -> list[float]:
    own, compared = example_logprobs(DRAWN, packed, reference, 1024)  # type: ignore[arg-type]
    return list(own if reference is None else compared)


@pytest.mark.parametrize("options", [{"lora": {"r": 4}}, {"lora": None}], ids=["adapter", "all weights"])
def test_a_run_begins_as_one_model_and_is_compared_with_another(
    tiny_model: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    saved = {name: trained(tiny_model, tmp_path / name, seed, **options) for name, seed in (("one", 1), ("two", 2))}

    def of(start: Start) -> tuple[list[float], list[float]]:
        model, _ = load_policy(str(tiny_model), dtype="float32", **options)  # type: ignore[arg-type]
        packed = PackedModel(model)
        reference = start.build(model, lambda: build_reference("auto", packed, needed=True))
        return logprobs(packed), logprobs(packed, reference)

    base = of(Start())[0]
    alone = {}
    for name, folder in saved.items():
        model, _ = load_policy(str(tiny_model), dtype="float32", **options)  # type: ignore[arg-type]
        copy_weights(model, folder)
        alone[name] = logprobs(PackedModel(model))
    assert len({tuple(base), tuple(alone["one"]), tuple(alone["two"])}) == 3
    assert of(Start()) == (base, base)
    assert of(Start(policy=saved["one"])) == (alone["one"], base)
    assert of(Start(reference=saved["one"])) == (base, alone["one"])
    assert of(Start(policy=saved["two"], reference=saved["one"])) == (alone["two"], alone["one"])
    assert of(Start(policy=saved["two"], reference=saved["two"])) == (alone["two"], alone["two"])


def test_weights_of_another_shape_or_none_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    trained(tiny_model, tmp_path / "eight", 1, lora={"r": 8})
    model, _ = load_policy(str(tiny_model), dtype="float32", lora={"r": 4})
    for folder in ("eight", "none"):
        with pytest.raises(ModelError, match="do not fit the model"):
            copy_weights(model, tmp_path / folder)


@pytest.mark.parametrize(
    ("policy", "reference", "begins", "compared"),
    [
        ("continues", "fixed", True, False),
        ("continues", "previous", True, True),
        ("continues", "moving", True, True),
        ("restarts", "fixed", False, False),
        ("restarts", "previous", False, True),
        ("restarts", "moving", False, False),
    ],
)
def test_each_rule_names_what_a_round_begins_as_and_is_compared_with(
    policy: str, reference: str, begins: bool, compared: bool
) -> None:
    rounds = SimpleNamespace(policy=policy, reference=reference)
    before = Path("round-000/train/adapter")
    run = SimpleNamespace(recipe=SimpleNamespace(rounds=rounds), weights=lambda number: before)
    assert _start(run, 0) == Start()  # type: ignore[arg-type]
    wanted = Start(policy=before if begins else None, reference=before if compared else None)
    assert _start(run, 1) == wanted  # type: ignore[arg-type]


def group(number: int) -> GroupRow:
    return GroupRow(f"{number:016x}", (1,), (0,), ((number, 2),), (1.0,), (False,), True)


def replayed(folder: Path, share: float, number: int, new: int, seed: int = 0) -> tuple[list[int], int]:
    rounds = SimpleNamespace(replay=share, seed=seed)
    run = SimpleNamespace(
        recipe=SimpleNamespace(rounds=rounds), round_folder=lambda number: folder / f"round-{number:03d}"
    )
    found: Run = run  # type: ignore[assignment]
    rows, wanted = replay(found, number, new)
    return [row.completions[0][0] for row in rows], wanted


def test_replay_is_a_share_of_all_that_is_trained_on_drawn_from_rounds_before(tmp_path: Path) -> None:
    for number in range(3):
        write_groups(tmp_path / f"round-00{number}/groups.parquet", [group(100 * number + at) for at in range(20)])
    assert replayed(tmp_path, 0.25, 0, 30) == ([], 0)
    assert replayed(tmp_path, 0.0, 2, 30) == ([], 0)
    found, wanted = replayed(tmp_path, 0.25, 2, 30)
    assert len(found) == wanted == 10
    assert len(set(found)) == 10
    assert all(one < 200 for one in found), "none is of this round"
    assert {one // 100 for one in found} == {0, 1}
    assert replayed(tmp_path, 0.25, 2, 30) == (found, 10)
    assert replayed(tmp_path, 0.25, 2, 30, seed=1) != (found, 10)
    all_there_are, wanted = replayed(tmp_path, 0.9, 2, 30)
    assert (len(all_there_are), wanted) == (40, 270), "there are no more than that, and it is said"


def test_each_round_trains_with_a_seed_of_its_own_made_of_that_of_the_recipe(tmp_path: Path) -> None:
    def seeds(**options: int) -> list[int]:
        return [seed_of(TrainConfig(output_dir=tmp_path, use_cpu=True, **options), number) for number in range(4)]  # type: ignore[arg-type]

    assert seeds(seed=7)[0] == 7, "one round is a run like any other"
    assert len({*seeds(seed=7), *seeds(seed=8), *seeds()}) == 12
    assert seeds(seed=7) == seeds(seed=7)


def test_the_adapter_begins_as_the_recipes_seed_makes_it_and_the_order_is_the_rounds(
    tiny_model: Path, tmp_path: Path
) -> None:
    """The first round leaves nothing to learn from its rate: what it saves is how its adapter began."""
    recipe = write_task(tmp_path, tiny_model, count=2)
    overrides = ["train.learning_rate=0", "train.seed=5", "rounds.policy=restarts", "rounds.replay=0.9"]
    run = load_rounds(recipe, overrides).run
    run_rounds(load_rounds(recipe, overrides))
    adapters = [load_file(run / f"round-00{n}/train/adapter/adapter_model.safetensors") for n in (0, 1)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    kept = [load_recipe(run / f"round-00{n}/train/recipe.yaml", check_files=False) for n in (0, 1)]
    seeds = [one.train.arguments().seed for one in kept]
    assert seeds == [5, seed_of(load_rounds(recipe, overrides).train, 1)]
    second = rounds_status(run).rounds[2]
    assert second.replayed is not None
    assert second.replay_wanted is not None
    assert 0 < second.replayed < second.replay_wanted
    assert any(f"rounds.replay asks for {second.replay_wanted}" in line for line in rounds_status(run).lines())
