"""A plan's numbers: what is counted without data is what the real passes keep, and the sums are right by hand."""

import copy

import pytest
import torch
from torch import nn

from prefopt.data.layout import assemble
from prefopt.errors import ModelError, PrefoptError
from prefopt.kernels import footprint
from prefopt.kernels.head import Head
from prefopt.kernels.roofline import Gpu
from prefopt.kernels.tiles import TorchTiles
from prefopt.models.adapters import new_adapter
from prefopt.models.config import LoraSection, ModelConfig
from prefopt.models.packed import PackedModel
from prefopt.models.plan.imagined import ImaginedModel, layer_kinds, of_layers, on_meta
from prefopt.models.plan.machine import GIB, Machine, find_machine, known_rates, parse_memory
from prefopt.models.plan.passes import PassOptions
from prefopt.models.plan.policy import PlannedPolicy, read_settings, settings_of
from prefopt.models.plan.tracing import Trace
from prefopt.models.plan.weights import optimizer_bytes, weigh
from prefopt.records import Group
from tests.models.tiny import SHARED, tiny_causal_lm


def text(length: int) -> tuple[int, ...]:
    return tuple(range(3, 3 + length))


GROUPS = [Group(text(20), (text(17), text(9)), pairs=((0, 1),)), Group(text(11), (text(8), text(30)), pairs=((0, 1),))]


def layers(name: str, count: int):
    """The configuration of a tiny architecture with so many layers."""
    settings = SHARED[name]()
    return of_layers(settings, layer_kinds(settings)[:1] * count)


def prepared(model, *, lora: bool, checkpointing: bool):
    model.requires_grad_(not lora)
    if lora:
        model = new_adapter(model, LoraSection(r=4), seed=0)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def kept_by_the_real_model(settings, dtype, **how) -> int:
    """Bytes that autograd saves between forward and backward of the backbone, weights aside, each storage once."""
    model = prepared(tiny_causal_lm_of(settings, dtype), **how)
    packed, saved = PackedModel(model), {}
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with packed.attached(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = packed.logprobs(assemble(GROUPS, shared=True))
    assert value.requires_grad
    return sum(saved.values())


def tiny_causal_lm_of(settings, dtype):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(settings, dtype=dtype)


def kept_by_the_plan(settings, dtype, **how) -> float:
    with torch.device("meta"):
        model = prepared(on_meta(settings, dtype), **how)
    imagined = ImaginedModel(model, gpu=False)
    with imagined.running(), Trace() as trace:
        value = imagined.logprobs(imagined.pack(GROUPS))
        assert value.requires_grad
        return trace.live


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "lora", "checkpointing"),
    [("llama", True, False), ("llama", False, False), ("llama", True, True), ("qwen3", True, False),
     ("gemma2", True, False), ("gpt2", False, False)],
)  # fmt: skip
def test_a_layer_keeps_exactly_what_the_plan_says(name, lora, checkpointing, dtype):
    how = {"lora": lora, "checkpointing": checkpointing}
    real = [kept_by_the_real_model(layers(name, count), dtype, **how) for count in (2, 3)]
    planned = [kept_by_the_plan(layers(name, count), dtype, **how) for count in (2, 3)]
    assert real[1] - real[0] == planned[1] - planned[0] > 0


def test_frozen_weights_and_activation_checkpoints_keep_less():
    settings = SHARED["llama"]()
    full, lora, checkpoints = (
        kept_by_the_plan(settings, torch.bfloat16, lora=lora, checkpointing=checkpointing)
        for lora, checkpointing in ((False, False), (True, False), (True, True))
    )
    assert checkpoints < lora < full


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("gpu", [False, True])
def test_passes_of_many_layers_follow_from_those_of_three(name, gpu):
    settings = SHARED[name]()
    settings.num_hidden_layers = max(6, settings.num_hidden_layers)
    policy = PlannedPolicy(settings, ModelConfig(name="tiny", lora=LoraSection(r=4)), torch.bfloat16, gpu)
    model = ImaginedModel(policy._model(policy._kinds), gpu=gpu)
    from prefopt.models.plan.passes import trace_passes

    whole = trace_passes(model, None, GROUPS, PassOptions())
    found = policy.passes(GROUPS, PassOptions(), reference=False)
    for field in ("forward", "kept", "backward", "flops"):
        assert getattr(found, field) == pytest.approx(getattr(whole, field), rel=0.01), field


