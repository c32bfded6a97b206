"""The parts of a causal language model, recognised by their structure, since their names differ between families."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LINEAR = (nn.Linear, Conv1D)


def weight_of(linear: Any) -> Tensor:
    """The weight of a linear layer, [d_out, d_in]: a view that can be written to. GPT-2 stores [d_in, d_out]."""
    weight: Tensor = linear.weight
    return weight.T if isinstance(linear, Conv1D) else weight


def layer_list(body: Any) -> tuple[str, list[Any]]:
    """The decoder layers of a model without its output embedding: the name and the items of its longest list.

    ("", []) if it has no lists of modules.
    """
    lists = [(name, list(child)) for name, child in body.named_children() if isinstance(child, nn.ModuleList)]
    return max(lists, key=lambda entry: len(entry[1]), default=("", []))


def decoder_layers(model: Any) -> list[Any]:
    """The decoder layers of a causal language model; empty if it has none that are known."""
    return layer_list(model.get_decoder())[1]


def is_norm(module: nn.Module) -> bool:
    """Whether a module has parameters and all of them are vectors."""
    parameters = list(module.parameters())
    return bool(parameters) and all(parameter.dim() == 1 for parameter in parameters)


def last_norm(body: Any) -> nn.Module:
    """The norm between the last decoder layer and the output embedding; an identity if there is none."""
    return next((child for child in reversed(list(body.children())) if is_norm(child)), torch.nn.Identity())


def activations_of(module: nn.Module) -> list[Any]:
    """The children of a module that are functions without parameters."""
    return [
        child
        for child in module.children()
        if not isinstance(child, nn.Dropout | nn.Identity) and not [*child.children(), *child.parameters()]
    ]
