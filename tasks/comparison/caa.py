"""Contrastive activation addition (arXiv 2312.06681): a mean difference is added to the residual of one layer.

v_l is the mean over the examples of the output of layer l at the last token of the right option minus that of the wrong
ones; it is not normalised. The residual r of layer l becomes r + m v_l at the last token of the prompt and at every
token of the answer. The published pairs end in a letter, (A) or (B), whose token is used. Here the last token of the
option is used, and several wrong options are averaged. As published, one layer at a time is steered. Here the layer and
the multiplier m are chosen on the selection rows.
"""

from functools import partial

import torch

from tasks.comparison.steering import (
    Steering,
    check_contrasts,
    layer_outputs,
    mean_difference,
    option_activations,
    steered,
    tokens_read,
)
from tasks.comparison.system import FitData, Fitted, most_accurate

MULTIPLIERS = (0.5, 1.0, 2.0, 4.0)


def caa(fit_data: FitData) -> Fitted:
    """Contrastive activation addition, with the most accurate layer and multiplier.

    Raises:
        InputError: an example has a single option.
    """
    check_contrasts(fit_data.examples)
    stack, rows = fit_data.stack, fit_data.examples
    site = layer_outputs(stack)
    vectors = mean_difference(option_activations(stack, site, rows.encoded), rows.gold)

    def candidate(layer: int, multiplier: float) -> Fitted:
        steering = Steering(site, {layer: partial(torch.add, multiplier * vectors[layer])}, tokens_read)
        return Fitted(
            partial(steered, stack, steering),
            examples=len(rows.encoded),
            labels=len(rows.encoded),
            settings={"layer": layer, "multiplier": multiplier},
        )

    candidates = (candidate(layer, multiplier) for layer in range(len(stack)) for multiplier in MULTIPLIERS)
    return most_accurate(candidates, fit_data.selection_rows)
