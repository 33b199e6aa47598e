"""A causal language model that gives the log-probs of packs: backbone, then the fused head on scored tokens alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prefopt.errors import ModelError
from prefopt.kernels.attention import SHARED_PROMPT, register
from prefopt.kernels.shapes import compiles_by_shape, rounded
from prefopt.models.admission import Admission, admit
from prefopt.models.causal import CausalModel
from prefopt.models.compiled import compiled, wants_compiled
from prefopt.models.fused import fused
from prefopt.models.narrowed import narrowed
from prefopt.models.states import Reduction, States
from prefopt.records import GroupLayout, Layout, Pack

_PADDED = "padded"
"""Key of a layout's plans: the layout with padding behind."""
_ENDLESS = "endless"
"""Key of a layout's plans: the layout without the completions' last tokens, and where the others are."""


class PackedModel:
    """Computes the log-probs of packs with a causal language model, with or without adapters.

    Args:
        model: the model; it stays as it is outside of `attached`.
        admission: what the model allows; by default found out by `admit`.

    Raises:
        ModelError: when the model is no text-only causal language model, or its log-probs can't be computed by parts.
    """

    reads_last: bool = False
    """Whether the state of a completion's last token is read. It predicts nothing, so otherwise it isn't computed."""

    def __init__(self, model: nn.Module, *, admission: Admission | None = None) -> None:
        self.model: Any = model
        self.admission = admit(model) if admission is None else admission
        self._causal = CausalModel(model)
        if wants_compiled(model) is not None and not self.admission.shared:
            warnings.warn(
                f"model.compile is true, but {self._causal.name} can't share prompts, and only layers of models that "
                "do are compiled: it runs as it is.",
                stacklevel=2,
            )
        self._changes: ExitStack | None = None  # what `attached` changed, to put back
        self.inside: Callable[[Callable[[], Tensor]], Tensor] | None = None
        """Runs a pass where the model's weights are whole, if they are in parts outside of it (`shard_weights`)."""

        self.put_back: Callable[[], None] | None = None
        """Lets the weights be in parts again, if they were whole for a pass."""

    @property
    def backbone(self) -> nn.Module:
        """What makes hidden states, adapters included."""
        found: nn.Module = self._causal.backbone
        return found

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self._causal.config

    @property
    def layers(self) -> list[nn.Module]:
        """The layers that the architecture says must not be cut apart."""
        names = set(getattr(self._causal.causal, "_no_split_modules", None) or ())
        return [module for module in self._causal.backbone.modules() if type(module).__name__ in names]

    @property
    def head_weight(self) -> Tensor:
        """(V, H), the weight that logits are made with, without low-rank adapters."""
        return self._causal.head_weight

    @property
    def trains_head(self) -> bool:
        """Whether the head, or the embedding that it is tied to, asks for a gradient."""
        return any(parameter.requires_grad for parameter in self._causal.head_parameters())

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within, `logprobs` works and the model can't be used otherwise; afterwards the model is as it was.

        Stay inside for the backward pass too: activation checkpointing runs the forward pass again there.
        """
        if self._changes is not None:
            yield
            return
        self._changes = self._attach()
        try:
            yield
        finally:
            self._changes.close()
            self._changes = None
            if self.put_back is not None:
                self.put_back()

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Within `attached`, the model as it is outside: to sample from it while it trains."""
        if self._changes is None:
            yield
            return
        self._changes.close()
        try:
            yield
        finally:
            self._changes = self._attach()

    def _attach(self) -> ExitStack:
        if not self.admission.shared:
            return ExitStack()
        register()
        with ExitStack() as changes:
            changes.enter_context(self._causal.attention(SHARED_PROMPT))
            if self.inside is None:  # ours take hold of the weights as they are here: not of parts of them
                backend = wants_compiled(self.model)
                layers = fused(self.model) if backend is None else compiled(self.model, backend)
                changes.enter_context(layers)
                if backend is None:
                    changes.enter_context(narrowed(self.model))
            return changes.pop_all()

    def logprobs(self, pack: Pack, reduction: Reduction = "sum") -> Tensor:
        """Return the log-prob of each completion, (S,) float32 (float64 of a float64 model), nats, differentiable.

        Args:
            pack: with shared prompts, or rows. A model that shares prompts takes both.
            reduction: "sum" or "mean" over a completion's tokens, (S,); "none" for every token, (N,).

        Raises:
            ModelError: outside of `attached`, or for shared prompts when the model can't share them.
        """

        def score() -> Tensor:
            return self._causal.score(self._scored(pack), pack.target, pack.segment, pack.num_sequences, reduction)

        return score() if self.inside is None else self.inside(score)

    def states(self, pack: Pack) -> States:
        """Return the (N, H) hidden states that predict the pack's completion tokens, and the head: raises as above."""
        hidden = self._scored(pack) if self.inside is None else self.inside(lambda: self._scored(pack))
        return self._causal.states(hidden)

    def _scored(self, pack: Pack) -> Tensor:
        if self.admission.shared and pack.layout is not None:
            return self._shared(pack, pack.layout)
        if self.admission.shared:
            hidden = self._side_by_side(pack)
        elif pack.layout is not None:
            raise ModelError(
                f"{self._causal.name} can't share prompts ({self.admission.reason}); build its packs with shared=False."
            )
        elif self.admission.one_row and pack.tokens.shape[0] > 1:
            hidden = torch.cat([self._row(pack, row) for row in range(pack.tokens.shape[0])])
        else:
            padding = pack.mask is not None and not bool(pack.mask.all())
            hidden = self._causal.hidden(input_ids=pack.tokens, **({"attention_mask": pack.mask} if padding else {}))
        return take_scored(hidden, pack.score_at)

    def _shared(self, pack: Pack, layout: Layout) -> Tensor:
        """Return the hidden states (N, H) of a pack of shared prompts."""
        self._check_attached("logprobs")
        tokens, position, at = pack.tokens, pack.position, pack.score_at
        if not self.reads_last:
            layout, kept, place = _without_ends(layout, tokens.device)
            tokens, position, at = tokens[:, kept], position[:, kept], place[at]
        return take_scored(self._computed(*self._of_a_size_that_repeats(tokens, position, layout)), at)

    def _side_by_side(self, pack: Pack) -> Tensor:
        """Return hidden states (R, T, H) for a pack of rows, which go side by side as one row."""
        self._check_attached("logprobs")
        real = (torch.ones_like(pack.tokens) if pack.mask is None else pack.mask).bool()
        # Each row is a prompt without completions.
        layout = Layout.of((length, ()) for length in real.sum(1).tolist())
        found = self._computed(pack.tokens[real][None], pack.position[real][None], layout)
        return found.new_zeros(*real.shape, found.shape[-1]).masked_scatter(real[..., None], found)

    def _computed(self, tokens: Tensor, position: Tensor, layout: Layout) -> Tensor:
        hidden = self._causal.shared_hidden(tokens, position, layout)
        if hidden.requires_grad:
            hidden.register_hook(self._check_backward)
        return hidden

    def _of_a_size_that_repeats(
        self, tokens: Tensor, position: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor, Layout]:
        """Return a row's tokens, positions and layout; where new sizes are slow, with a prompt of padding behind."""
        extra = rounded(layout.tokens) - layout.tokens
        if not extra or not compiles_by_shape(tokens.device, self.head_weight.dtype):
            return tokens, position, layout
        if _PADDED not in layout.plans:
            layout.plans[_PADDED] = Layout((*layout.groups, GroupLayout(layout.tokens, extra, ())))
        behind = torch.arange(extra)[None]
        return (
            torch.cat([tokens, torch.zeros_like(behind)], 1),
            torch.cat([position, behind], 1),
            layout.plans[_PADDED],
        )

    def _row(self, pack: Pack, row: int) -> Tensor:
        """Return hidden states (1, T, H) of one row, computed without its padding."""
        width = pack.tokens.shape[1]
        length = width if pack.mask is None else int(pack.mask[row].sum())
        hidden = self._causal.hidden(input_ids=pack.tokens[row : row + 1, :length])
        return nn.functional.pad(hidden, (0, 0, 0, width - length))

    def _check_attached(self, what: str) -> None:
        if self._causal.config._attn_implementation != SHARED_PROMPT:
            raise ModelError(
                f"{what} of {self._causal.name} with shared prompts works inside `with packed.attached():` only, "
                "outside of it completions would see each other."
            )

    def _check_backward(self, grad: Tensor) -> None:
        """Refuse a backward pass that would run the forward pass again with the model's own attention."""
        if any(getattr(module, "gradient_checkpointing", False) for module in self._causal.backbone.modules()):
            self._check_attached("the backward pass with activation checkpointing")


