"""Semantics-adaptive dynamic intervention (SADI, arXiv 2410.12299): amplifies elements that mark right answers.

D is the mean over the examples of an element's value at the last token of the right option minus the mean of the wrong
ones. The mask M has the K elements with the largest signed D over all layers. At the last token of the prompt A'(q) =
A(q) + δ (A(q) ⊙ M): each chosen element is multiplied by 1 + δ, the strength.

Elements are as in the published code: a head's output, with D averaged over its dimensions (SADI-HEAD); an output of
the MLP's activation function, before it is multiplied by W_up x (SADI-NEURON); a dimension of the MLP's output, not of
the residual (SADI-HIDDEN).

The published code differs from the paper and from this module. It writes the values of an unsteered run into every
layer, with the chosen ones multiplied, so that the other elements are frozen and do not react to lower layers. It uses
one wrong option per row. It reports the best cell of the grid on the test rows; here the cell is chosen on the
selection rows. The grids below have all its strengths, but fewer counts, since each cell needs a run. Published counts:
heads 1, 2, 4, 6, 8, 10; neurons 3, 5, 10, 30, 50, 100, 200, 300, 400, 500; hidden 1, 2, 4, .., 20.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tasks.comparison.steering import (
    Site,
    Steering,
    by_head,
    check_contrasts,
    head_outputs,
    last_prompt_tokens,
    mean_difference,
    mlp_activations,
    mlp_outputs,
    option_activations,
    steered,
)
from tasks.comparison.system import FitData, Fitted, System, most_accurate
from tasks.models.stack import DecoderStack

HEAD_COUNTS = (1, 4, 10)
NEURON_COUNTS = (3, 10, 30, 100, 500)
HIDDEN_COUNTS = (1, 6, 20)
STRENGTHS = tuple(range(5, 81, 5))
NEURON_STRENGTHS = (10, 20, 30, 50, 70, 90)


@dataclass(frozen=True)
class Elements:
    """The elements that are chosen and multiplied.

    Attributes:
        grouped: reshapes a site's values [.., width] to [.., elements, dimensions].
    """

    site: Site
    grouped: Callable[[Tensor], Tensor]
    counts: Sequence[int]
    strengths: Sequence[int]


def top_elements(differences: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest signed differences, bool [layers, elements]; of equal differences, the first ones."""
    order = torch.argsort(differences.flatten(), descending=True, stable=True)
    mask = torch.zeros(differences.numel(), dtype=torch.bool, device=differences.device)
    mask[order[:count]] = True
    return mask.view_as(differences)


def _sadi(elements_of: Callable[[DecoderStack], Elements], fit_data: FitData) -> Fitted:
    """SADI on some elements, with the most accurate count and strength.

    Raises:
        InputError: an example has a single option, or the model has no o_proj (heads) or no separate activation modules
            (neurons).
    """
    check_contrasts(fit_data.examples)
    stack, rows = fit_data.stack, fit_data.examples
    elements = elements_of(stack)
    by_dimension = elements.grouped(mean_difference(option_activations(stack, elements.site, rows.encoded), rows.gold))
    differences = by_dimension.mean(-1)

    def candidate(count: int, strength: int) -> Fitted:
        mask = top_elements(differences, count)
        factors = torch.where(mask[..., None], strength, torch.ones_like(by_dimension)).flatten(1)
        layers = mask.any(1).nonzero()[:, 0].tolist()
        edits = {layer: partial(torch.mul, factors[layer]) for layer in layers}
        return Fitted(
            partial(steered, stack, Steering(elements.site, edits, last_prompt_tokens)),
            examples=len(rows.encoded),
            labels=len(rows.encoded),
            settings={"count": count, "strength": strength},
        )

    counts = sorted({min(count, differences.numel()) for count in elements.counts})
    candidates = (candidate(count, strength) for count in counts for strength in elements.strengths)
    return most_accurate(candidates, fit_data.selection_rows)


def _singly(values: Tensor) -> Tensor:
    return values[..., None]


def _heads(stack: DecoderStack) -> Elements:
    return Elements(head_outputs(stack), partial(by_head, stack), HEAD_COUNTS, STRENGTHS)


def _neurons(stack: DecoderStack) -> Elements:
    return Elements(mlp_activations(stack), _singly, NEURON_COUNTS, NEURON_STRENGTHS)


def _hidden(stack: DecoderStack) -> Elements:
    return Elements(mlp_outputs(stack), _singly, HIDDEN_COUNTS, STRENGTHS)


sadi_head: System = partial(_sadi, _heads)
sadi_neuron: System = partial(_sadi, _neurons)
sadi_hidden: System = partial(_sadi, _hidden)
