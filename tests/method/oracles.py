"""Independent computations of the scores: the plain model, hooks on its own modules, autograd on its weights."""

from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss
from torch.func import functional_call
from transformers.activations import ACT2FN

from tasks.method.quadrature import Integral, integrate, riemann_rule
from tests.tiny import EACH, MIXTURES, UNGATED, gated, linear, row_tensors, rows

PROMPTS = [[5, 6, 7, 8, 1], [5, 6, 7, 9, 20, 30, 2, 2], [5, 44]]
FIRSTS = [[3, 9, 3], [200, 11], [4, 4, 17, 90]]  # of each prompt's options
PROJECTIONS = ["gate_proj", "up_proj", "down_proj"]
FAMILIES = ["llama", "qwen2", "mistral", "gemma3", "opt", "gpt2"]  # Gemma 2 has a softmax in float32
# Families and their projections.
CASES = [(family, p) for family in FAMILIES for p in PROJECTIONS if p != "up_proj" or family not in UNGATED]


def logits(model, prompt):
    return model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]


def fixed_target(model, prompt):
    """The logit of the token that the unedited model ranks first, as a function of logits."""
    token = int(logits(model, prompt).argmax())
    return lambda logits: logits[token]


def fixed_targets(model):
    return [fixed_target(model, prompt) for prompt in PROMPTS]


def mean_target(model, targets):
    return float(sum(f(logits(model, p)) for p, f in zip(PROMPTS, targets, strict=True))) / len(PROMPTS)


def weight(model, layer, projection):
    return rows(model, layer, projection)


@contextmanager
def zeroed(model, layers, projection, rows=slice(None)):
    """The model with these rows of a projection of these layers set to zero, and their biases.

    `rows` may also be a pair that says which part of the matrix; a bias then stays.
    """
    tensors = [tensor for layer in layers for tensor in row_tensors(model, layer, projection)]
    tensors = [tensor for tensor in tensors if tensor.dim() == 2 or not isinstance(rows, tuple)]
    kept = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor[rows] = 0
    try:
        yield
    finally:
        for tensor, values in zip(tensors, kept, strict=True):
            tensor.copy_(values)


def weight_scores(model, layers, projection, nodes):
    """Eq. 4 as it stands, [layers, width]: gradients of the weights, scaled together, by Gauss-Legendre quadrature.

    The bias of a row is a part of it.
    """
    own = {id(p): name for name, p in model.named_parameters()}
    of_layer = [[own[id(p)] for p in linear(model, layer, projection).parameters()] for layer in layers]
    names = [name for part in of_layer for name in part]
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
    inputs = 0 if model.config.model_type == "gpt2" else -1  # the dimension of a matrix along which a row goes
    by_name = {
        name: (t * w).sum(inputs) if w.dim() == 2 else t * w for name, t, w in zip(names, totals, weights, strict=True)
    }
    return torch.stack([sum(by_name[name] for name in part) for part in of_layer]) / len(PROMPTS)


def row_gradients(model, layers, projection, alpha, prompt):
    """The output of the rows times alpha, and dF/d(output), [layers][positions, width] each."""
    found = []

    def replace(module, inputs, output):
        found.append(alpha * output)
        if not output.requires_grad:  # the output of a later layer depends on that of an earlier one
            found[-1].requires_grad_(True)
        return found[-1]

    target = fixed_target(model, prompt)
    with ExitStack() as hooks:
        for layer in layers:
            module = linear(model, layer, projection)
            hooks.callback(module.register_forward_hook(replace).remove)
        value = target(logits(model, prompt))
    gradients = torch.autograd.grad(value, found)
    return [
        (rows.detach().flatten(0, -2), gradient.flatten(0, -2)) for rows, gradient in zip(found, gradients, strict=True)
    ]


def inputs_of(model, layer, prompt):
    """The input of the MLP of a layer, [positions, d_model]."""
    found = []
    first = linear(model, layer, "gate_proj")
    handle = first.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].flatten(0, -2)))
    logits(model, prompt)
    handle.remove()
    return found[0]


def by_weights(model, layer, projection, x):
    """The output of the rows of a projection for x [positions, in], by a product with the weights themselves."""
    matrix, *bias = row_tensors(model, layer, projection)
    return x @ matrix.T + (bias[0] if bias else 0)


def parts_of_hidden(model, layer, prompt):
    """act, g and u of the MLP of a layer, h being act(g) * u; u is 1 without a gate."""
    x = inputs_of(model, layer, prompt)
    kind = model.config.model_type
    names = {"opt": "activation_function", "gpt2": "activation_function", "gemma3_text": "hidden_activation"}
    act = ACT2FN[getattr(model.config, names.get(kind, "hidden_act"))]
    up = by_weights(model, layer, "up_proj", x) if gated(model) else torch.tensor(1.0, dtype=x.dtype)
    return act, by_weights(model, layer, "gate_proj", x), up


def values_of(model, layer, prompt):
    """The activations of the neurons of a layer, [positions, width]: act(g) * u, times r with experts."""
    if model.config.model_type not in MIXTURES:
        act, gate, up = parts_of_hidden(model, layer, prompt)
        return act(gate) * up
    inside, given = model.model.layers[layer].mlp.experts, []
    handle = inside.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    logits(model, prompt)
    handle.remove()
    x, index, weights = given[0]
    values = torch.zeros(len(prompt), 4 * EACH, dtype=x.dtype)
    for token in range(len(prompt)):
        for expert, weight in zip(index[token].tolist(), weights[token], strict=True):
            gate, up = inside.gate_up_proj[expert, :EACH] @ x[token], inside.gate_up_proj[expert, EACH:] @ x[token]
            values[token, expert * EACH : (expert + 1) * EACH] = weight * torch.nn.functional.silu(gate) * up
    return values


def riemann_right(evaluate, one, steps):
    """`riemann_rule` along one path."""
    return integrate(riemann_rule(one, steps), evaluate)


def gauss_legendre(evaluate, one, nodes):
    """One Gauss-Legendre rule over the whole path; with many nodes, an independent check of the other rules."""
    x, w = leggauss(nodes)
    values, gradients = evaluate([0.0, *((x + 1) / 2)])
    scores = torch.from_numpy(np.asarray(w) / 2) @ gradients[1:]
    difference = float(one[0] - values[0])
    gap = float(scores.sum()) - difference
    return Integral(scores, difference, gap, abs(gap), nodes)
