"""A run with a reference cache: the reference computes nothing twice, and what changed is never taken for the same."""

import json
import math
import shutil
import sqlite3
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import prefopt
from prefopt.data import build_packs
from prefopt.errors import RecipeError, RunError
from prefopt.losses import build
from prefopt.models.packed import PackedModel
from prefopt.models.reference_config import ReferenceConfig
from prefopt.models.references import CachedReference, FrozenCopy, LaterModel, Store, build_reference
from prefopt.models.references.caching import with_cache
from prefopt.recipe import load_recipe
from prefopt.records import Group
from prefopt.train import PreferenceArguments, PreferenceTrainer
from prefopt.workflow import build_cache, train_run
from tests.models.loading import copy, edit
from tests.toys import list_rows, pair_rows, save_tiny_model, write_rows


def make_trainer(
    folder: Path, model: Path, loss: str = "dpo", reference: Any = None, rows: Any = None, **options: Any
) -> PreferenceTrainer:
    lora = options.pop("lora", {"r": 4})
    policy, tokenizer = prefopt.load_policy(str(model), dtype="float32", lora=lora)
    data = prefopt.load_preferences(rows or pair_rows(24), tokenizer)
    settings = {"examples_per_step": 8, "learning_rate": 1e-2, "save_strategy": "no", "token_budget": 300, **options}
    args = PreferenceArguments(output_dir=str(folder / "run"), **settings)
    wanted = {"cache": True, "cache_dir": folder / "cache"} if reference is None else reference
    return PreferenceTrainer(policy, data, build(loss), wanted, args, eval_data=data, tokenizer=tokenizer)


def losses(trainer: PreferenceTrainer) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


LOSSES = ["dpo", "kto", "wpo(dpo)", "aot", "plackett_luce"]
"""Sums, mismatched completions, a whole step first, single tokens, lists."""


@pytest.mark.parametrize("loss", LOSSES)
def test_the_second_epoch_costs_no_reference_pass(tmp_path: Path, tiny_model: Path, loss: str) -> None:
    rows = list_rows(12) if loss == "plackett_luce" else None
    trainer = make_trainer(tmp_path, tiny_model, loss, rows=rows, num_train_epochs=2)
    reference = trainer.reference
    assert isinstance(reference, CachedReference)
    passes: list[int] = []
    inner, compute = reference.inner, reference.inner.logprobs

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(trainer.state.global_step)
        return compute(*args, **kwargs)

    inner.logprobs = counted  # type: ignore[method-assign]
    trainer.train()
    epoch = trainer.feed.steps_per_epoch
    assert {step for step in passes if step < epoch} == set(range(epoch))
    if "kto" not in loss:  # whose mismatched completions are drawn anew in every epoch
        assert not [step for step in passes if step >= epoch]
    assert reference.counts.passes == len(passes)
    before = len(passes)
    trainer.evaluate()
    trainer.evaluate()
    own = len(passes) - before
    first = 0 if "kto" not in loss else len(list(trainer.eval_packs(trainer.eval_data)))
    assert own <= first, "the second evaluation is all stored"


@pytest.mark.parametrize("loss", LOSSES)
def test_a_cached_reference_trains_what_an_uncached_one_does(tmp_path: Path, tiny_model: Path, loss: str) -> None:
    rows = list_rows(12) if loss == "plackett_luce" else None
    cached = make_trainer(tmp_path, tiny_model, loss, rows=rows, num_train_epochs=3)
    plain = make_trainer(tmp_path, tiny_model, loss, {"cache": False}, rows=rows, num_train_epochs=3)
    cached.train()
    plain.train()
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-4, abs=1e-6)
    assert losses(cached)[0] == losses(plain)[0], "what the run computes itself is what it would compute without"


def test_dpo_starts_at_log_two_exactly_and_by_values_of_another_layout_within_the_tolerance(
    tmp_path: Path, tiny_model: Path, recwarn: pytest.WarningsRecorder
) -> None:
    first = make_trainer(tmp_path, tiny_model, max_steps=1)
    first.train()
    assert losses(first)[0] == pytest.approx(math.log(2), abs=1e-7)
    assert first.reference.start_tolerance == 0.0
    whole = make_trainer(tmp_path, tiny_model, num_train_epochs=1)
    whole.train()
    second = make_trainer(tmp_path, tiny_model, max_steps=1, token_budget=1000, seed=5)
    second.train()
    assert second.reference.counts.misses == 0
    assert losses(second)[0] == pytest.approx(math.log(2), abs=1e-4)
    assert 0 < second.reference.start_tolerance < 0.01
    assert not [w for w in recwarn if "differ by up to" in str(w.message)]


