"""Inference-time intervention (arXiv 2306.03341): some attention heads are shifted toward the truth.

Each head's output at the last token of prompt and option is labelled true for the right option and false for a wrong
one. Heads are ranked by the accuracy of a logistic regression on held-out rows. The output of the K best heads becomes
x + α σ θ at the last token of the prompt and at every token of the answer: θ is the unit vector
from the mean of the false outputs to that of the true ones ("mass mean shift"), σ the standard deviation of the
outputs along it.

Published for models of 32 layers of 32 heads on TruthfulQA: K = 48, α = 15, validation on a fifth of the development
rows, σ from other texts. Here, with ten examples, the probes have two-fold cross-validation, θ and σ are from the same
examples, and K and α are chosen around the published values on the selection rows.
"""

import warnings
from functools import partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tasks.comparison.steering import (
    Steering,
    by_head,
    check_contrasts,
    head_outputs,
    option_activations,
    steered,
    tokens_read,
)
from tasks.comparison.system import FitData, Fitted, most_accurate
from tasks.runtime.errors import InputError

COUNTS = (16, 48)  # K; at most all heads of the model
STRENGTHS = (1.0, 5.0, 15.0)  # α
FOLDS = 2


def iti(fit_data: FitData) -> Fitted:
    """Inference-time intervention, with the most accurate K and α.

    Raises:
        InputError: there are fewer than two examples, or one has a single option, or the attention has no o_proj.
    """
    check_contrasts(fit_data.examples)
    if len(fit_data.examples.encoded) < FOLDS:
        raise InputError("examples", f"ITI needs at least {FOLDS}, since its probes are cross-validated")
    stack, rows = fit_data.stack, fit_data.examples
    site = head_outputs(stack)
    per_row = option_activations(stack, site, rows.encoded)
    outputs = by_head(stack, torch.cat(per_row))
    row = np.repeat(np.arange(len(per_row)), [len(values) for values in per_row])
    true = np.concatenate([np.arange(len(values)) == gold for values, gold in zip(per_row, rows.gold, strict=True)])

    accuracies = probe_accuracies(outputs.double().cpu().numpy(), true, row, fit_data.seed)
    ranked = np.argsort(-accuracies, axis=None, kind="stable")  # equal heads stay in their order
    shifts = mass_mean_shifts(outputs, torch.from_numpy(true).to(outputs.device))

    def candidate(count: int, strength: float) -> Fitted:
        chosen = torch.zeros(shifts.shape[:2], dtype=torch.bool, device=shifts.device)
        chosen.view(-1)[torch.from_numpy(ranked[:count].copy()).to(shifts.device)] = True
        added = strength * (shifts * chosen[..., None]).flatten(1)
        layers = chosen.any(1).nonzero()[:, 0].tolist()
        steering = Steering(site, {layer: partial(torch.add, added[layer]) for layer in layers}, tokens_read)
        return Fitted(
            partial(steered, stack, steering),
            examples=len(per_row),
            labels=len(per_row),
            settings={"heads": count, "strength": strength},
        )

    counts = sorted({min(count, ranked.size) for count in COUNTS})
    return most_accurate(
        (candidate(count, strength) for count in counts for strength in STRENGTHS), fit_data.selection_rows
    )


def probe_accuracies(outputs: np.ndarray, true: np.ndarray, row: np.ndarray, seed: int) -> np.ndarray:
    """The accuracy of each head's probe on held-out rows, [layers, heads].

    Args:
        outputs: [n, layers, heads, head_dim].
        true: bool [n].
        row: int [n], the row of each output. The folds consist of whole rows.
        seed: of the draw of the folds.
    """
    folds = np.array_split(np.random.default_rng(seed).permutation(np.unique(row)), FOLDS)
    held_out = [np.isin(row, fold) for fold in folds]
    _, layers, heads, _ = outputs.shape
    hits = np.zeros((layers, heads))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe that has not converged counts too
        for layer, head in np.ndindex(layers, heads):
            x = outputs[:, layer, head]
            for out in held_out:
                probe = LogisticRegression(max_iter=1000).fit(x[~out], true[~out])
                hits[layer, head] += (probe.predict(x[out]) == true[out]).sum()
    return hits / len(row)


def mass_mean_shifts(outputs: Tensor, true: Tensor) -> Tensor:
    """σ θ of each head, [layers, heads, head_dim].

    Args:
        outputs: [n, layers, heads, head_dim].
        true: bool [n].
    """
    theta = torch.nn.functional.normalize(outputs[true].mean(0) - outputs[~true].mean(0), dim=-1)
    sigma = (outputs * theta).sum(-1).std(0)
    return sigma[..., None] * theta
