"""Independent ways to the scores: the plain model, hooks on its own modules, autograd on its weights."""

from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from torch.func import functional_call

from tasks.method.quadrature import Integral, integrate, riemann_rule

PROMPTS = [[5, 6, 7, 8, 1], [5, 6, 7, 9, 20, 30, 2, 2], [5, 44]]
FIRSTS = [[3, 9, 3], [200, 11], [4, 4, 17, 90]]  # of each prompt's options
PROJECTIONS = ["gate_proj", "up_proj", "down_proj"]
FAMILIES = ["llama", "qwen2", "mistral", "gemma3"]  # Gemma 2 has a softmax in float32


def logits(model, prompt):
    return model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]


def fixed_target(model, prompt):
    """The logit of the token that the model as it is ranks first, as a function of logits."""
    token = int(logits(model, prompt).argmax())
    return lambda logits: logits[token]


def fixed_targets(model):
    return [fixed_target(model, prompt) for prompt in PROMPTS]


def mean_target(model, targets):
    return float(sum(f(logits(model, p)) for p, f in zip(PROMPTS, targets, strict=True))) / len(PROMPTS)


def weight(model, layer, projection):
    return model.get_parameter(f"model.layers.{layer}.mlp.{projection}.weight")


@contextmanager
def zeroed(model, layers, projection, rows=slice(None)):
    """The model with these rows of a projection of these layers set to zero."""
    kept = [weight(model, layer, projection).clone() for layer in layers]
    for layer in layers:
        weight(model, layer, projection)[rows] = 0
    try:
        yield
    finally:
        for layer, values in zip(layers, kept, strict=True):
            weight(model, layer, projection).copy_(values)


def weight_scores(model, layers, projection, nodes):
    """Eq. 4 as it stands, [layers, width]: gradients of the weights, scaled together, by Gauss-Legendre quadrature."""
    names = [f"model.layers.{layer}.mlp.{projection}.weight" for layer in layers]
    weights = [model.get_parameter(name) for name in names]
    totals = [torch.zeros_like(w) for w in weights]
    for prompt in PROMPTS:
        target = fixed_target(model, prompt)
        for x, share in zip(*leggauss(nodes), strict=True):
            scaled = [((x + 1) / 2 * w).requires_grad_(True) for w in weights]
            kwargs = {"input_ids": torch.tensor([prompt]), "use_cache": False}
            output = functional_call(model, dict(zip(names, scaled, strict=True)), (), kwargs).logits[0, -1]
            for total, gradient in zip(totals, torch.autograd.grad(target(output), scaled), strict=True):
                total += share / 2 * gradient
    return torch.stack([(t * w).sum(1) for t, w in zip(totals, weights, strict=True)]) / len(PROMPTS)


def row_gradients(model, layers, projection, alpha, prompt):
    """What the rows give and F's gradient by it, [layers][positions, width] each, with the rows times alpha."""
    found = []

    def replace(module, inputs, output):
        found.append(alpha * output)
        if not output.requires_grad:  # that of a later layer depends on what an earlier one gives
            found[-1].requires_grad_(True)
        return found[-1]

    target = fixed_target(model, prompt)
    with ExitStack() as hooks:
        for layer in layers:
            module = getattr(model.model.layers[layer].mlp, projection)
            hooks.callback(module.register_forward_hook(replace).remove)
        value = target(logits(model, prompt))
    gradients = torch.autograd.grad(value, found)
    return [(rows.detach()[0], gradient[0]) for rows, gradient in zip(found, gradients, strict=True)]


def riemann_right(evaluate, one, steps):
    """`riemann_rule` along one path."""
    return integrate(riemann_rule(one, steps), evaluate)


def gauss_legendre(evaluate, one, nodes):
    """One Gauss-Legendre rule over the whole path: with many nodes an independent check of the other rules."""
    x, w = leggauss(nodes)
    values, gradients = evaluate([0.0, *((x + 1) / 2)])
    scores = torch.from_numpy(np.asarray(w) / 2) @ gradients[1:]
    difference = float(one[0] - values[0])
    gap = float(scores.sum()) - difference
    return Integral(scores, difference, gap, abs(gap), nodes)
