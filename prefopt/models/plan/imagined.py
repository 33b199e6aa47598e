"""A policy of tensors without data: the real modules and the real code, and no memory.

Its tensors say that they are on a CPU, whatever the plan is for. For a GPU the parts that choose another way there are
replaced: attention by what FlexAttention keeps, and norms and rotations stay the model's own.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AttentionInterface, AutoModelForCausalLM

from prefopt.data.layout import assemble
from prefopt.kernels import attention
from prefopt.kernels.attention_plan import Plan, build_plan
from prefopt.kernels.flex import BLOCK
from prefopt.models.admission import expected
from prefopt.models.fused import fused
from prefopt.models.narrowed import narrowed
from prefopt.models.packed import PackedModel, take_scored
from prefopt.records import Group, Layout, Pack

_CPU = torch.device("cpu")


class ImaginedModel(PackedModel):
    """A `PackedModel` of imagined tensors. Use it inside `running()`.

    Args:
        model: on the meta device; its tensors become imagined ones.
        gpu: whether it stands for a model on a GPU.
    """

    def __init__(self, model: nn.Module, *, gpu: bool) -> None:
        self.gpu = gpu
        self.attended = 0.0
        """Flops of attention on a GPU so far; on a CPU its products are seen like all others."""
        self.planned_bytes = 0
        """Of what attention on a CPU plans for the packs so far."""
        self.mode = FakeTensorMode()
        self._imagine(model)
        super().__init__(model, admission=expected(model))

    def _imagine(self, model: nn.Module) -> None:
        made: dict[int, tuple[Tensor, Tensor]] = {}  # the original too, so that no other gets its id
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if id(parameter) not in made:
                        own = nn.Parameter(self.tensor(parameter.data), requires_grad=parameter.requires_grad)
                        made[id(parameter)] = own, parameter
                    module._parameters[name] = made[id(parameter)][0]  # type: ignore[assignment]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = self.tensor(buffer)

    def tensor(self, like: Tensor) -> Tensor:
        """Return a tensor without data of this shape and dtype."""
        return FakeTensor(self.mode, like.to("meta"), _CPU)

    def pack(self, groups: Sequence[Group]) -> Pack:
        """Return the pack of these groups, as imagined tensors."""
        pack = assemble(groups, shared=self.admission.shared)
        tensors: dict[str, Any] = {f.name: getattr(pack, f.name) for f in dataclasses.fields(pack)}
        imagined: dict[str, Any] = {name: self.tensor(x) for name, x in tensors.items() if isinstance(x, Tensor)}
        return dataclasses.replace(pack, **imagined)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within, passes forward and backward work, in this thread."""
        with self.attached(), self.mode, torch.autograd.set_multithreading_enabled(False):
            yield

    @contextmanager
    def attached(self) -> Iterator[None]:
        if not self.admission.shared:
            yield
            return
        try:
            # The registry is all processes' one place for attention functions; the real one goes back into it.
            AttentionInterface.register(attention.SHARED_PROMPT, self._attention)
            with (
                self._causal.attention(attention.SHARED_PROMPT),
                fused(self.model, gpu=self.gpu),
                narrowed(self.model),
            ):
                yield
        finally:
            attention.register()

    def _of_a_size_that_repeats(
        self, tokens: Tensor, position: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor, Layout]:
        return (tokens, position, layout) if self.gpu else super()._of_a_size_that_repeats(tokens, position, layout)

    def _scored(self, pack: Pack) -> Tensor:
        if self.admission.shared:
            return super()._scored(pack)
        # What the mask says is not known here, and it costs nothing beside the rest.
        rows = pack.tokens.split(1) if self.admission.one_row else (pack.tokens,)
        hidden = torch.cat([self._causal.hidden(input_ids=part) for part in rows])
        return take_scored(hidden, pack.score_at)

    def _attention(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        layout: Layout,
        sliding_window: int | None = None,
        s_aux: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        window = attention.reaching(layout, sliding_window)
        if self.gpu:
            layout.plans[attention.CALLS] = layout.plans.get(attention.CALLS, 0) + 1
            tokens = query.shape[2]
            padded = [nn.functional.pad(x, (0, 0, 0, -tokens % BLOCK)).contiguous() for x in (query, key, value)]
            pairs = query.shape[1] * layout.attended(window)
            out: Tensor = _Flex.apply(*padded, lambda products: self._attend(products * pairs))
            return out[:, :, :tokens].transpose(1, 2), None
        name = attention.plan_name(query, key, window, sinks=s_aux is not None)
        if name not in layout.plans:
            with _disable_current_modes():
                plan = build_plan(
                    layout,
                    heads=query.shape[1],
                    kv_heads=key.shape[1],
                    window=window,
                    sinks=s_aux is not None,
                    device=_CPU,
                    dtype=query.dtype,
                )
                layout.plans[name] = self._plan(plan)
        return attention.shared_prompt_attention(
            module, query, key, value, mask, layout=layout, sliding_window=sliding_window, s_aux=s_aux, **options
        )

    def _attend(self, sizes: float) -> None:
        self.attended += 2 * sizes

    def _plan(self, plan: Plan) -> Plan:
        rows = (plan.query_rows, plan.query_back, plan.key_rows, plan.key_back, *plan.key_sums)
        self.planned_bytes += sum(x.numel() * x.itemsize for x in (*rows, *(tile.mask for tile in plan.tiles)))
        return dataclasses.replace(
            plan,
            tiles=tuple(dataclasses.replace(tile, mask=self.tensor(tile.mask)) for tile in plan.tiles),
            query_rows=self.tensor(plan.query_rows),
            query_back=self.tensor(plan.query_back),
            key_rows=self.tensor(plan.key_rows),
            key_back=self.tensor(plan.key_back),
            key_sums=tuple(map(self.tensor, plan.key_sums)),
        )


class _Flex(torch.autograd.Function):
    """What FlexAttention keeps and allocates: its inputs, its output and a logsumexp a query, float32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, count: Callable[[float], None]) -> Tensor:
        out = query.new_empty(*query.shape[:3], value.shape[3])
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.count = count
        count(query.shape[3] + value.shape[3])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, _, lse = ctx.saved_tensors
        ctx.count(3 * query.shape[3] + 2 * value.shape[3])
        delta = torch.empty_like(lse)  # noqa: F841  (it is there while the gradients are made)
        return *(torch.empty_like(x) for x in (query, key, value)), None


def of_layers(settings: Any, kinds: Sequence[str | None]) -> Any:
    """Return the configuration with as many layers as there are `kinds`, of those kinds where they have any."""
    own = copy.deepcopy(settings)
    own.num_hidden_layers = len(kinds)
    if getattr(own, "layer_types", None):
        own.layer_types = list(kinds)
    return own


def layer_kinds(settings: Any) -> list[str | None]:
    """Return the kind of each layer; None where the configuration knows none."""
    kinds = getattr(settings, "layer_types", None)
    return list(kinds) if kinds else [None] * settings.num_hidden_layers


def on_meta(settings: Any, dtype: torch.dtype, *, trust_remote_code: bool = False) -> Any:
    """Return the model of a configuration on the meta device, with nothing that trains."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype, trust_remote_code=trust_remote_code)
    return model.requires_grad_(False)
