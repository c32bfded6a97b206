"""Seconds of the two costly loops beside the plainest computation of the same numbers: `python -m bench.engine`.

Needs a finished default cell (`make run`), an idle machine and some minutes. The plain side is measured on a stated
part of the work and extrapolated; the agreement on that part is printed: only equal numbers are a fair comparison.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from captum.attr import IntegratedGradients
from safetensors.torch import load_file
from torch import Tensor

from tasks.attribution.integrated_gradients import LayerPath, layer_scores
from tasks.benchmarks.encoding import encode
from tasks.benchmarks.scoring import read_options, unit
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import open_cell
from tasks.pipeline.files import read_jsonl
from tasks.pipeline.settings import Attribution
from tasks.pruning.masks import count, scales, top_neurons


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def captum(model: Any, layer: int, prompt: Sequence[int], steps: int) -> Tensor:
    """Scores of one layer on one prompt by Captum: a factor on each gate, the whole model for each batch of nodes."""
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


@torch.no_grad()
def naive_grid(model: Any, rows: Sequence[Any], layer: int, neurons: np.ndarray) -> np.ndarray:
    """Log-probabilities of one-token options, [rows, options]: weights zeroed, one padded batch through the model."""
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


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 10, 17, 24], help="layers that are measured")
    parser.add_argument("--prompts", type=int, default=2, help="prompts that Captum scores, of the adaptation set")
    arguments = parser.parse_args()
    cell = open_cell()
    if not cell.scores.exists():
        sys.exit("error: the default cell is not there; run `make run` first")
    loaded = load(cell.model_dir)
    model, stack = loaded.model, DecoderStack(loaded.model)
    samples = read_jsonl(cell.samples)
    rows = [encode(loaded.tokenizer, row["prompt"], row["options"], stack.context) for row in samples]
    if any(len(option) > 1 for row in rows for option in row.options):
        sys.exit("error: the plain grid reads options of one token only")
    print(f"{cell.name}, {len(rows)} prompts, layers {arguments.layers}, {torch.get_num_threads()} threads\n")
    bench_scores(model, stack, [row.prompt for row in rows], arguments.layers, arguments.prompts)
    bench_grid(model, stack, rows, load_file(cell.scores)["scores"].numpy(), cell.settings.search.fractions, arguments)
    print(f"peak memory of the whole run: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def bench_scores(model: Any, stack: DecoderStack, prompts: list[list[int]], layers: list[int], few: int) -> None:
    """Captum on a few prompts, ours on the same (for the agreement) and on all."""
    theirs, seconds = timed(
        lambda: {at: torch.stack([captum(model, at, p, 20) for p in prompts[:few]]).mean(0) for at in layers}
    )
    seconds *= len(prompts) / few
    print(f"scores, right Riemann 20: Captum, whole model   {seconds:8.1f} s  ({few} prompts, extrapolated)")
    part = LayerPath(stack, prompts[:few])
    one = part.at_one()
    riemann = Attribution(quadrature="riemann_right", steps=20)
    gap = max(float((layer_scores(part, at, one, riemann).scores - theirs[at]).abs().max()) for at in layers)
    scale = max(float(theirs[at].abs().max()) for at in layers)
    for name, settings in (("right Riemann 20", riemann), ("adaptive, 1 %   ", Attribution())):

        def ours(settings: Attribution = settings) -> list[Any]:
            path = LayerPath(stack, prompts)
            one = path.at_one()
            return [layer_scores(path, at, one, settings) for at in layers]

        results, mine = timed(ours)
        error = max(result.error for result in results)
        print(
            f"scores, {name}: ours                  {mine:8.1f} s  {seconds / mine:5.1f} x, largest error {error:.2g}"
        )
    print(f"largest difference to Captum, same rule: {gap:.1e} on a scale of {scale:.2g}\n")


def bench_grid(
    model: Any,
    stack: DecoderStack,
    rows: list[Any],
    scores: np.ndarray,
    fractions: list[float],
    arguments: argparse.Namespace,
) -> None:
    """Two fractions of each layer the plain way, all of them ours."""
    few = [fractions[0], fractions[-1]]
    plain, seconds = timed(
        lambda: {
            (at, p): naive_grid(model, rows, at, top_neurons(scores[at], count(p, stack.d_ff)))
            for at in arguments.layers
            for p in few
        }
    )
    seconds *= len(fractions) / len(few)

    def ours() -> dict[int, list[np.ndarray]]:
        [packed] = stack.pack([unit(row) for row in rows])
        residuals = stack.clean(packed)
        return {
            at: read_options(
                packed,
                rows,
                stack.predict(
                    residuals,
                    at,
                    scales([top_neurons(scores[at], count(p, stack.d_ff)) for p in fractions], stack.d_ff),
                ),
            ).logprobs
            for at in arguments.layers
        }

    found, mine = timed(ours)
    pairs = len(arguments.layers) * len(fractions)
    print(f"grid, {pairs} pairs: whole model per pair          {seconds:8.1f} s  ({len(plain)} pairs, extrapolated)")
    print(f"grid, {pairs} pairs: ours                          {mine:8.1f} s  {seconds / mine:5.1f} x")
    gap = max(
        float(np.abs(np.stack([row[fractions.index(p)] for row in found[at]]) - values).max())
        for (at, p), values in plain.items()
    )
    print(f"largest difference of a log-probability: {gap:.1e}\n")


if __name__ == "__main__":
    main()
