"""The decoder stack of a causal language model as a list of MLPs that can be edited and re-run from any layer.

A change to the MLP of layer l does not affect the layers below it, so a run starts from the residual that enters that
MLP. The layers are the model's own modules, called with the arguments that the model uses. The view works for every
family whose decoder layers have an MLP of a known form (`tasks.models.mlp`) that takes the residual after attention. It
is compared with the plain model before it is used.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.models.attention import NAME as TREE_ATTENTION
from tasks.models.calls import Arguments, KeysAndValues, LayerCalls, Stop
from tasks.models.checks import as_input_error, check_finite
from tasks.models.experts import NAME as BY_EXPERT
from tasks.models.experts import Experts
from tasks.models.memory import at_hand
from tasks.models.mlp import Mlp, mlp_of
from tasks.models.norms import norms_of_mlp
from tasks.models.packing import Pack, Unit, pack
from tasks.models.products import Kept, Precision, Products, linear_by_rows, pieces
from tasks.models.projections import PROJECTIONS, Projection
from tasks.models.stored import NARROW, kept_as_stored, unit_of
from tasks.models.structure import decoder_layers, last_norm
from tasks.models.view_check import check_view
from tasks.runtime.errors import InputError

__all__ = ["PROJECTIONS", "DecoderStack", "Projection", "Residuals"]


@dataclass
class Residuals:
    """The unedited pass of a pack, up to the layers that it has reached.

    Attributes:
        arguments: the arguments of each layer for this pack.
        inputs: the input of each layer that was reached, [1, T, d_model], and at the end the output of the last layer,
            [1, R, d_model].
        precision: the precision of the edited runs that will start from this pass.
    """

    pack: Pack
    arguments: list[Arguments]
    inputs: list[Tensor]
    precision: Precision = "float32"
    _logits: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """The logits of the finished pass, [R, vocabulary]."""
        if self._logits is None:
            raise ValueError("the unedited pass has not reached the last layer")
        return self._logits


class DecoderStack:
    """The decoder layers of `model`, with a view of each layer's MLP.

    Raises:
        InputError: a layer has no MLP of a known form, or the view does not reproduce the model's logits.
    """

    def __init__(self, model: Any):
        self.model = model
        # A family that was never tested may raise any exception here.
        cannot = f"{type(model).__name__}: its layers cannot be re-run one by one"
        with as_input_error("model", cannot, "; this family is not supported"):
            self._take_apart(model)

    def _take_apart(self, model: Any) -> None:
        self._body = model.get_decoder()  # of a model that takes images too, the part that reads text
        self.layers: list[Any] = decoder_layers(model)
        kind = type(model).__name__
        if not self.layers:
            raise InputError("model", f"{kind} has no decoder layers: its decoder has no list of modules")
        if any(parameter.is_meta for parameter in model.parameters()):
            raise InputError("model", f"{kind}: some weights are offloaded; all of them must be in memory")
        if model.dtype in NARROW and not kept_as_stored(model):
            raise InputError(
                "model",
                f"{kind}: is in {model.dtype}, which changes the ranking of neurons; load it in float32, or with "
                "tasks.models.loading.load, which keeps such weights and computes in float32",
            )
        check_finite(model)
        self._units = [unit_of(layer) for layer in self.layers]
        output = model.get_output_embeddings()
        if not isinstance(output, torch.nn.Linear):
            raise InputError(
                "model", f"{kind}: its output embedding is not a linear layer; this family is not supported"
            )
        self._in_pieces = self.device.type == "cuda"
        self.at_hand = at_hand(model)  # else each layer is read once for as much work as memory holds
        self.mlps: list[Mlp | Experts] = []
        for layer, unit in zip(self.layers, self._units, strict=True):
            with unit.used():
                self.mlps.append(mlp_of(layer, kind))
        # How many neurons each expert has; None without experts.
        self.each: int | None = self.mlps[0].each if isinstance(self.mlps[0], Experts) else None
        if len({isinstance(mlp, Experts) for mlp in self.mlps}) > 1:
            raise InputError("model", f"{kind} has experts in some layers and not in others, which is not supported")
        self.d_ff: int = self.mlps[0].d_ff
        self.d_model: int = self.mlps[0].d_model
        if output.in_features != self.d_model:
            raise InputError(
                "model",
                f"{kind}: its layers give {self.d_model} numbers and its output embedding takes {output.in_features}; "
                "this family is not supported",
            )
        self.config = model.config.get_text_config()
        self.context = _context(self.config)
        self.last_norm = last_norm(self._body)
        self._calls = LayerCalls(self._body, self.layers)
        self._norms = norms_of_mlp(self._body, self.layers[0], self.mlps[0], self.device, kind)
        self.rounded: dict[int, Tensor] = {}
        check_view(self)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations and logits: float32, whatever weights are stored in; float64 of a float64 model."""
        return torch.promote_types(self.model.dtype, torch.float32)

    @property
    def products(self) -> str:
        """How weights are stored and products are computed, for the headers of files."""
        narrow = {str(p.dtype).removeprefix("torch.") for p in self.model.parameters()} - {"float32"}
        stored = f"weights in {' and '.join(sorted(narrow))}" if narrow else "weights in float32"
        if self._in_pieces and "bfloat16" in narrow:
            return f"{stored}, activations in {pieces()} bfloat16 pieces, sums in float32"
        return f"{stored}, products in {str(self.dtype).removeprefix('torch.')}"

    def turn(self, index: int) -> AbstractContextManager[None]:
        """The context in which the matrices of a layer can be used: see `tasks.models.stored`."""
        return self._units[index].used(as_stored=self._in_pieces, again=True)

    def width(self, projection: Projection) -> int:
        """How many neurons (rows) a projection has: d_ff, or d_model for down_proj."""
        return self.mlps[0].width(projection)

    # -- one layer, taken apart ---------------------------------------------------------------------------------------

    def norms(self, index: int) -> tuple[Any, Any]:
        """(norm before the MLP or None, norm after it or None) of a layer."""
        before, after = (getattr(self.layers[index], name) if name else None for name in self._norms)
        return before, after

    def _entering_mlp(self, index: int, residual: Tensor) -> Tensor:
        """The input of the MLP of layer `index`, given the residual that enters it or the norm before it."""
        before, _ = self.norms(index)
        entering: Tensor = residual if before is None else before(residual)
        return entering

    def _leaving(self, index: int, residual: Tensor, y: Tensor) -> Tensor:
        """The residual that leaves layer `index`, given the output of its MLP."""
        _, after = self.norms(index)
        return residual + (y if after is None else after(y))

    def leaving_scaled(
        self, index: int, residual: Tensor, scale: Tensor, projection: Projection, added: Tensor | None
    ) -> Tensor:
        """The residual that leaves layer `index` with a projection's rows times `scale`, [C, T, d_model]."""
        with self.turn(index):
            with torch.no_grad():
                x = self._entering_mlp(index, residual)
            return self._leaving(index, residual, self.mlps[index].scaled(x, scale, projection, added))

    def leaving_without(
        self, index: int, residual: Tensor, sets: Sequence[np.ndarray], projection: Projection
    ) -> Tensor:
        """The residual that leaves layer `index` without these rows of a projection, [C, T, d_model]."""
        with self.turn(index):
            ys = self.mlps[index].without(self._entering_mlp(index, residual), sets, projection)
            return torch.stack([self._leaving(index, residual, y) for y in ys])

    # -- runs ---------------------------------------------------------------------------------------------------------

    def pack(self, units: Sequence[Unit], *, max_tokens: int = 512) -> list[Pack]:
        """`packing.pack` on this model's device; learns how the model calls its layers at this length."""
        self._calls.learn(max(len(sequence) for unit in units for sequence, _ in unit), self.device)
        return pack(units, max_tokens=max_tokens, device=self.device)

    @torch.no_grad()
    def start(self, packed: Pack, precision: Precision = "float32") -> Residuals:
        """The unedited pass over a pack up to the input of layer 0."""
        return Residuals(packed, self._calls.arguments(packed), [self._embed(packed)], precision)

    @torch.no_grad()
    def advance(self, residuals: Residuals, index: int) -> None:
        """Advances the unedited pass through layer `index`, if that is its next layer."""
        if len(residuals.inputs) == index + 1:
            with Products():
                self._append(residuals, index, self.run_layer(index, residuals.inputs[index], residuals))

    def _append(self, residuals: Residuals, index: int, leaving: Tensor) -> None:
        if len(residuals.inputs) > index + 1:
            return
        if index == len(self) - 1:
            with Products():
                residuals._logits = self.head(leaving)[0]
        residuals.inputs.append(leaving)

    def clean(self, packed: Pack, precision: Precision = "float32") -> Residuals:
        """The whole unedited pass over a pack, in float32."""
        residuals = self.start(packed, precision)
        for index in range(len(self)):
            with self.turn(index):
                self.advance(residuals, index)
        return residuals

    @torch.no_grad()
    def entering(self, residuals: Residuals, index: int, kept: Kept | None = None) -> Tensor:
        """The residual that enters the MLP of a layer that the unedited pass has reached, [T, d_model].

        For the last layer, [R, d_model], since its other tokens are not used. With `kept`, the whole layer is computed,
        `kept` is filled with its products, and the unedited pass advances through it.
        """
        captured: list[Tensor] = []

        def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
            captured.append(inputs[0].reshape(-1, self.d_model))
            if kept is None:
                raise Stop

        module = self.norms(index)[0] or self.mlps[index].entrance
        handle = module.register_forward_pre_hook(keep)
        try:
            with Products(kept):
                leaving = self.run_layer(index, residuals.inputs[index], residuals)
            self._append(residuals, index, leaving)
        except Stop:
            pass
        finally:
            handle.remove()
        return captured[-1]

    def scaled(
        self,
        residuals: Residuals,
        index: int,
        scale: Tensor,
        projection: Projection = "gate_proj",
        added: Tensor | None = None,
    ) -> Tensor:
        """Logits at the pack's reads, with row j of a projection of layer `index` multiplied by scale[:, j].

        Multiplying row j of gate_proj by alpha multiplies g_j by it, since g is linear in the row: it is the weight
        path of integrated gradients (2507.09185 Eq. 4). Differentiable in `scale` and in `added`.

        Args:
            scale: [C, width], one row per run.
            added: [C, tokens, width], added to the output of the scaled rows, with as many tokens as the layer's
                residual; zeros, to differentiate by position.

        Returns:
            [C, R, vocabulary].
        """
        entering = self.entering(residuals, index)
        with Products():
            hidden = self.leaving_scaled(index, entering, scale, projection, added)
            return self.head(self._run_layers(index + 1, hidden, residuals))

    def _run_layers(self, start: int, hidden: Tensor, residuals: Residuals) -> Tensor:
        """Layers start.. on [C, T, d_model]; the last one computes only the reads: [C, R, d_model]."""
        for index in range(start, len(self)):
            hidden = self.run_layer(index, hidden, residuals)
        return hidden

    def run_layer(self, index: int, hidden: Tensor, residuals: Residuals) -> Tensor:
        """One layer on [C, T, d_model]; the last one computes only the reads: [C, R, d_model]."""
        arguments = residuals.arguments[index]
        with self.turn(index), self._own_functions():
            if index < len(self) - 1:
                return _first(self.layers[index](hidden, **arguments))
            arguments = dict(arguments)
            return self._run_last(hidden, residuals.pack.reads, arguments.pop("reads"), arguments)

    def _run_last(self, hidden: Tensor, reads: Tensor, of_reads: Arguments, arguments: Arguments) -> Tensor:
        """The last layer: keys and values of all tokens, everything else for the reads alone."""
        layer, cache = self.layers[-1], KeysAndValues()
        try:
            layer(hidden, **arguments | {self._calls.cache: cache})
        except Stop:
            pass
        else:
            raise RuntimeError(f"{type(layer).__name__} does not update {self._calls.cache}")
        return _first(layer(hidden[:, reads.to(hidden.device)], **arguments | of_reads | {self._calls.cache: cache}))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits from the output of the last layer."""
        output = self.model.get_output_embeddings()
        x = self.last_norm(hidden)
        logits = linear_by_rows(x.to(output.weight.device), output.weight)
        if output.bias is not None:
            logits = logits + output.bias
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def _embed(self, packed: Pack) -> Tensor:
        """The input of layer 0, [1, T, d_model]: the model's own embedding and whatever the model applies to it."""
        entering: list[Tensor] = []

        def stop(_: Any, inputs: tuple[Tensor, ...]) -> None:
            entering.append(inputs[0])
            raise Stop

        handle = self.layers[0].register_forward_pre_hook(stop)
        try:
            self._body(input_ids=packed.tokens[None], position_ids=packed.positions[None], use_cache=False)
        except Stop:
            pass
        finally:
            handle.remove()
        return entering[0]

    @contextmanager
    def _own_functions(self) -> Iterator[None]:
        config = self._body.config
        own, of_experts = config._attn_implementation, config._experts_implementation
        config._attn_implementation = TREE_ATTENTION
        if self.each is not None:
            config._experts_implementation = BY_EXPERT
        try:
            yield
        finally:
            config._attn_implementation = own
            config._experts_implementation = of_experts


def _first(output: Any) -> Tensor:
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _context(config: Any) -> int:
    """The maximum number of tokens of a sequence.

    For sequences longer than in its pretraining, a longrope model uses other rotary angles for all tokens. A long
    sequence would need other tables than a shorter one of the same pack.
    """
    context: int = getattr(config, "max_position_embeddings", 2**31)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return min(context, int(rope["original_max_position_embeddings"]))
    return context