def test_the_passes_compute_the_products_that_they_must():
    """A frozen Llama with LoRA: forward and the input's gradient, and the adapter's own; no gradient of weights."""
    settings, rank = layers("llama", 3), 4
    policy = PlannedPolicy(settings, ModelConfig(name="t", lora=LoraSection(r=rank)), torch.float32, True)
    scored = sum(sum(map(len, g.completions)) for g in GROUPS)
    tokens = sum(g.tokens - len(g.completions) for g in GROUPS)  # a completion's last token predicts nothing
    h, i, v, kv = 32, 48, 61, 16
    base = [(h, h), (h, kv), (h, kv), (h, h), (h, i), (h, i), (i, h)]
    each = sum(a * b for a, b in base)
    adapters = sum(rank * (a + b) for a, b in base)
    # Forward twice (reference, policy) and once backward to the inputs; the adapter once forward, twice backward. The
    # first layer's q, k and v need no gradient of their inputs, which nothing before them trains.
    first = sum(a * b for a, b in base[:3]) + sum(rank * a for a, _ in base[:3])
    linear = 2 * tokens * (3 * (3 * each + 3 * adapters) - first)
    # What the last layer's MLP would give a prompt's tokens before its last one, nobody reads.
    unread = sum(len(g.prompt) - 1 for g in GROUPS)
    linear -= 2 * unread * 3 * sum(a * b + rank * (a + b) for a, b in base[4:])
    head = 2 * scored * h * v * (1 + 2)
    found = policy.passes(GROUPS, PassOptions(), reference=True)
    assert found.flops - found.attention == pytest.approx(linear + head, rel=0.02)
    # Causal: a query looks at what is before it in its prompt and completion.
    looks = sum(
        sum(range(1, len(g.prompt) + 1))
        + sum(sum(len(g.prompt) + n + 1 for n in range(len(c) - 1)) for c in g.completions)
        for g in GROUPS
    )
    products = 2 * 4 * looks * 8  # a product of 4 heads of size 8
    assert found.attention == pytest.approx(3 * products * (2 + 2 + 5))


def test_a_trace_counts_what_lives_by_hand():
    with Trace() as trace:
        a = torch.zeros(1024)
        assert trace.live == 4096
        b = a.view(32, 32).t()
        assert trace.live == 4096
        c = b @ b
        assert trace.live == 8192
        del a, b
        assert trace.live == 4096
        c.add_(1)
        assert (trace.live, trace.peak) == (4096, 8192)
    assert trace.flops == 2 * 32**3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [64, 2500])
@pytest.mark.parametrize("capped", [False, True])
def test_what_the_head_takes_inside_is_what_it_allocates(tokens, dtype, capped):
    hidden, target = torch.randn(tokens, 32).to(dtype), torch.zeros(tokens, dtype=torch.int64)
    head = Head(torch.randn(6000, 32).to(dtype), softcap=30.0 if capped else None)
    with torch.no_grad(), Trace() as trace:
        results = TorchTiles().score_with_direction(hidden, target, head)
    inside = trace.peak - sum(x.numel() * x.itemsize for x in (*results[0], results[1]))
    said = footprint.scoring(tokens, 32, 6000, dtype, gpu=False, capped=capped, gradient=True)
    assert said == pytest.approx(inside, rel=0.15)


def test_weights_gradients_and_optimizer_are_counted_by_hand():
    model = nn.Sequential(nn.Linear(100, 200, bias=False), nn.Linear(200, 10)).to(torch.bfloat16)
    model[0].requires_grad_(False)
    found = weigh(model, optimizer="adamw_torch_fused", quantization="nf4")
    assert (found.parameters, found.trainable) == (20000 + 2010, 2010)
    assert found.frozen_bytes == 20000 // 2 + 20000 // 64 * 4 + 2  # 4 bits, and a float32 for 64 of them
    assert (found.trainable_bytes, found.optimizer_bytes, found.dense_bytes) == (4020, 8040, 40000)
    assert optimizer_bytes("adamw_bnb_8bit", 25600, torch.float32) == 2 * (25600 + 4 * 100)
    assert optimizer_bytes("adamw_bnb_8bit", 100, torch.float32) == 800
    assert optimizer_bytes("sgd", 100, torch.float32) == 0
    assert optimizer_bytes("adafactor", 200, torch.float32, (10, 20)) == 120


