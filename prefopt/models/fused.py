"""Run a model's low-rank layers, norms, gates and rotations by our own functions, where these compute the same."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import Linear4bit as LoraLinear4bit
from peft.tuners.lora import Linear8bitLt as LoraLinear8bit
from torch import Tensor, nn

from prefopt.kernels.low_rank import low_rank_linear
from prefopt.kernels.rms_norm import rms_norm
from prefopt.kernels.rotary import rotary
from prefopt.models.quantization import QUANTIZED, dense_weight, multiplies_in

Forward = Callable[..., Tensor]


ROTATE = "apply_rotary_pos_emb"
"""What transformers' architectures call their rotary embedding, each a function of its own file."""


@contextmanager
def fused(model: nn.Module, *, gpu: bool = False) -> Iterator[None]:
    """Within, the model keeps less for the backward pass and passes over memory less often.

    Plain LoRA layers are replaced, and, once tried beside ours, Llama's kind of gated MLP (where nothing asks for a
    gradient) and on a CPU its kind of RMS norm and of rotation.
    Classes, hooks and weights stay as they are, and afterwards nothing is left behind. With `gpu`, a model whose
    tensors say that they are on a CPU is treated as if they were on a GPU.
    """
    replaced: list[nn.Module] = []
    same: dict[type, bool] = {}
    with ExitStack() as stack:
        try:
            for module in model.modules():
                if "forward" in vars(module):  # ours, from an outer `fused`, or that of accelerate's hooks
                    continue
                forward = _low_rank(module) or _gated(module, same) or (None if gpu else _norm(module, same))
                if forward is not None:
                    module.forward = forward
                    replaced.append(module)
            for source in [] if gpu else _rotating(model):
                own = getattr(source, ROTATE)
                stack.callback(setattr, source, ROTATE, own)
                setattr(source, ROTATE, _rotation(own))
            yield
        finally:
            for module in replaced:
                del module.forward


def _low_rank(layer: Any) -> Forward | None:
    """Return the layer's fused forward, or None unless it is a frozen linear layer with one plain LoRA update."""
    if type(layer) not in (LoraLinear, LoraLinear4bit, LoraLinear8bit):
        return None
    base: Any = layer.base_layer
    quantized = isinstance(base, QUANTIZED)
    if not (quantized or type(base) is nn.Linear) or any(p.requires_grad for p in base.parameters()):
        return None
    if layer.merged or len(layer.active_adapters) != 1:
        return None
    (name,) = layer.active_adapters
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias.get(name):
        return None
    down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if not (isinstance(down, nn.Linear) and isinstance(up, nn.Linear) and isinstance(dropout, nn.Identity)):
        return None
    if any(_hooked(module) for module in (base, down, up)):
        return None
    own = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        fits = multiplies_in(base, x.dtype) if quantized else x.dtype == base.weight.dtype
        if args or kwargs or layer.merged or not fits or torch.is_autocast_enabled(x.device.type):
            out: Tensor = own(x, *args, **kwargs)
            return out
        bias = base.bias if base.bias is None else base.bias.to(x.dtype)
        if layer.disable_adapters:  # by the same product as with the adapter, whatever the layer's own would be
            return nn.functional.linear(x, _unpacked(base, x.dtype) if quantized else base.weight, bias)
        weight = partial(_unpacked, base, x.dtype) if quantized else base.weight
        return low_rank_linear(x, weight, bias, down.weight, up.weight, layer.scaling[name])

    return forward


def _unpacked(layer: Any, dtype: torch.dtype) -> Tensor:
    return dense_weight(layer).to(dtype)