def test_a_value_of_another_model_is_noticed_at_the_start(tmp_path: Path, tiny_model: Path) -> None:
    trainer = make_trainer(tmp_path, tiny_model, max_steps=1)
    weight = next(p for name, p in trainer.model.named_parameters() if "lora_B" in name)
    torch.nn.init.ones_(weight)
    with pytest.warns(UserWarning, match=r"policy and reference .* differ by up to"):
        trainer.train()


Change = Callable[[Path, Path], list[str]]


def write_recipe(folder: Path, model: Path) -> Path:
    write_rows(folder / "pairs.jsonl", pair_rows(16))
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: {{name: {model}, dtype: float32, lora: {{r: 2}}}}\n"
        "data: {train: pairs.jsonl, max_length: 200, truncation: keep_end}\n"
        f"reference: {{cache: true, cache_dir: {folder / 'cache'}}}\n"
        f"train: {{output_dir: {folder / 'run'}, examples_per_step: 8, num_train_epochs: 2, save_strategy: 'no'}}\n"
    )
    return path


SAME = {
    "learning rate": ["train.learning_rate=1e-5"],
    "beta": ["loss.beta=0.9"],
    "loss": ["loss=ipo"],
    "examples of a step": ["train.examples_per_step=4"],
    "token budget": ["train.token_budget=100"],
    "epochs": ["train.num_train_epochs=5"],
    "seed": ["train.seed=7"],
    "rank of the adapter": ["model.lora.r=8"],
    "modules of the adapter": ["model.lora.target_modules=[q_proj]"],
    "a limit that cuts nothing": ["data.max_length=400"],
}
OTHER = {
    "truncation": ["data.max_length=45"],
    "another way to cut": ["data.max_length=45", "data.truncation=cut_completion"],
    "dtype": ["model.dtype=bfloat16"],
    "autocast": ["train.bf16=true", "train.use_cpu=true"],
    "a template with one more token": ["model.tokenizer.chat_template=TEMPLATE"],
}


def template() -> str:
    from tests.toys import CHATML

    return CHATML.replace("{{ message['role'] }}\n", "{{ message['role'] }} \n").replace("assistant\n", "assistant \n")


@pytest.fixture
def filled(tmp_path: Path, tiny_model: Path) -> Path:
    path = write_recipe(tmp_path, tiny_model)
    assert build_cache(load_recipe(path)).there == 0
    return path


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_enter_the_key_recomputes_nothing(filled: Path, name: str) -> None:
    result = build_cache(load_recipe(filled, SAME[name]))
    assert (result.computed, result.packs) == (0, 0)
    assert result.there == 32


@pytest.mark.parametrize("name", OTHER)
def test_what_changes_a_log_prob_recomputes_every_one(filled: Path, name: str) -> None:
    (filled.parent / "template.jinja").write_text(template())
    changed = [word.replace("TEMPLATE", str(filled.parent / "template.jinja")) for word in OTHER[name]]
    result = build_cache(load_recipe(filled, changed))
    assert result.there == 0
    assert result.computed == 32


def test_one_changed_weight_or_one_changed_constant_of_the_model_recomputes_everything(
    tmp_path: Path, tiny_model: Path
) -> None:
    model = copy(tiny_model, tmp_path / "model")
    path = write_recipe(tmp_path, model)
    build_cache(load_recipe(path))
    weights = load_file(model / "model.safetensors")
    name = next(key for key in weights if "down_proj" in key)
    weights[name].view(-1)[7] += 1e-4
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    assert build_cache(load_recipe(path)).there == 0
    assert build_cache(load_recipe(path)).computed == 0
    edit(model / "config.json", rms_norm_eps=1e-3)
    assert build_cache(load_recipe(path)).there == 0


