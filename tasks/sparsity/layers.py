"""The walk: decoder layer after decoder layer, each pruned on what the pruned layers before it give.

The calibration sequences pass the unpruned layer once while the statistics of its linear layers are gathered; then all
of them are pruned; then the sequences pass it again, and what comes out enters the next layer. Embeddings, norms and
the output embedding stay as they are, tied or not.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.calls import Arguments, handing_on
from tasks.models.products import Products
from tasks.runtime.errors import InputError
from tasks.sparsity.input_statistics import InputStatistics


class Layers:
    """The decoder layers of a causal language model, and the linear layers inside each.

    Attributes:
        linears: for each decoder layer, its linear layers by their name in the model.

    Raises:
        InputError: the model has no decoder layers, or some with matrices that are not those of linear layers.
    """

    def __init__(self, model: Any):
        self._body = model.get_decoder()
        self.layers: list[Any] = list(getattr(self._body, "layers", None) or [])
        kind = type(model).__name__
        if not self.layers:
            raise InputError("model", f"{kind} has no decoder layers: looked in model.layers")
        names = {id(module): name for name, module in model.named_modules()}
        self.linears: list[dict[str, nn.Linear]] = []
        for layer in self.layers:
            found = {names[id(m)]: m for m in layer.modules() if isinstance(m, nn.Linear)}
            known = {id(linear.weight) for linear in found.values()}
            for name, parameter in layer.named_parameters():
                if parameter.dim() > 1 and id(parameter) not in known:
                    raise InputError(
                        "model", f"{kind}: {name} is a weight of no linear layer; such layers are not supported"
                    )
            self.linears.append(found)

    def all_linears(self) -> dict[str, nn.Linear]:
        """Those of all decoder layers, by name, from the first layer to the last."""
        return {name: linear for found in self.linears for name, linear in found.items()}

    @torch.no_grad()
    def walk(self, sequences: Sequence[Sequence[int]], *, products: bool) -> Iterator[tuple[int, InputStatistics]]:
        """Yields each layer's number and statistics; the caller prunes the layer before it asks for the next one.

        Holds the residuals of all calibration tokens (tokens x d_model), and one layer's statistics: per linear layer
        d_in numbers, or d_in^2 with `products`. Sequences pass one by one, so that none is padded.

        Raises:
            InputError: no sequences, an empty one, or one that is longer than the model's context; or a linear layer
                that takes no part in a forward pass.
        """
        self._check(sequences)
        hidden, arguments = self._entering(sequences)
        for index, layer in enumerate(self.layers):
            statistics = InputStatistics(self.linears[index], products=products)
            with statistics.gathering(), Products():
                for x in hidden:
                    layer(x, **arguments[x.shape[1]][index])
            if unused := [name for name, count in statistics.sequences.items() if not count]:
                raise InputError("model", f"{unused[0]} takes no part in a forward pass")
            yield index, statistics
            if index < len(self.layers) - 1:
                with Products():
                    for i, x in enumerate(hidden):
                        y = layer(x, **arguments[x.shape[1]][index])
                        hidden[i] = y[0] if isinstance(y, tuple) else y

    def _check(self, sequences: Sequence[Sequence[int]]) -> None:
        if not sequences or not all(map(len, sequences)):
            raise InputError("calibration", "needs at least one sequence, and no empty one")
        context = getattr(self._body.config, "max_position_embeddings", None)
        longest = max(map(len, sequences))
        if context is not None and longest > context:
            raise InputError("calibration", f"has a sequence of {longest} tokens; the model's context has {context}")

    def _entering(self, sequences: Sequence[Sequence[int]]) -> tuple[list[Tensor], dict[int, list[Arguments]]]:
        """What enters layer 0 of each sequence, [1, T, d_model], and the arguments of each layer by length T.

        The model itself makes both, with layers that hand on what they are given.
        """
        device = next(self._body.parameters()).device
        hidden: list[Tensor] = []
        arguments: dict[int, list[Arguments]] = {}
        with handing_on(self.layers) as calls:
            for sequence in sequences:
                calls.clear()
                self._body(input_ids=torch.tensor([list(sequence)], device=device), use_cache=False)
                hidden.append(calls[0][0])
                arguments.setdefault(len(sequence), [call for _, call in calls])
        return hidden, arguments
