"""The decoder stack of a causal language model as a list of gated MLPs that can be edited and re-run from any layer.

A change to the MLP of layer l leaves the layers below it as they were, so a run starts from the residual that enters
that MLP. The layers themselves are the model's own modules, called with the arguments the model calls them with; the
view works for every family whose decoder layers have `gate_proj`, `up_proj` and `down_proj`, and checks itself against
the plain model before it is used.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.packing import Pack, Unit, pack
from tasks.pipeline.errors import InputError

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class _Stop(Exception):
    pass


class _KeysAndValues:
    """Stands in for a cache: hands the last layer's keys and values of all tokens to a run of only a few queries."""

    def __init__(self) -> None:
        self.stored: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.stored is None:
            self.stored = key, value
            raise _Stop
        return self.stored


@dataclass(frozen=True)
class Residuals:
    """A pack's unedited pass.

    Attributes:
        entering: for each layer, the residual that enters its MLP, [T, d_model]; of the last layer [R, d_model], since
            no later one looks at the other tokens.
        logits: [R, vocabulary].
    """

    pack: Pack
    entering: list[Tensor]
    logits: Tensor


class DecoderStack:
    """The decoder layers of `model`, with a view of each layer's gated MLP.

    Raises:
        InputError: a layer has no gated MLP, or the view does not reproduce the model's logits.
    """

    def __init__(self, model: Any):
        self.model = model
        self._body = getattr(model, model.base_model_prefix, model)
        self.layers: Sequence[Any] = list(getattr(self._body, "layers", None) or [])
        kind = type(model).__name__
        if not self.layers:
            raise InputError("model", _no_gated_mlp(kind))
        for layer in self.layers:
            mlp: Any = getattr(layer, "mlp", None)
            if not all(isinstance(getattr(mlp, name, None), nn.Linear) for name in PROJECTIONS):
                raise InputError("model", _no_gated_mlp(kind))
            if getattr(mlp, "act_fn", None) is None or float(mlp.act_fn(torch.zeros(1))) != 0:
                raise InputError("model", f"{kind}: act_fn(0) must be 0, or a zeroed row of gate_proj is not silent")
            if mlp.gate_proj.bias is not None:
                raise InputError("model", f"{kind}: gate_proj has a bias, which a zeroed row of weights leaves active")
        self.d_ff: int = self.layers[0].mlp.gate_proj.out_features
        self.context: int = getattr(model.config, "max_position_embeddings", 2**31)
        self._calls: list[dict[str, Any]] = []
        self._check()

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    # -- one layer, taken apart ---------------------------------------------------------------------------------------

    def _norms(self, layer: Any) -> tuple[Any, Any]:
        """(norm before the MLP or None, norm after it or None). Every family that has them names them so."""
        after = getattr(layer, "post_feedforward_layernorm", None)
        if after is None:
            return layer.post_attention_layernorm, None
        return getattr(layer, "pre_feedforward_layernorm", None), after

    def gate_and_up(self, index: int, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations g = W_gate x and u = W_up x of layer `index`, each [..., d_ff]."""
        layer = self.layers[index]
        before, _ = self._norms(layer)
        x = residual if before is None else before(residual)
        return layer.mlp.gate_proj(x), layer.mlp.up_proj(x)

    def finish_mlp(self, index: int, residual: Tensor, gate: Tensor, up: Tensor) -> Tensor:
        """The output of layer `index`, given the (edited) pre-activations."""
        layer = self.layers[index]
        _, after = self._norms(layer)
        y: Tensor = layer.mlp.down_proj(layer.mlp.act_fn(gate) * up)
        return residual + (y if after is None else after(y))

    # -- runs ---------------------------------------------------------------------------------------------------------

    def pack(self, units: Sequence[Unit], *, max_tokens: int = 512) -> list[Pack]:
        """`packing.pack` on this model's device; learns how the model calls its layers at this length."""
        self._learn_calls(max(len(sequence) for unit in units for sequence, _ in unit))
        return pack(units, max_tokens=max_tokens, device=self.device)

    @torch.no_grad()
    def clean(self, packed: Pack) -> Residuals:
        """The unedited pass over a pack. Needs no copy of any weight."""
        entering: list[Tensor] = []
        with self._capture_mlp_inputs(entering):
            logits = self._head(self._run_layers(0, self._embed(packed), packed))[0]
        return Residuals(packed, entering, logits)

    def edited(self, residuals: Residuals, index: int, scale: Tensor) -> Tensor:
        """Logits at the pack's reads, with the gate pre-activations of layer `index` multiplied by `scale`.

        Multiplying g_j by 0 is zeroing row j of gate_proj; multiplying by alpha is the weight path of integrated
        gradients (2507.09185 Eq. 4), since g is linear in the row. Differentiable in `scale`.

        Args:
            scale: [C, d_ff], one row per edit.

        Returns:
            [C, R, vocabulary].
        """
        residual = residuals.entering[index]
        with torch.no_grad():
            gate, up = self.gate_and_up(index, residual)
        hidden = self.finish_mlp(index, residual, gate * scale.unsqueeze(1), up)
        if index < len(self) - 1:
            hidden = self._run_layers(index + 1, hidden, residuals.pack)
        return self._head(hidden)

    def scaled_everywhere(self, packed: Pack, scale: Tensor) -> Tensor:
        """Logits at the pack's reads, [R, vocabulary], with the gate pre-activations of every layer l times scale[l].

        Differentiable in `scale`, [layers, d_ff].
        """
        handles = [
            layer.mlp.gate_proj.register_forward_hook(lambda _, __, gate, row=row: gate * row)
            for layer, row in zip(self.layers, scale, strict=True)
        ]
        try:
            return self._head(self._run_layers(0, self._embed(packed), packed))[0]
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def predict(self, residuals: Residuals, index: int, scale: Tensor) -> Tensor:
        """`edited` without gradients. `scale` may lie on another device or have another float type."""
        return self.edited(residuals, index, scale.to(self.device, self.model.dtype))

    def _run_layers(self, start: int, hidden: Tensor, packed: Pack) -> Tensor:
        """Layers start.. on [C, T, d_model]; the last one computes only the reads: [C, R, d_model]."""
        for index in range(start, len(self) - 1):
            hidden = _first(self.layers[index](hidden, **self._arguments(index, packed)))
        return self._run_last(hidden, packed, self._arguments(len(self) - 1, packed))

    def _run_last(self, hidden: Tensor, packed: Pack, arguments: dict[str, Any]) -> Tensor:
        """The last layer: keys and values of all tokens, everything else for the reads alone."""
        layer, cache, reads = self.layers[-1], _KeysAndValues(), packed.reads
        try:
            layer(hidden, **arguments | {"past_key_values": cache})
        except _Stop:
            pass
        else:
            raise RuntimeError(f"{type(layer).__name__} does not update past_key_values")
        few = {
            "past_key_values": cache,
            "attention_mask": arguments["attention_mask"][:, :, reads],
            "position_ids": arguments["position_ids"][:, reads],
        }
        if (rotary := arguments.get("position_embeddings")) is not None:
            few["position_embeddings"] = tuple(part[:, reads] for part in rotary)
        return _first(layer(hidden[:, reads], **arguments | few))

    def _head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.model.get_output_embeddings()(self._body.norm(hidden))
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    # -- how the model calls its layers -------------------------------------------------------------------------------

    @torch.no_grad()
    def _learn_calls(self, length: int) -> None:
        """Records the keyword arguments (masks, rotary tables, ..) that each layer gets for a sequence of `length`."""
        if self._calls and self._calls[0]["position_ids"].shape[-1] >= length:
            return
        calls: list[dict[str, Any]] = []
        handles = [
            layer.register_forward_pre_hook(lambda _, __, kwargs: calls.append(dict(kwargs)), with_kwargs=True)
            for layer in self.layers
        ]
        try:
            self._body(input_ids=torch.zeros((1, length), dtype=torch.long, device=self.device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        for call in calls:
            if call.get("position_ids") is None:
                call["position_ids"] = torch.arange(length, device=self.device).unsqueeze(0)
        self._calls = calls

    def _arguments(self, index: int, packed: Pack) -> dict[str, Any]:
        """The keyword arguments of one layer for a pack: the recorded ones, looked up at each token's depth."""
        call, at = self._calls[index], packed.positions
        allowed = packed.ancestors
        mask = call.get("attention_mask")
        if mask is not None:  # sliding windows: the recorded mask says which distances a layer sees
            mask = mask[0, 0][at[:, None], at[None, :]]
            allowed = allowed & (mask if mask.dtype == torch.bool else mask >= 0)
        if self.model.config._attn_implementation == "eager":  # adds its mask, does not select by it
            dtype = self.model.dtype
            allowed = torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
        arguments = call | {"attention_mask": allowed[None, None], "position_ids": call["position_ids"][:, at]}
        if (rotary := call.get("position_embeddings")) is not None:
            arguments["position_embeddings"] = tuple(part[:, at] for part in rotary)
        return arguments

    @torch.no_grad()
    def _embed(self, packed: Pack) -> Tensor:
        """What enters layer 0, [1, T, d_model]: the model's own embedding, with whatever it does to it."""
        entering: list[Tensor] = []

        def stop(_: Any, inputs: tuple[Tensor, ...]) -> None:
            entering.append(inputs[0])
            raise _Stop

        handle = self.layers[0].register_forward_pre_hook(stop)
        try:
            self._body(input_ids=packed.tokens[None], use_cache=False)
        except _Stop:
            pass
        finally:
            handle.remove()
        return entering[0]

    @contextmanager
    def _capture_mlp_inputs(self, entering: list[Tensor]) -> Iterator[None]:
        def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
            entering.append(inputs[0][0])

        handles = [(self._norms(layer)[0] or layer.mlp).register_forward_pre_hook(keep) for layer in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _check(self) -> None:
        """Compares a packed run, whole and from the middle, with the plain model on two short sequences."""
        vocabulary = self.model.config.get_text_config().vocab_size
        shared = [(7 * i + 3) % vocabulary for i in range(4)]
        sequences = [[*shared, 5], [*shared, 1, 2]]
        residuals = self.clean(self.pack([[(sequence, [len(sequence) - 1])] for sequence in sequences])[0])
        plain = torch.stack(
            [self.model(torch.tensor([s], device=self.device), use_cache=False).logits[0, -1] for s in sequences]
        )
        unedited = torch.ones(1, self.d_ff, device=self.device, dtype=self.model.dtype)
        for logits in (residuals.logits, *(self.edited(residuals, i, unedited)[0] for i in (0, len(self) - 1))):
            gap = float((logits - plain).abs().max() / plain.abs().max().clamp(min=1))
            if not gap < 1e-3:
                raise InputError(
                    "model",
                    f"{type(self.model).__name__}: re-running its layers does not give its logits (relative "
                    f"difference {gap:.1e}); this family is not supported",
                )


def _first(output: Any) -> Tensor:
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _no_gated_mlp(kind: str) -> str:
    return f"{kind} has no gated MLP: looked for mlp.gate_proj, up_proj and down_proj in each decoder layer"