def test_tied_weights_count_once():
    settings = copy.deepcopy(SHARED["llama"]())
    apart = weigh(on_meta(settings, torch.float32), optimizer="sgd").parameters
    settings.tie_word_embeddings = True
    assert apart - weigh(on_meta(settings, torch.float32), optimizer="sgd").parameters == 61 * 32


def test_operators_take_the_longer_of_their_floors_by_hand():
    machine = Machine("toy", False, None, Gpu("toy", 2.0, 100, ""), product=0.5)
    # 4e12 flops at half of 2e12 a second, and 160e9 bytes at four fifths of 100e9.
    assert machine.seconds({(4e12, 1.0): 1, (0.0, 160e9): 3}) == pytest.approx(4.0 + 3 * 2.0)
    assert Machine("toy", True, 8 * GIB).seconds({}) is None


def test_an_amount_of_memory_is_read_as_it_is_sold():
    assert parse_memory("24GB") == parse_memory("24") == parse_memory("24 GiB") == 24 * GIB
    assert parse_memory("512MB") == GIB // 2
    for wrong in ("much", "0GB", "-1"):
        with pytest.raises(PrefoptError, match="--memory"):
            parse_memory(wrong)
    with pytest.raises(PrefoptError, match="did you mean '4090'"):
        find_machine("490", dtype=torch.float32, cpu=True)


def test_a_folder_without_a_configuration_is_a_sentence(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        read_settings(ModelConfig(name=str(tmp_path)))


def test_planning_leaves_the_attention_of_real_models_as_it_was():
    model = tiny_causal_lm("llama")
    packed = PackedModel(model)
    pack = assemble(GROUPS, shared=True)
    with torch.no_grad(), packed.attached():
        before = packed.logprobs(pack)
    kept_by_the_plan(SHARED["llama"](), torch.float32, lora=True, checkpointing=False)
    with torch.no_grad(), packed.attached():
        assert torch.equal(packed.logprobs(pack), before)


@pytest.mark.parametrize(
    ("name", "gigabytes", "known"),
    [
        ("NVIDIA A100-SXM4-80GB", 79.15, "A100 80GB SXM"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100 40GB SXM"),
        ("NVIDIA H100 80GB HBM3", 79.1, "H100 SXM"),
        ("NVIDIA H200", 139.7, "H200 SXM"),
        ("NVIDIA GeForce RTX 4090", 23.5, "RTX 4090"),
        ("NVIDIA L40S", 44.4, "L40S"),
        ("NVIDIA RTX A6000", 47.5, "RTX A6000"),
        ("NVIDIA GeForce RTX 3080", 9.8, "RTX 3080 10GB"),
        ("NVIDIA GeForce RTX 3080", 11.8, None),
        ("NVIDIA H100 PCIe", 79.1, None),
        ("NVIDIA A100 80GB PCIe", 79.1, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, None),
        ("NVIDIA GeForce RTX 3080 Ti", 11.8, None),
        ("NVIDIA GeForce RTX 4080 SUPER", 15.7, None),
        ("NVIDIA GH200 480GB", 95.0, None),
    ],
)
def test_a_gpu_has_the_rates_of_its_own_data_sheet_or_none(name, gigabytes, known):
    found = known_rates(name, int(gigabytes * GIB))
    assert (found and found.name) == known


def test_a_model_whose_passes_cant_be_imagined_is_a_sentence():
    # Torch imagines the products of experts in bfloat16 alone.
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    settings = settings_of({"model_type": "qwen3_moe", "num_key_value_heads": 2, **sizes, **experts})
    section = ModelConfig(name="experts", lora=LoraSection(r=4, target_modules=("q_proj",)))
    with pytest.raises(ModelError, match=r"experts can't be planned: .*dtype.*A run of it needs no plan"):
        PlannedPolicy(settings, section, torch.float32, True).passes(GROUPS, PassOptions(), reference=False)