def test_an_adapter_that_goes_on_training_is_its_own_reference(tmp_path: Path, tiny_model: Path) -> None:
    trainer = make_trainer(tmp_path, tiny_model, max_steps=3)
    trainer.train()
    adapters = [tmp_path / "one", tmp_path / "two"]
    for adapter in adapters:
        trainer.model.save_pretrained(adapter)
    path = write_recipe(tmp_path, tiny_model)
    first, again = (build_cache(load_recipe(path, [f"model.adapter={adapters[0]}", "model.lora={}"])) for _ in range(2))
    assert (first.there, again.computed) == (0, 0)
    weights = load_file(adapters[1] / "adapter_model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, adapters[1] / "adapter_model.safetensors", {"format": "pt"})
    assert build_cache(load_recipe(path, [f"model.adapter={adapters[1]}", "model.lora={}"])).there == 0
    edit(adapters[0] / "adapter_config.json", lora_alpha=3)
    assert build_cache(load_recipe(path, [f"model.adapter={adapters[0]}", "model.lora={}"])).there == 0


def test_a_build_in_parts_that_was_interrupted_is_the_whole_and_training_computes_nothing(
    tmp_path: Path, tiny_model: Path
) -> None:
    path = write_recipe(tmp_path, tiny_model)
    held_out = write_rows(tmp_path / "held_out.jsonl", pair_rows(6, seed=1))
    recipe = load_recipe(path, ["train.token_budget=150", f"data.eval={held_out}", "eval.token_budget=200"])

    def stop(done: int, total: int) -> None:
        assert total == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(recipe, progress=stop)
    parts = [build_cache(recipe, shard=(index, 3)) for index in range(3)]
    assert all(part.packs for part in parts[1:])
    assert build_cache(recipe).packs == 0
    result = train_run(recipe)
    asked = json.loads((result.path / "reference.json").read_text())
    assert asked["kind"] == "adapter_off"
    assert (asked["cache"]["misses"], asked["cache"]["passes"]) == (0, 0)
    assert asked["cache"]["hits"] > 64


def test_a_run_after_a_build_ends_with_the_bits_of_a_run_that_fills_the_cache_itself(
    tmp_path: Path, tiny_model: Path
) -> None:
    found = []
    for name in ("built", "itself"):
        (tmp_path / name).mkdir()
        recipe = load_recipe(write_recipe(tmp_path / name, tiny_model), ["loss=kto"])
        if name == "built":
            build_cache(recipe)
        run = train_run(recipe).path
        found.append((run / "adapter" / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_a_full_fine_tuning_whose_reference_is_stored_holds_no_copy_and_learns_the_same(
    tmp_path: Path, tiny_model: Path
) -> None:
    options = {"lora": None, "num_train_epochs": 2, "learning_rate": 1e-3}
    first = make_trainer(tmp_path, tiny_model, **options)
    assert isinstance(first.reference.inner, FrozenCopy)
    assert not first.reference.inner._released
    first.evaluate()
    first.train()
    second = make_trainer(tmp_path, tiny_model, **options)
    assert second.reference.inner._released
    assert "no weights of the reference are held" in second.reference.reason
    assert second.reference.inner._places == []
    second.train()
    assert losses(second) == losses(first)
    other = prefopt.load_preferences(pair_rows(3, seed=9), second.processing_class)
    with pytest.raises(RunError, match="was not in the reference cache when the run began"):
        second.evaluate(other)


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_another_model_is_loaded_once_and_then_not_until_something_new_is_asked(
    tmp_path: Path, tiny_model: Path, quantization: str | None
) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)
    wanted = {"model": str(other), "quantization": quantization, "cache": True, "cache_dir": tmp_path / "cache"}

    def start(rows: Any = None, **options: Any) -> PreferenceTrainer:
        trainer = make_trainer(tmp_path, tiny_model, reference=wanted, rows=rows, num_train_epochs=1, **options)
        assert isinstance(trainer.reference.inner, LaterModel)
        return trainer

    first = start()
    assert first.reference.inner.is_loaded, "its weights are not known yet"
    first.train()
    second = start()
    second.train()
    assert not second.reference.inner.is_loaded
    assert "loaded when a log-prob is asked for that is not kept" in second.reference.reason
    assert losses(second) == losses(first)
    third = start(pair_rows(24, seed=3))
    third.train()
    assert third.reference.inner.is_loaded
    plain = make_trainer(
        tmp_path, tiny_model, reference={**wanted, "cache": False, "cache_dir": None}, rows=pair_rows(24, seed=3),
        num_train_epochs=1,
    )  # fmt: skip
    plain.train()
    assert losses(third) == losses(plain)
    wanted = {**wanted, "quantization": "fp4"}
    assert start().reference.inner.is_loaded, "other weights"
    save_tiny_model(other, seed=2)
    wanted = {**wanted, "quantization": quantization}
    assert start().reference.inner.is_loaded, "other files"


@pytest.mark.parametrize(("epochs", "on"), [(1, False), (1.5, True), (2, True)])
def test_auto_caches_where_examples_come_again_and_says_why(
    tmp_path: Path, tiny_model: Path, reference_cache: Path, epochs: float, on: bool
) -> None:
    trainer = make_trainer(tmp_path, tiny_model, reference="auto", num_train_epochs=epochs)
    assert isinstance(trainer.reference, CachedReference) == on
    assert ("more than once" if on else "looks at each example once") in trainer.reference.reason
    trainer.train()
    assert bool([*reference_cache.rglob("*.sqlite")]) == on


def test_auto_reads_what_is_there_also_for_a_single_epoch(tmp_path: Path, tiny_model: Path) -> None:
    make_trainer(tmp_path, tiny_model, reference="auto", num_train_epochs=2).train()
    trainer = make_trainer(tmp_path, tiny_model, reference="auto", num_train_epochs=1)
    assert isinstance(trainer.reference, CachedReference)
    assert "which has some" in trainer.reference.reason
    trainer.train()
    assert trainer.reference.counts.passes == 0
    bare = make_trainer(tmp_path, tiny_model, reference={"kind": "frozen_copy"}, num_train_epochs=1)
    assert not isinstance(bare.reference, CachedReference)


def test_a_run_that_began_without_a_cache_goes_on_without_whatever_was_stored_since(
    tmp_path: Path, tiny_model: Path, reference_cache: Path
) -> None:
    path = write_recipe(tmp_path, tiny_model)
    words = ["reference=auto", "train.num_train_epochs=1", "train.save_strategy=steps", "train.save_steps=1"]
    recipe = load_recipe(path, words)
    train_run(recipe)
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    build_cache(recipe)
    assert [*reference_cache.rglob("*.sqlite")]
    again = train_run(recipe, resume=True)
    assert json.loads((again.path / "reference.json").read_text())["cache"] is None
    (tmp_path / "run").rename(tmp_path / "first")
    fresh = train_run(recipe)
    assert json.loads((fresh.path / "reference.json").read_text())["cache"]["hits"] > 0


def test_a_stream_fills_the_cache_and_reads_it(tmp_path: Path, tiny_model: Path) -> None:
    path = write_recipe(tmp_path, tiny_model)
    recipe = load_recipe(path, ["data.streaming=true", "data.window=16", "train.max_steps=6", "loss=kto"])
    first = build_cache(recipe)
    assert first.computed > 0
    result = train_run(recipe)
    assert json.loads((result.path / "reference.json").read_text())["cache"]["passes"] == 0


def test_a_loss_of_distributions_has_no_cache_and_says_so_before_a_model_loads(
    tmp_path: Path, tiny_model: Path
) -> None:
    path = write_recipe(tmp_path, tiny_model)
    with pytest.raises(RecipeError, match=r"reference\.cache is true, but the loss tdpo compares whole distributions"):
        load_recipe(path, ["loss=tdpo"])
    trainer = make_trainer(tmp_path, tiny_model, "tdpo", "auto", num_train_epochs=2)
    assert not isinstance(trainer.reference, CachedReference)
    assert "compares whole distributions" in trainer.reference.reason
    with pytest.raises(RecipeError, match="compares whole distributions"):
        make_trainer(tmp_path, tiny_model, "tdpo")


@pytest.mark.parametrize("kind", ["none", "{kind: moving, every: 2}"])
def test_what_has_nothing_to_keep_is_refused_with_a_cache(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    path = write_recipe(tmp_path, tiny_model)
    words = "{kind: none, cache: true}" if kind == "none" else "{kind: moving, every: 2, cache: true}"
    with pytest.raises(RecipeError, match=r"there can be no cache of it: leave reference\.cache out"):
        load_recipe(path, [f"reference={words}"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss=sft"], "compares with no reference, so there is nothing to compute ahead"),
        (["reference={kind: moving, every: 2}"], "the reference moves, so there are no log-probs to compute ahead"),
        (["reference=auto", "loss=tdpo"], "tdpo compares distributions"),
    ],
)
def test_a_build_of_what_has_nothing_to_keep_is_refused_before_a_model_loads(
    tmp_path: Path, tiny_model: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefopt.workflow.reference.load_policy", None)
    with pytest.raises(RecipeError, match=said):
        build_cache(load_recipe(write_recipe(tmp_path, tiny_model), words))


def test_a_build_ends_when_nothing_can_be_stored_any_more(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "_insert", full)
    recipe = load_recipe(write_recipe(tmp_path, tiny_model))
    with pytest.warns(UserWarning, match="is full"), pytest.raises(RunError, match="Make room"):
        build_cache(recipe)


def test_damaged_entries_are_computed_anew_counted_and_told(tmp_path: Path, tiny_model: Path) -> None:
    first = make_trainer(tmp_path, tiny_model, num_train_epochs=1)
    first.train()
    store = first.reference.store
    store._connection.execute("UPDATE value SET data = x'00000000' WHERE substr(completion, 1, 1) < x'40'")
    again = make_trainer(tmp_path, tiny_model, num_train_epochs=1)
    with pytest.warns(UserWarning, match="log-probs of the reference in .* are damaged") as said:
        again.train()
    assert len([w for w in said if "are damaged" in str(w.message)]) == 1
    counts = again.reference.counts
    assert counts.damaged == counts.misses > 0
    assert losses(again) == losses(first)
    third = make_trainer(tmp_path, tiny_model, num_train_epochs=1)
    third.train()
    assert third.reference.counts.misses == 0


def test_rows_and_shared_prompts_have_keys_of_their_tokens_alone(tiny_model: Path) -> None:
    from prefopt.models.references.cached import sequence_key, sequence_keys

    groups = [
        Group(prompt=(5, 6), completions=((7, 8, 9), (7,)), pairs=((0, 1),)),
        Group(prompt=(5, 6, 7), completions=((8, 9),), labels=((0, True),)),
    ]
    expected = [sequence_key(g.prompt, c) for g in groups for c in g.completions]
    assert len(set(expected)) == 3, "the boundary is part of the key"
    for shared in (True, False):
        (pack,) = build_packs(groups, token_budget=100, shared=shared)
        assert sequence_keys(pack) == expected


def test_the_identity_is_of_content_not_of_names_and_leaves_a_disabled_adapter_out(
    tmp_path: Path, tiny_model: Path
) -> None:
    def identity(model: Path, **options: Any) -> tuple[str, str]:
        policy = PackedModel(prefopt.load_policy(str(model), dtype="float32", **options)[0])
        found = build_reference("auto", policy, needed=True).identity()
        assert found is not None
        return found.setting_key, found.weights_key

    one = identity(tiny_model)
    assert identity(copy(tiny_model, tmp_path / "elsewhere"), lora={"r": 3, "target_modules": ["v_proj"]}) == one
    full = identity(tiny_model, lora=None)
    assert full[1] == one[1], "the same weights"
    assert full[0] != one[0], "computed in another way"


class Backwards(set[str]):
    """A set in an order of its own, as another process' hash seed gives one."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__(), reverse=True))


def test_the_settings_of_an_adapter_have_one_key_in_whatever_order_sets_come(tiny_model: Path) -> None:
    policy, _ = prefopt.load_policy(str(tiny_model), dtype="float32", lora={"target_modules": ["q_proj", "v_proj"]})
    copied = FrozenCopy(PackedModel(policy), "a test.")
    keys = set()
    for kind in (set, Backwards, list):
        policy.peft_config["default"].target_modules = kind(["q_proj", "v_proj"])
        found = copied.identity()
        assert found is not None
        keys.add(found.setting_key)
    assert len(keys) == 1


def test_code_that_came_with_a_model_is_part_of_its_identity(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prefopt.load_policy(str(tiny_model), dtype="float32")[0]
    plain = FrozenCopy(PackedModel(model), "a test.")
    keys = [plain.identity()]
    layer = model.get_base_model().model.norm
    module = types.ModuleType("transformers_modules.own.code")
    module.__file__ = str(tmp_path / "code.py")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    layer.__class__ = type("Norm", (type(layer),), {"__module__": module.__name__})
    for own, imported in (("a = 1", "b = 1"), ("a = 2", "b = 1"), ("a = 2", "b = 2")):
        (tmp_path / "code.py").write_text(own)
        (tmp_path / "beside.py").write_text(imported)
        keys.append(plain.identity())
    assert len({key.setting_key for key in keys if key is not None}) == 4


def test_another_model_that_is_asked_late_is_loaded_outside_of_autocast_and_compared_with_what_was_known(
    tmp_path: Path, tiny_model: Path
) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)
    policy, tokenizer = prefopt.load_policy(str(tiny_model), dtype="float32", lora={"r": 4})
    packed = PackedModel(policy)
    (pack,) = build_packs([Group((1, 2), ((3,), (4, 5)))], token_budget=100, shared=True)
    config = ReferenceConfig(model=str(other), dtype="float32", cache=True, cache_dir=tmp_path / "cache")

    def start() -> CachedReference:
        later = build_reference(config, packed, needed=True, tokenizer=tokenizer, later=True)
        found = with_cache(later, config, repeats=True, needs_states=False)
        assert isinstance(found, CachedReference)
        return found

    assert start().inner.is_loaded
    second = start()
    assert not second.inner.is_loaded
    with second.attached(), torch.autocast("cpu", torch.bfloat16):
        assert second.logprobs(pack) is not None
    third, fourth = start(), start()
    save_tiny_model(other, seed=2)
    for late in (third, fourth):
        with late.attached(), pytest.raises(RunError, match="weights are not those that its kept log-probs"):
            late.inner.logprobs(pack)
        assert not late.inner.is_loaded
