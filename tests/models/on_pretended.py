"""Every loop on pretended devices, beside the same on the CPU: `python -m tests.models.on_pretended MODE FAMILY ..`.

MODE: `one` (the second of two devices), `two` (the layers spread over both) or `host` (the matrices of the layers, in
bfloat16, stay on the CPU and are copied to a device). Prints what differs or mixes devices.
"""

import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from tests.method.oracles import riemann_right

from tests.models.pretended import NAME, Pretending  # isort: skip (before anything uses a device)

from accelerate import dispatch_model

from tasks.benchmarks.answering import Answering, Part
from tasks.benchmarks.encoding import Encoded
from tasks.benchmarks.table import Rows
from tasks.comparison.steering import (
    Steering,
    answers_steered,
    head_outputs,
    layer_outputs,
    mean_difference,
    mlp_outputs,
    option_activations,
    tokens_read,
)
from tasks.explanation.input_attribution import attribute_inputs, contrast
from tasks.explanation.neuron_roles import activations, direct_logits
from tasks.method.attribute import Attributor
from tasks.method.grid import Grid, parts_of
from tasks.method.options import Attribution
from tasks.method.pairs import every_pair
from tasks.method.silence import Neurons, silenced
from tasks.method.targets import TARGETS
from tasks.models.loading import Loaded
from tasks.models.stack import DecoderStack
from tasks.models.stored import keep_as_stored, layer_matrices
from tasks.semantics.activations import WordPositions, word_activations
from tasks.sparsity.weight_pruning import prune_weights, restored
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = [[1, 2, 3, 9, 9], [1, 2, 3, 4], [1, 2, 7, 7, 7, 7]]
FIRSTS = [[10, 12], [13, 10], [14, 15]]
ROWS = [Encoded(prompt, [[10, 11], [12]], 0) for prompt in PROMPTS]
TABLE = Rows(pd.DataFrame({"id": ["1", "2", "3"], "prompt": "x", "options": [["a", "b"]] * 3, "gold": [0, 1, 0]}), ROWS)
SCORES = np.random.default_rng(0).random((3, 48)).astype(np.float32)


def scores(model: Any, **settings: Any) -> Any:
    attributor = Attributor(DecoderStack(model), PROMPTS, Attribution(max_nodes=8, steps=2, **settings), FIRSTS)
    return [attributor.compute(part)["scores"] for part in attributor.parts]


def grid(model: Any, precision: Any) -> Any:
    found = Grid(DecoderStack(model), ROWS, [0, 1, 0], SCORES)
    parts = parts_of(every_pair(3, (0.1, 0.3)), len(found.sizes), precision)
    return [value["margin"] for group in found.together(parts) for value in found.compute_together(group)]


def evaluation(model: Any) -> Any:
    found = Answering(DecoderStack(model), tiny_tokenizer(), TABLE, [(1, [np.arange(0), np.arange(9)])], sample=1)
    return [found.compute(Part(pack))["logprobs"] for pack in range(len(found.sizes))]


def steering(model: Any) -> Any:
    stack = DecoderStack(model)
    found = []
    for site in (head_outputs(stack), mlp_outputs(stack), layer_outputs(stack)):
        shift = mean_difference(option_activations(stack, site, ROWS), [0, 1, 0])
        edits = {layer: lambda values, by=shift[layer]: values + by.to(values.device) for layer in (0, 2)}
        found.append(
            [row.tolist() for row in answers_steered(stack, Steering(site, edits, tokens_read), ROWS).logprobs]
        )
    return found


def explanation(model: Any) -> Any:
    stack = DecoderStack(model)
    with silenced(stack, Neurons(1, [1, 2, 3])):
        wanted = contrast(ROWS[0], 0, 1)
        inputs = attribute_inputs(model, wanted, lambda evaluate, one: riemann_right(evaluate, one, 3))
    return [inputs.scores.tolist(), activations(stack, 1, PROMPTS, [3, 4]).last, direct_logits(stack, 1, [3]).tolist()]


