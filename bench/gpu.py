"""The costly loops at the shape of Llama-3.1-8B with random weights, on a GPU: `python -m bench.gpu [--tiny]`.

Weights are made on the device, in bfloat16, which holds them exactly. Needs about 20 GB of GPU memory and less than
eight minutes; nothing is downloaded. `--tiny` is a model of six small layers, for a machine without a GPU: it shows
that everything runs, its figures mean nothing. Published (2507.09185): 4.68 s a sample for scores on
Llama-3.1-8B, 0.06 s for the gradient of fine-tuning.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import LlamaConfig, LlamaForCausalLM

from bench.scale import SHAPES, Shape
from tasks.benchmarks.encoding import Encoded
from tasks.benchmarks.scoring import answers_without
from tasks.method.algorithm import compute_here
from tasks.method.grid import Grid, Part
from tasks.method.integrated_gradients import LayerPath, layer_scores
from tasks.method.options import Attribution
from tasks.models.memory import room
from tasks.models.products import Precision, in_pieces
from tasks.models.stack import DecoderStack
from tasks.models.stored import keep_as_stored

FIXED = Attribution(quadrature="riemann_right", steps=8)  # 8 nodes a layer, as docs/scale.md assumes
TINY = Shape(layers=6, d_model=64, d_ff=128, key_width=32, vocabulary=512)
WIDTH_OF_HEAD = {True: 16, False: 128}
FRACTIONS = tuple(k / 20 for k in range(1, 9))


@dataclass
class Bench:
    """The state that the measurements share, and their figures."""

    shape: Shape
    tiny: bool
    out: Path | None
    figures: dict[str, Any] = field(default_factory=dict)
    begin: float = field(default_factory=time.perf_counter)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def say(self, key: str, value: Any) -> None:
        """Prints a figure and writes all of them to the file, so that an interrupted run keeps what it measured."""
        self.figures[key] = value
        print(f"{time.perf_counter() - self.begin:6.1f} s  {key}: {value}", flush=True)
        if self.out:
            self.out.write_text(json.dumps(self.figures, indent=1))

    def timed(self, work: Callable[[], Any], repeat: int = 1) -> tuple[Any, float, float]:
        """What `work` returns, the least seconds it took, and the GB of device memory that it took at most."""
        best, result = float("inf"), None
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(repeat):
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            result = work()
            if cuda:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        return result, best, torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0


def ceilings(bench: Bench) -> float:
    """The product rates of the device, in TFLOP/s; returns that by two pieces at the largest size."""
    shape, rate = bench.shape, 0.0
    for rows in (128, 512, 2048) if not bench.tiny else (32,):
        x = torch.randn(rows, shape.d_model, device=bench.device)
        w = torch.randn(shape.d_ff, shape.d_model, device=bench.device)
        b, v = x.bfloat16(), w.bfloat16()
        ways: dict[str, Callable[[], Any]] = {
            "float32": partial(torch.mm, x, w.T),
            "bfloat16": partial(torch.mm, b, v.T),
            "2 pieces": partial(in_pieces, x, v.T, 2),
            "3 pieces": partial(in_pieces, x, v.T, 3),
        }
        for name, way in ways.items():
            way()
            _, seconds, _ = bench.timed(partial(_ten_times, way), 3)
            speed = 20 * rows * shape.d_ff * shape.d_model / seconds / 1e12
            bench.say(f"product of {rows} rows, {name}, TFLOP/s", round(speed, 3))
            rate = speed if name == "2 pieces" else rate
    return rate


def _ten_times(way: Callable[[], Any]) -> None:
    for _ in range(10):
        way()


def make_stack(bench: Bench) -> DecoderStack:
    """A random model in bfloat16 on the device."""
    shape = bench.shape
    head = WIDTH_OF_HEAD[bench.tiny]
    config = LlamaConfig(
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.d_model // head,
        num_key_value_heads=shape.key_width // head,
        vocab_size=shape.vocabulary,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    with bench.device:
        model: Any = LlamaForCausalLM(config)
    model.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.weight.data = module.weight.data.bfloat16()
    keep_as_stored(model)
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    stack = DecoderStack(model)
    bench.say("model", stack.products)
    return stack


def scores(bench: Bench, stack: DecoderStack, prompts: list[list[int]], rate: float) -> None:
    """Seconds a sample for the scores of all layers, from five of them: the time is linear in the layers above."""
    layers = stack_layers(bench)
    path = LayerPath(stack, prompts)
    one, first, _ = bench.timed(path.at_one)
    results, seconds = {}, []
    for layer in layers:
        result, took, memory = bench.timed(partial(layer_scores, path, layer, one, FIXED))
        results[layer] = result
        seconds.append(took)
        bench.say(f"scores of layer {layer}, s; GB", [round(took, 3), round(memory, 2)])
    line = np.polyfit([bench.shape.layers - 1 - layer for layer in layers], seconds, 1)
    whole = first + sum(np.polyval(line, bench.shape.layers - 1 - layer) for layer in range(bench.shape.layers))
    tokens = sum(len(residuals.pack.tokens) for residuals, _ in path.passes)
    layer_passes = 2 * (FIXED.steps * bench.shape.layers * (bench.shape.layers - 1) / 2 + bench.shape.layers)
    flop = 2 * layer_passes * tokens * bench.shape.layer_parameters
    bench.say("scores of all layers, s a sample", round(float(whole) / len(prompts), 3))
    bench.say("scores, share of the rate of products in 2 pieces", round(float(flop / whole / 1e12 / rate), 3))
    bench.say("scores, largest gap", max(abs(result.gap) for result in results.values()))
    if bench.device.type != "cuda":
        return
    for other in ("3", "2"):
        os.environ["DSM_PIECES"] = other
        again = layer_scores(path, layers[2], path.at_one(), FIXED).scores
        exact = results[layers[2]].scores
        bench.say(f"scores by {other} pieces: rank correlation with 2", float(spearmanr(exact, again).statistic))


def stack_layers(bench: Bench) -> list[int]:
    count = bench.shape.layers
    return [0, count // 4, count // 2, 3 * count // 4, count - 2]


def searches(bench: Bench, stack: DecoderStack, rows: list[Encoded], test: list[Encoded]) -> None:
    """The grid on the prompts, the transfer check on 100 rows from five layers, and evaluation a row."""
    ranks = np.random.default_rng(0).random((bench.shape.layers, bench.shape.d_ff)).astype(np.float32)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for name, on, layers in (("search", rows, range(bench.shape.layers)), ("transfer", test, stack_layers(bench))):
        for precision in precisions:
            grid = Grid(stack, on, [0] * len(on), ranks)
            parts = [Part(pack, layer, FRACTIONS, precision) for pack in range(len(grid.sizes)) for layer in layers]
            _, took, memory = bench.timed(partial(compute_here(grid), parts))
            whole = took * bench.shape.layers / len(layers)
            bench.say(f"{name} on {len(on)} rows, {precision}, s; GB", [round(whole, 2), round(memory, 2)])
    sets = [np.array([], dtype=np.int64), *(np.arange(10) + i for i in range(6))]
    _, took, _ = bench.timed(lambda: answers_without(stack, test, bench.shape.layers // 2, sets))
    bench.say("evaluation, s a row", round(took / len(test), 4))


def fine_tuning(bench: Bench, model: Any, prompt: list[int]) -> None:
    """What the paper compares with: one prompt's gradient of all weights, in bfloat16."""
    plain: Any = LlamaForCausalLM(model.config)
    plain.to(bench.device, torch.bfloat16)
    tokens = torch.tensor([prompt], device=bench.device)

    def gradient() -> None:
        plain(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        plain.zero_grad(set_to_none=True)

    gradient()
    _, took, _ = bench.timed(gradient, 3)
    bench.say("gradient of all weights, one prompt, s", round(took, 4))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that everything runs")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args(arguments)
    bench = Bench(TINY if options.tiny else SHAPES["Llama-3.1-8B"], options.tiny, options.out)
    if bench.device.type == "cuda":
        bench.say("device", torch.cuda.get_device_name())
    rate = ceilings(bench)
    stack = make_stack(bench)
    bench.say("free for activations, GB", round(room(stack.model).bytes / 1e9, 1))
    rng = np.random.default_rng(0)

    def draw(tokens: int) -> list[int]:
        return [int(token) for token in rng.integers(5, bench.shape.vocabulary, tokens)]

    length, few, many = (10, 4, 6) if bench.tiny else (100, 10, 100)
    shared = draw(4 if bench.tiny else 20)
    prompts = [shared + draw(length) for _ in range(few)]
    scores(bench, stack, prompts, rate)
    rows = [Encoded(prompt, [draw(2), draw(1)]) for prompt in prompts]
    test = [Encoded(shared + draw(length), [draw(2), draw(1)]) for _ in range(many)]
    searches(bench, stack, rows, test)
    model = stack.model
    del stack
    fine_tuning(bench, model, prompts[0])
    bench.say("all of it, s", round(time.perf_counter() - bench.begin, 1))
    return bench.figures


if __name__ == "__main__":
    main()
