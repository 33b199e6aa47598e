"""What a model allows: prompts shared between completions, padded rows, or one row at a time. Found out by trying.

A static gate names the architectures that are known not to work; a probe then scores two tiny groups packed and apart.
Nothing is believed: an architecture that passes the gate and gives other numbers is refused by the probe.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prefopt.errors import ModelError
from prefopt.kernels.attention import SHARED_PROMPT, register
from prefopt.models.causal import CausalModel
from prefopt.models.modes import evaluating
from prefopt.records import GroupLayout, Layout

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_WINDOW = 5
"""Sliding window of the probe: shorter than its sequences, so that it matters."""
_PROBE = ((7, (5, 4)), (5, (6,)))
"""Prompt and completion lengths of the probe's two groups."""
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Largest deviation of a token's hidden state that is rounding, in `_Probe._distance`; 5e-2 in half precision."""
_REFUSALS = (ModelError, TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError)
"""What a model may raise that can't take a row of shared prompts."""


@dataclass(frozen=True)
class Admission:
    """How packs for a model must be built."""

    shared: bool
    """Completions may share their prompt's computation."""
    one_row: bool
    """Without sharing, a row must be computed by itself and without padding."""
    reason: str
    """Half a sentence: why it is so."""


_known: WeakKeyDictionary[nn.Module, tuple[object, Admission]] = WeakKeyDictionary()


def admit(model: nn.Module) -> Admission:
    """Decide how packs for `model` must be built, and check that its log-probs can be computed by parts.

    The model is left as it was. The answer is remembered until the model's dtype, adapters or attention change. When
    prompts can't be shared, one warning says why.

    Raises:
        ModelError: when the model is no text-only causal language model, or backbone and head together don't give the
            log-probs that the model itself gives.
    """
    causal = CausalModel(model)
    state = _state(causal)
    known = _known.get(causal.causal)
    if known is not None and known[0] == state:
        return known[1]
    with torch.no_grad(), _untouched(causal), _short_window(causal):
        admission = _Probe(causal).admission(_gate(causal), _moves_rope(causal.config))
    if not admission.shared:
        warnings.warn(
            f"{causal.name}: every completion is computed with its own copy of the prompt, because {admission.reason}; "
            "the numbers are the same and take longer.",
            stacklevel=2,
        )
    _known[causal.causal] = state, admission
    return admission


def expected(model: nn.Module) -> Admission:
    """Return what the model's own description says of how its packs are built, without trying it.

    Raises:
        ModelError: when the model is no text-only causal language model.
    """
    causal = CausalModel(model)
    refusal, one_row = _gate(causal), _moves_rope(causal.config) is not None
    return Admission(refusal is None, one_row, refusal or "its description says nothing against it")


def _state(causal: CausalModel) -> object:
    """What an answer depends on beside the architecture, cheap to compare."""
    weight = next(causal.causal.parameters())
    adapters = getattr(causal.model, "peft_config", {})
    return (
        weight.dtype,
        weight.device,
        tuple(sorted(adapters)),
        str(getattr(causal.model, "active_adapters", None) if adapters else None),
        causal.config._attn_implementation,
    )


def _gate(causal: CausalModel) -> str | None:
    """Return why prompts can't be shared, as far as the model's own description tells, or None."""
    model, config = causal.causal, causal.config
    if getattr(model, "_is_stateful", False):
        return "it carries a state from token to token"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention can't be replaced"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if other:
        return f"it has layers of type {', '.join(other)}"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention looks ahead"
    if rope := _moves_rope(config):
        return f"its position encoding ({rope} RoPE) depends on the longest sequence of a row"
    return None


def _moves_rope(config: Any) -> str | None:
    """Return the type of position encoding that changes with the longest position of a batch, or None."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for entry in (parameters, *(value for value in parameters.values() if isinstance(value, Mapping))):
        kind = str(entry.get("rope_type", ""))
        if "dynamic" in kind or kind == "longrope":
            return kind
    return None


@contextmanager
def _untouched(causal: CausalModel) -> Iterator[None]:
    """Evaluation mode inside and no effect on random states."""
    devices = sorted({p.device.index for p in causal.causal.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), evaluating(causal.model):
        yield


@contextmanager
def _short_window(causal: CausalModel) -> Iterator[None]:
    """Shrink sliding windows inside, so that the probe's short sequences cross them."""
    holders: list[Any] = [causal.config, *causal.causal.modules()]
    before = [(h, w) for h in holders if type(w := getattr(h, "sliding_window", None)) is int]
    try:
        for holder, _ in before:
            holder.sliding_window = _WINDOW
        yield
    finally:
        for holder, window in before:
            holder.sliding_window = window


