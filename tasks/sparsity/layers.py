"""Layer-by-layer pruning: each decoder layer is pruned on the outputs of the pruned layers before it.

The calibration sequences pass through the unpruned layer once to gather the statistics of its linear layers. Then these
are pruned, and the sequences pass through the layer again to compute the inputs of the next layer. Embeddings, norms
and the output embedding do not change, tied or not.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tasks.models.calls import Arguments, handing_on
from tasks.models.products import Products
from tasks.models.structure import LINEAR, decoder_layers
from tasks.runtime.errors import InputError
from tasks.sparsity.input_statistics import InputStatistics


class Layers:
    """The decoder layers of a causal language model, and the linear layers inside each.

    Attributes:
        linears: for each decoder layer, its linear layers by their name in the model, `nn.Linear` or `Conv1D`.

    Raises:
        InputError: the model has no decoder layers, or a layer has a matrix outside of linear layers.
    """

    def __init__(self, model: Any):
        self._body = model.get_decoder()
        self.layers: list[Any] = decoder_layers(model)
        kind = type(model).__name__
        if not self.layers:
            raise InputError("model", f"{kind} has no decoder layers: its decoder has no list of modules")
        names = {id(module): name for name, module in model.named_modules()}
        self.linears: list[dict[str, nn.Module]] = []
        for layer in self.layers:
            linears: dict[str, nn.Module] = {names[id(m)]: m for m in layer.modules() if isinstance(m, LINEAR)}
            known = {id(linear.weight) for linear in linears.values()}
            for name, parameter in layer.named_parameters():
                if parameter.dim() > 1 and id(parameter) not in known:
                    raise InputError(
                        "model", f"{kind}: {name} is not the weight of a linear layer; such layers are not supported"
                    )
            self.linears.append(linears)

    def all_linears(self) -> dict[str, nn.Module]:
        """The linear layers of all decoder layers by name, in the order of the layers."""
        return {name: linear for linears in self.linears for name, linear in linears.items()}

    @torch.no_grad()
    def walk(self, sequences: Sequence[Sequence[int]], *, products: bool) -> Iterator[tuple[int, InputStatistics]]:
        """Yields each layer's index and statistics; the caller prunes the layer before the next iteration.

        Memory: the residuals of all calibration tokens (tokens x d_model) and the statistics of one decoder layer (d_in
        numbers per linear layer, or d_in^2 with `products`). Sequences run one by one, without padding.

        Raises:
            InputError: there are no sequences, one is empty or longer than the context, or a linear layer is not used
                in a forward pass.
        """
        self.check(sequences)
        hidden, arguments = self._first_inputs(sequences)
        for index, layer in enumerate(self.layers):
            statistics = InputStatistics(self.linears[index], products=products)
            with statistics.gathering(), Products():
                for x in hidden:
                    layer(x, **arguments[x.shape[1]][index])
            self.check_used(statistics)
            yield index, statistics
            if index < len(self.layers) - 1:
                with Products():
                    for i, x in enumerate(hidden):
                        y = layer(x, **arguments[x.shape[1]][index])
                        hidden[i] = y[0] if isinstance(y, tuple) else y

    def check(self, sequences: Sequence[Sequence[int]]) -> None:
        """Raises `InputError` if there are no sequences, or one is empty or longer than the context."""
        if not sequences or not all(map(len, sequences)):
            raise InputError("calibration", "needs at least one sequence, and none may be empty")
        context = getattr(self._body.config, "max_position_embeddings", None)
        longest = max(map(len, sequences))
        if context is not None and longest > context:
            raise InputError("calibration", f"has a sequence of {longest} tokens; the model's context has {context}")

    @staticmethod
    def check_used(statistics: InputStatistics) -> None:
        """Raises `InputError` if a linear layer was not used in a forward pass."""
        if unused := [name for name, count in statistics.sequences.items() if not count]:
            raise InputError("model", f"{unused[0]} is not used in a forward pass")

    def _first_inputs(self, sequences: Sequence[Sequence[int]]) -> tuple[list[Tensor], dict[int, list[Arguments]]]:
        """The input of layer 0 for each sequence, [1, T, d_model], and the arguments of each layer by length T.

        The model computes both, with layers that return their input.
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