def _without_ends(layout: Layout, device: torch.device) -> tuple[Layout, Tensor, Tensor]:
    """Return the layout without the completions' last tokens, made at the first call for a pack and kept with it.

    Beside it, both int64: which tokens stay (kept,), and the place of each of those among them (T,).
    """
    name = (_ENDLESS, device)
    if name not in layout.plans:
        stays = np.ones(layout.tokens, dtype=bool)
        for group in layout.groups:
            stays[group.start + group.prompt + np.cumsum(np.array(group.completions, dtype=np.int64)) - 1] = False
        kept, place = np.flatnonzero(stays), np.cumsum(stays) - 1
        kept_at, gone_to = (torch.tensor(x, device=device) for x in (kept, place))
        layout.plans[name] = layout.without_ends(), kept_at, gone_to
    found: tuple[Layout, Tensor, Tensor] = layout.plans[name]
    return found


def take_scored(hidden: Tensor, at: Tensor) -> Tensor:
    """Return (N, H), the rows `at` (N,) of the hidden states (R, T, H), R * T rows."""
    scored: Tensor = _Scored.apply(hidden.flatten(0, 1), at)
    return scored


class _Scored(torch.autograd.Function):
    """Rows of hidden states; several completions start from the last state of one prompt, whose gradient is their sum.

    That sum is taken in float32: torch's own would round after every term.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.shape = hidden.shape
        return hidden.index_select(0, at)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (at,) = ctx.saved_tensors
        total = grad.new_zeros(ctx.shape, dtype=torch.promote_types(grad.dtype, torch.float32))
        return total.index_add_(0, at, grad.to(total.dtype)).to(grad.dtype), None
