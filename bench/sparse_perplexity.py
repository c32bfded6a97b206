"""Perplexity of a model as weight pruning removes more of it: `python -m bench.sparse_perplexity --help`.

Prints a Markdown table. The text is read as the code of SparseGPT and Wanda reads WikiText-2: rows joined by two line
feeds, non-overlapping windows. The difference to the unpruned model is paired by window.
"""

import argparse
import math
import time
from pathlib import Path

from tasks.models.loading import device, load
from tasks.runtime.errors import InputError
from tasks.sparsity.calibration import from_documents, read_texts
from tasks.sparsity.coverage import POOL, covering
from tasks.sparsity.metrics import NOfM, Target
from tasks.sparsity.perplexity import Perplexity, perplexity
from tasks.sparsity.weight_pruning import METHODS, sparse


def target(text: str) -> Target:
    """Reads a target such as 0.5 or 2:4."""
    if ":" in text:
        n, m = text.split(":")
        return NOfM(int(n), int(m))
    return float(text)


def row(method: str, target: str, sparsity: float, measured: Perplexity, base: Perplexity, seconds: str) -> str:
    difference = measured.losses - base.losses
    stderr = difference.std(ddof=1) / math.sqrt(len(difference)) if len(difference) > 1 else math.nan
    change = "" if measured is base else f"{difference.mean():+.4f} ± {stderr:.4f}"
    return (
        f"| {method} | {target} | {sparsity:.4%} | {measured.ppl:.2f} | {measured.loss:.4f} ± {measured.stderr:.4f} "
        f"| {change} | {seconds} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sparse_perplexity", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument(
        "--wikitext", type=Path, required=True, help="test.jsonl or a directory with it, or a text file"
    )
    parser.add_argument("--calibration", type=Path, required=True, help="documents (C4): JSONL with a `text`")
    parser.add_argument("--sparsities", type=target, nargs="+", default=[0.3, 0.5, NOfM(2, 4)], help="such as 0.5 2:4")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--permuted", action="store_true", help="also RIA with its channel permutation, for N:M")
    parser.add_argument("--sequences", type=int, default=32, help="of calibration")
    parser.add_argument(
        "--covering", action="store_true", help=f"chosen to cover a pool {POOL} times as large, not a random draw"
    )
    parser.add_argument("--length", type=int, default=512, help="tokens of a calibration sequence and of a window")
    parser.add_argument("--tokens", type=int, default=40_960, help="of the text, from its beginning")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    loaded = load(given.model)
    path = given.wikitext / "test.jsonl" if given.wikitext.is_dir() else given.wikitext
    tokens = loaded.tokenizer("\n\n".join(read_texts(path)))["input_ids"][: given.tokens]
    calibration = from_documents(
        loaded.tokenizer,
        read_texts(given.calibration),
        name=given.calibration.parent.name,
        count=given.sequences * (POOL if given.covering else 1),
        length=given.length,
        seed=given.seed,
    )
    if given.covering:
        calibration = covering(loaded, calibration, given.sequences)
    how = "covering a pool, " if given.covering else ""
    base = perplexity(loaded, tokens, given.length)
    print(
        f"{given.model.name} on {path.parent.name}/{path.name}: {base.tokens} predicted tokens in {len(base.losses)} "
        f"windows of {base.window}; calibration: {given.sequences} sequences of {given.length} tokens of "
        f"{calibration.name}, {how}seed {given.seed} (sha256 {calibration.sha256[:12]}); {device().type}\n"
    )
    print(
        "| method | target | removed of the layers' weights | perplexity | NLL per token | change, paired | seconds |"
    )
    print("|---|---|---|---|---|---|---|")
    print(row("unpruned", "", 0.0, base, base, ""), flush=True)
    for aim in given.sparsities:
        runs = [(method, False) for method in given.methods]
        if given.permuted and isinstance(aim, NOfM):
            runs.append(("ria", True))
        for method, permuted in runs:
            start = time.perf_counter()
            try:
                with sparse(loaded, calibration.sequences, method, aim, permuted=permuted) as report:
                    seconds = time.perf_counter() - start
                    measured = perplexity(loaded, tokens, given.length)
            except InputError as error:
                print(f"| {method} | {aim} | {error} |||||", flush=True)
                continue
            name = f"{method}, permuted" if permuted else method
            print(row(name, str(aim), report.sparsity, measured, base, f"{seconds:.0f}"), flush=True)


if __name__ == "__main__":
    main()
