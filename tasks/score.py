"""score: the score of every neuron, by integrated gradients on the adaptation set."""

import json
import sys
from typing import Any

import torch
from safetensors.torch import save

from tasks.attribution.integrated_gradients import TARGET, LayerPath, layer_scores
from tasks.attribution.quadrature import allowed
from tasks.benchmarks.encoding import encode_prompt
from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.files import read_jsonl, replacing, sha256_file
from tasks.pipeline.journal import Journal, journal_key
from tasks.pipeline.progress import progress
from tasks.pipeline.step import run_step


def score(cell: Cell) -> None:
    """Writes scores, completeness gaps and node counts of every layer; warns where the integral did not converge."""
    settings = cell.settings.attribution
    loaded = load(cell.model_dir)
    stack = DecoderStack(loaded.model)
    samples = read_jsonl(cell.samples)
    adaptive = settings.quadrature == "adaptive"
    quadrature = settings.model_dump(exclude={"steps"} if adaptive else {"tolerance", "max_nodes"})
    header = {
        "method": "integrated_gradients",
        "path": "layer",
        "projection": "gate_proj",
        "target": TARGET,
        **quadrature,
        "samples_sha256": sha256_file(cell.samples),
        "model_sha256": sha256_directory(cell.model_dir),
        "n": len(samples),
    }
    journal = Journal(cell.scratch / "score.jsonl", journal_key(header))
    path = None
    with progress("score", len(stack)) as advance:
        for layer in range(len(stack)):
            if str(layer) not in journal.parts:
                if path is None:
                    path = LayerPath(stack, [_encode(loaded.tokenizer, row, stack.context) for row in samples])
                    one = path.at_one()
                result = layer_scores(path, layer, one, settings)
                values = {"gap": result.gap, "difference": result.difference, "error": result.error}
                journal.put(str(layer), values | {"nodes": result.nodes, "scores": result.scores.tolist()})
            advance(1)
    parts = [journal.parts[str(layer)] for layer in range(len(stack))]
    tensors = {
        name: torch.tensor([part[name] for part in parts], dtype=torch.int32 if name == "nodes" else torch.float32)
        for name in ("scores", "gap", "difference", "error", "nodes")
    }
    rough = [
        layer for layer, part in enumerate(parts) if part["error"] > allowed(part["difference"], settings.tolerance)
    ]
    if rough:
        print(f"warning: completeness gap over attribution.tolerance in layers {rough}", file=sys.stderr)
    with replacing(cell.scores) as temporary:
        # One key: the format does not fix the order of several, and the bytes must not change from run to run.
        temporary.write_bytes(save(tensors, metadata={"header": json.dumps(header, sort_keys=True)}))
    journal.remove()


def _encode(tokenizer: Any, row: dict[str, Any], context: int) -> list[int]:
    return encode_prompt(tokenizer, row["prompt"], context, chat=row.get("chat", False))


if __name__ == "__main__":
    run_step(score, description=__doc__)