class _Probe:
    """Two tiny groups, computed apart, padded and packed. Hidden states stand in the order of the pack's tokens."""

    def __init__(self, causal: CausalModel) -> None:
        self.causal = causal
        weight = causal.causal.get_input_embeddings().weight
        self.device, self.vocabulary = weight.device, min(int(weight.shape[0]), int(causal.config.vocab_size))
        self.dtype = next((p.dtype for p in causal.causal.parameters() if p.dtype.is_floating_point), torch.float32)
        draw = torch.Generator().manual_seed(0)
        self.groups = [
            (self._tokens(prompt, draw), [self._tokens(length, draw) for length in completions])
            for prompt, completions in _PROBE
        ]

    def _tokens(self, length: int, draw: torch.Generator) -> Tensor:
        return torch.randint(self.vocabulary, (length,), generator=draw).to(self.device)

    @property
    def tolerance(self) -> float:
        return _TOLERANCE.get(self.dtype, 5e-2)

    def admission(self, refusal: str | None, rope: str | None) -> Admission:
        """Decide; `refusal` is what is known to forbid sharing, `rope` what forbids to compute rows together."""
        sequences = [torch.cat([prompt, c]) for prompt, completions in self.groups for c in completions]
        apart = [self.causal.hidden(input_ids=s[None])[0] for s in sequences]
        self._check_head(sequences[0], apart[0])
        floor = self._distance(self._padded(sequences), apart)
        one_row = rope is not None or not floor <= 2 * self.tolerance
        if refusal is None:
            refusal = self._try_sharing(apart, 0.0 if one_row else floor)
            if refusal is not None and self._is_mixture() and self.dtype.itemsize == 2:
                # Rounding decides between experts that are nearly equal, so half precision can't tell.
                with _in_float32(self.causal.causal):
                    return _Probe(self.causal).admission(None, rope)
        if refusal is None:
            return Admission(True, one_row, "a probe gave the same hidden states packed as apart")
        return Admission(False, one_row, refusal)

    def _padded(self, sequences: list[Tensor]) -> list[Tensor]:
        tokens = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in sequences], batch_first=True)
        hidden = self.causal.hidden(input_ids=tokens, attention_mask=mask)
        return [hidden[row, : len(s)] for row, s in enumerate(sequences)]

    def _try_sharing(self, apart: list[Tensor], floor: float) -> str | None:
        """Return why the probe refuses to share prompts, or None."""
        allowed = max(4 * floor, self.tolerance)
        try:
            packed = self._packed(self.groups)
            changed = [(prompt, list(completions)) for prompt, completions in self.groups]
            changed[0][1][0] = (changed[0][1][0] + 1) % self.vocabulary
            others = self._packed(changed)
        except _REFUSALS as error:
            return f"a probe of shared prompts failed ({str(error).strip().splitlines()[0] if str(error) else error!r})"
        if not (worst := self._distance(packed, apart)) <= allowed:
            return f"a probe of shared prompts deviated by {worst:.1e} of the hidden states' size"
        # The first sequence holds the changed completion; of its own rows the prompt's must not change either.
        prompt = len(self.groups[0][0])
        pairs = zip([packed[0][:prompt], *packed[1:]], [others[0][:prompt], *others[1:]], strict=True)
        exact = all(torch.equal(a, b) for a, b in pairs)
        if not exact and (not self._is_mixture() or not self._distance(others[1:], apart[1:]) <= allowed):
            return "in a probe of shared prompts a completion changed the numbers of others"
        return None

    def _packed(self, groups: list[tuple[Tensor, list[Tensor]]]) -> list[Tensor]:
        """Return the hidden states of each sequence, prompt and completion, computed as one row."""
        layouts: list[GroupLayout] = []
        positions: list[Tensor] = []
        places: list[Tensor] = []
        start = 0
        for prompt, completions in groups:
            lengths = [len(c) for c in completions]
            layouts.append(GroupLayout(start, len(prompt), tuple(lengths)))
            positions += [torch.arange(len(prompt)), *(torch.arange(n) + len(prompt) for n in lengths)]
            stop = start + len(prompt)
            for n in lengths:
                places.append(torch.cat([torch.arange(start, start + len(prompt)), torch.arange(stop, stop + n)]))
                stop += n
            start = stop
        tokens = torch.cat([t for prompt, completions in groups for t in (prompt, *completions)])
        register()
        with self.causal.attention(SHARED_PROMPT):
            hidden = self.causal.shared_hidden(
                tokens[None], torch.cat(positions).to(self.device)[None], Layout(tuple(layouts))
            )
        return [hidden[0, at.to(hidden.device)] for at in places]

    def _distance(self, found: list[Tensor], apart: list[Tensor]) -> float:
        """Return the largest deviation of a token's hidden state as a share of their size, both root mean squares."""
        a, b = torch.cat(found).double(), torch.cat(apart).double()
        return float((a - b).square().mean(1).max().sqrt() / b.square().mean().sqrt().clamp(min=1e-30))

    def _is_mixture(self) -> bool:
        return any("expert" in key and isinstance(v, int) and v > 1 for key, v in vars(self.causal.config).items())

    def _check_head(self, sequence: Tensor, hidden: Tensor) -> None:
        """Compare log-probs computed by parts with those of the model's own logits."""
        target = sequence[1:]
        found = self.causal.score(hidden[:-1], target, torch.zeros_like(target), 1, "none").double()
        logits = self.causal.causal(input_ids=sequence[None], use_cache=False).logits[0, :-1].double()
        own = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
        deviation = float((found - own).abs().max())
        rounding = min(self.tolerance, 4 * torch.finfo(self.dtype).eps) if self.dtype.itemsize == 2 else self.tolerance
        if not deviation <= rounding * max(1.0, float(logits.abs().max())):
            raise ModelError(
                f"{self.causal.name} makes its logits in a way of its own: log-probs from its backbone and head "
                f"differ by {deviation:.2g} nats from those of its own logits, so prefopt can't train it."
            )


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Hold the weights in float32 inside; afterwards the very tensors of before are back."""
    before = [
        (p, p.data) for p in [*model.parameters(), *model.buffers()] if p.dtype in (torch.bfloat16, torch.float16)
    ]
    try:
        for parameter, data in before:
            parameter.data = data.float()
        yield
    finally:
        for parameter, data in before:
            parameter.data = data
