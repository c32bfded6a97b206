"""Plain implementations for the comparisons: other libraries, or the whole model for each number."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from tasks.benchmarks.encoding import Encoded


def captum_scores(model: Any, layer: int, prompt: Sequence[int], steps: int) -> Tensor:
    """Scores of one layer on one prompt by Captum: the gates are scaled; each batch of nodes runs the whole model."""
    gate = model.model.layers[layer].mlp.gate_proj
    ids = torch.tensor([prompt])
    with torch.no_grad():
        token = int(model(ids, use_cache=False).logits[0, -1].argmax())

    def forward(scale: Tensor) -> Tensor:
        handle = gate.register_forward_hook(lambda _, __, output: output * scale[:, None])
        try:
            logits: Tensor = model(ids.expand(len(scale), -1), use_cache=False, logits_to_keep=1).logits
            return logits[:, -1, token]
        finally:
            handle.remove()

    one = torch.ones(1, gate.out_features)
    scores: Tensor = IntegratedGradients(forward).attribute(
        one, one * 0, n_steps=steps, method="riemann_right", internal_batch_size=steps
    )
    return scores[0]


def knowledge_neuron_scores(model: Any, layer: int, prompt: Sequence[int], steps: int) -> Tensor:
    """The same scores by the loop of Dai et al. (2022): all nodes of a layer are one batch through the whole model."""
    gate = model.model.layers[layer].mlp.gate_proj
    ids = torch.tensor([prompt]).expand(steps, -1)
    with torch.no_grad():
        token = int(model(ids[:1], use_cache=False).logits[0, -1].argmax())
    scale = (torch.arange(1, steps + 1) / steps)[:, None].expand(-1, gate.out_features).clone().requires_grad_(True)
    handle = gate.register_forward_hook(lambda _, __, output: output * scale[:, None])
    try:
        logits = model(ids, use_cache=False).logits[:, -1, token]
    finally:
        handle.remove()
    gradient: Tensor = torch.autograd.grad(logits.sum(), scale)[0]
    return gradient.mean(0)


@torch.no_grad()
def grid_logprobs(model: Any, rows: Sequence[Encoded], layer: int, neurons: np.ndarray) -> np.ndarray:
    """Log-probabilities of one-token options, [rows, options], with zeroed weights, in one padded batch."""
    weight = model.model.layers[layer].mlp.gate_proj.weight
    chosen = torch.as_tensor(neurons)
    kept = weight[chosen].clone()
    weight[chosen] = 0
    length = max(len(row.prompt) for row in rows)
    ids = torch.tensor([row.prompt + [0] * (length - len(row.prompt)) for row in rows])
    mask = torch.tensor([[1] * len(row.prompt) + [0] * (length - len(row.prompt)) for row in rows])
    logits = model(ids, attention_mask=mask, use_cache=False).logits
    weight[chosen] = kept
    values = [
        logits[i, len(row.prompt) - 1].log_softmax(-1)[[option[0] for option in row.options]]
        for i, row in enumerate(rows)
    ]
    return torch.stack(values).numpy()


def harness_logprobs(
    model: Any, tokenizer: Any, prompts: Sequence[str], options: Sequence[Sequence[str]], batch: int
) -> list[np.ndarray]:
    """Log-probability of each option by lm-evaluation-harness, [options] for each row."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, device="cpu", dtype="float32")
    pairs = [(prompt, option) for prompt, few in zip(prompts, options, strict=True) for option in few]
    requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i) for i, pair in enumerate(pairs)]
    values = iter(harness.loglikelihood(requests, disable_tqdm=True))
    return [np.array([next(values)[0] for _ in few]) for few in options]