def _norm(module: nn.Module, same: dict[type, bool]) -> Forward | None:
    """Return the module's fused forward, or None unless it is an RMS norm of Llama's kind with a frozen weight."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not (type(module).__name__.endswith("RMSNorm") and isinstance(weight, Tensor) and isinstance(eps, float)):
        return None
    # A GPU has better ways (and the model's own is one of them); here every pass over memory counts.
    if weight.device.type != "cpu" or weight.dim() != 1 or weight.requires_grad:
        return None
    if type(module) not in same:
        same[type(module)] = _same_norm(module, weight, eps)
    if not same[type(module)]:
        return None
    own = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or x.dtype != weight.dtype or x.shape[-1:] != weight.shape:
            out: Tensor = own(x, *args, **kwargs)
            return out
        return rms_norm(x, weight, eps)

    return forward


def _same_norm(module: nn.Module, weight: Tensor, eps: float) -> bool:
    """Try the module on rows so small that eps counts, and on large ones: a class name says nothing of `1 + weight`.

    What is tried is its class with another weight of that shape and dtype: the module's own may have no data.
    """
    generator = torch.Generator().manual_seed(0)
    weight = (torch.rand(weight.shape, generator=generator) + 0.5).to(weight.dtype)
    module = copy.copy(module)
    module._parameters = {"weight": nn.Parameter(weight, requires_grad=False)}
    rows = torch.randn(4, weight.shape[0], generator=generator) * torch.tensor([[eps**0.5], [0.1], [1.0], [30.0]])
    rows = rows.to(weight.dtype)
    with torch.no_grad():
        theirs, ours = module(rows), rms_norm(rows, weight, eps)
    rtol = 2 * torch.finfo(weight.dtype).eps if weight.dtype.itemsize == 2 else 1e-5
    return _close(theirs, ours, rtol, rtol * 1e-2)


def is_gated(module: Any, same: dict[type, bool] | None = None) -> bool:
    """Whether it is Llama's kind of MLP, down(act(gate(x)) * up(x)), and nobody watches its parts.

    `same` remembers what was found of classes.
    """
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "act_fn", "down_proj")]
    if not (type(module).__name__.endswith("MLP") and all(isinstance(part, nn.Module) for part in parts)):
        return False
    if any(part._forward_hooks for part in parts[:3] if part is not None):  # what these are shown would change
        return False
    same = {} if same is None else same
    if type(module) not in same:
        same[type(module)] = _same_gated(module)
    return same[type(module)]


def _gated(module: Any, same: dict[type, bool]) -> Forward | None:
    """Return the forward in place of an MLP of Llama's kind, None for another.

    In bf16 on a CPU two writes of (T, intermediate) less are a tenth of the module's time. The numbers are its own.
    """
    if not is_gated(module, same):
        return None
    own = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or torch.is_grad_enabled():
            out: Tensor = own(x, *args, **kwargs)
            return out
        return _down_in_place(module, x)

    return forward


def _down_in_place(module: Any, x: Tensor) -> Tensor:
    gate = module.gate_proj(x)
    gate = nn.functional.silu(gate, inplace=True) if type(module.act_fn) is nn.SiLU else module.act_fn(gate)
    up = module.up_proj(x)
    down: Tensor = module.down_proj(gate.mul_(up) if gate.dtype == up.dtype else gate * up)
    return down


def _same_gated(module: Any) -> bool:
    """Try the module's class on small layers beside ours: to the bit."""
    generator = torch.Generator().manual_seed(0)
    module = copy.copy(module)
    module._modules = dict(module._modules)
    for name, (wide, out) in {"gate_proj": (4, 6), "up_proj": (4, 6), "down_proj": (6, 4)}.items():
        layer = nn.Linear(wide, out, bias=False, device="meta")  # which draws nothing from torch's generator
        layer.weight = nn.Parameter(torch.randn(out, wide, generator=generator), requires_grad=False)
        module._modules[name] = layer
    rows = torch.randn(3, 4, generator=generator)
    try:
        with torch.no_grad():
            return torch.equal(type(module).forward(module, rows), _down_in_place(module, rows))
    except (TypeError, ValueError, RuntimeError, AttributeError):  # its forward asks for other layers or arguments
        return False


def _rotating(model: nn.Module) -> list[ModuleType]:
    """Return the source files of the model's layers whose rotation is Llama's, and not ours already."""
    if any(p.device.type != "cpu" for p in model.parameters()):
        return []
    names = {type(module).__module__ for module in model.modules()}
    sources = [sys.modules[name] for name in sorted(names) if hasattr(sys.modules.get(name), ROTATE)]
    return [s for s in sources if not hasattr(getattr(s, ROTATE), "own") and _same_rotation(getattr(s, ROTATE))]


def _rotation(own: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def rotate(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, unsqueeze_dim: int = 1, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        partial = cos.shape[-1] != q.shape[-1] or cos.shape[-1] != k.shape[-1]
        if args or kwargs or partial or not q.dtype == k.dtype == cos.dtype == sin.dtype:
            return own(q, k, cos, sin, *args, unsqueeze_dim=unsqueeze_dim, **kwargs)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return rotary(q, cos, sin), rotary(k, cos, sin)

    rotate.own = own  # type: ignore[attr-defined]
    return rotate


def _same_rotation(own: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    """Try the function: others under the same name interleave the halves, or turn a part of the head."""
    drawn = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 5, 8, generator=drawn) for heads in (4, 2))
    cos, sin = (torch.randn(1, 5, 8, generator=drawn) for _ in range(2))
    try:
        theirs = own(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError):  # another signature
        return False
    ours = _rotation(own)(q, k, cos, sin)
    return len(theirs) == 2 and all(_close(a, b, 1e-5, 1e-5) for a, b in zip(theirs, ours, strict=True))


def _close(theirs: object, ours: Tensor, rtol: float, atol: float) -> bool:
    return isinstance(theirs, Tensor) and theirs.dtype == ours.dtype and torch.allclose(theirs, ours, rtol, atol)


def _hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its class's forward."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" in vars(module) or any(getattr(module, name) for name in hooks)