def semantics(model: Any) -> Any:
    there = WordPositions(["a"], PROMPTS, [[(0, 2)], [(0, 3)], [(0, 4)]])
    return word_activations(DecoderStack(model), there).mean


def sparsity(model: Any) -> Any:
    loaded, found = Loaded(model, tiny_tokenizer()), []
    for method in ("magnitude", "wanda", "ria", "sparsegpt"):
        with restored(loaded):
            prune_weights(loaded, [[1, 2, 3, 4, 5, 6], [7, 8, 9, 1]], method, 0.5)
            # Tied weights are no longer tied when they come from the pretended device; the output layer is not pruned.
            found += [p.detach().cpu().tolist() for name, p in model.named_parameters() if name != "lm_head.weight"]
    return found


def loops(mode: str, family: str) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """The loops by name. Those that depend on target and kind of score, not on the family, run only for Llama."""
    kinds: list[dict[str, str]] = [{}, {"path": "all_layers"}, {"projection": "down_proj"}]
    if family == "llama":
        kinds += [{"target": target} for target in TARGETS if target != Attribution().target]
        kinds += [
            {"path": "single"}, {"method": "relu_gradient"}, {"method": "activation"},
            {"method": "relu_gradient", "path": "all_layers"},
        ]  # fmt: skip
    for settings in kinds:
        yield f"scores, {settings}", lambda model, settings=settings: scores(model, **settings)
    yield "grid", lambda model: grid(model, "float32")
    yield "grid in bfloat16", lambda model: grid(model, "bfloat16")
    yield "evaluation", evaluation
    yield "steering", steering
    yield "explanation", explanation
    yield "semantics", semantics
    if mode != "host":  # it loads the whole model
        yield "sparsity", sparsity


def rounded(family: str, mode: str) -> Any:
    """The tiny model, with the matrices that `host` keeps in bfloat16 rounded to it."""
    model = tiny_model(family, torch.float32)
    if mode == "host":
        for weight in layer_matrices(model):
            weight.data = weight.data.bfloat16().float()
    return model


def placed(family: str, mode: str) -> Any:
    """The model on the second device, with its layers on both, or with their matrices on the CPU."""
    model = tiny_model(family, torch.float32)
    if mode == "host":
        for weight in layer_matrices(model):
            weight.data = weight.data.bfloat16()
        keep_as_stored(model, torch.device(f"{NAME}:1"))
        assert {weight.device.type for weight in layer_matrices(model)} == {"cpu"}
        assert model.device == torch.device(f"{NAME}:1")
        return model
    if mode == "one":
        return model.to(f"{NAME}:1")
    names = {f"model.layers.{i}": f"{NAME}:{int(i > 0)}" for i in range(3)}
    names |= {"model.embed_tokens": f"{NAME}:0", "model.rotary_emb": f"{NAME}:0"}
    end = int(not model.config.tie_word_embeddings)  # tied weights are on one device
    names |= {"model.norm": f"{NAME}:{end}", "lm_head": f"{NAME}:{end}"}
    dispatch_model(model, names, main_device=f"{NAME}:0", force_hooks=True)
    return model


def main(mode: str, families: list[str]) -> int:
    """Prints a line for each loop with a wrong result; returns their number."""
    wrong = 0
    for family in families:
        for name, loop in loops(mode, family):
            expected = loop(rounded(family, mode))
            try:
                with Pretending():
                    found = loop(placed(family, mode))
                same = all(
                    np.allclose(np.array(a, dtype=np.float64), np.array(b, dtype=np.float64), atol=1e-3, rtol=1e-3)
                    for a, b in zip(leaves(found), leaves(expected), strict=True)
                )
                problem = "" if same else "other numbers"
            except Exception as error:
                frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tasks/" in f.filename]
                problem = f"{error} at {[(f.filename[-20:], f.lineno) for f in frames[-2:]]}"
            if problem:
                wrong += 1
                print(f"{family}, {name}: {problem}", flush=True)
    return wrong


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
