"""Option scores beside those of lm-evaluation-harness: `python -m bench.agreement --model DIR --data DIR`.

The same prompts and options of the library's benchmarks (template `harness`) go to `DecoderStack` and to the harness's
own `HFLM.loglikelihood`, one request at a time and in padded batches of 8. Prints a table, and ends with 1 where a
log-probability differs by more than the tolerance or `acc` or `acc_norm` is another number.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tasks.benchmarks import library
from tasks.benchmarks.benchmark_spec import BenchmarkSpec, HeldOut
from tasks.benchmarks.row_files import read_rows
from tasks.benchmarks.rows import Example, examples
from tasks.benchmarks.scoring import option_logprobs, per_character
from tasks.models.loading import Loaded, load
from tasks.sources.kinds import LocalSource

BENCHMARKS = ("sst2", "boolq", "copa", "arc_easy", "mmlu-anatomy", "mmlu-global_facts")
BATCH = 8
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Agreement:
    """Ours beside the harness's on n rows.

    Attributes:
        single: largest difference of a log-probability to the harness with one request at a time.
        batched: the same with batches of `BATCH`.
        harness: largest difference between these two runs of the harness.
        acc: ours, and the harness's in both runs; acc_norm likewise.
    """

    n: int
    single: float
    batched: float
    harness: float
    acc: tuple[float, float, float]
    acc_norm: tuple[float, float, float]

    @property
    def holds(self) -> bool:
        same = len(set(self.acc)) == 1 and len(set(self.acc_norm)) == 1
        return same and max(self.single, self.batched) <= TOLERANCE


def rows_of(name: str, data: Path, n: int) -> list[Example]:
    """The first n rows of a benchmark's test split (of train, where test is held out of it), from local files."""
    line = {"spec": name, "data": str(data.resolve()), "template": "harness", "limits": {"test": n, "transfer": 0}}
    spec = BenchmarkSpec.model_validate(library.expand(line, field=name))
    split: Literal["train", "test"] = "train" if isinstance(spec.test, HeldOut) else "test"
    rows = spec.train if isinstance(spec.test, HeldOut) else spec.test
    assert isinstance(rows.source, LocalSource)
    read = [row for path in rows.source.paths for row in read_rows(Path(path), name=path, field=name)]
    return examples(read, spec, split, field=name).examples[:n]


def harness_logprobs(loaded: Loaded, rows: Sequence[Example], batch_size: int) -> list[np.ndarray]:
    """Log-probability of each option by lm-evaluation-harness, float64 [options] for each row."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=batch_size)
    requests = [
        Instance("loglikelihood", {}, (row.prompt, option), number)
        for row in rows
        for number, option in enumerate(row.options)
    ]
    answers = iter(model.loglikelihood(requests, disable_tqdm=True))
    return [np.array([next(answers)[0] for _ in row.options]) for row in rows]


def accuracies(rows: Sequence[Example], logprobs: Sequence[np.ndarray]) -> tuple[float, float]:
    """acc and acc_norm: how often the gold option has the largest log-probability, in all and per character."""
    plain = [values.argmax() == row.gold for row, values in zip(rows, logprobs, strict=True)]
    normed = [per_character(v, row.options).argmax() == row.gold for row, v in zip(rows, logprobs, strict=True)]
    return float(np.mean(plain)), float(np.mean(normed))


def compare(loaded: Loaded, rows: Sequence[Example]) -> Agreement:
    ours = option_logprobs(loaded, [row.prompt for row in rows], [row.options for row in rows])
    single, batched = (harness_logprobs(loaded, rows, size) for size in (1, BATCH))
    rates = [accuracies(rows, values) for values in (ours, single, batched)]

    def gap(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
        return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))

    return Agreement(
        n=len(rows),
        single=gap(ours, single),
        batched=gap(ours, batched),
        harness=gap(single, batched),
        acc=(rates[0][0], rates[1][0], rates[2][0]),
        acc_norm=(rates[0][1], rates[1][1], rates[2][1]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare option scores with lm-evaluation-harness.")
    parser.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"))
    parser.add_argument("--data", type=Path, required=True, help="a directory with the files of the library")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--benchmarks", nargs="+", default=BENCHMARKS)
    arguments = parser.parse_args()
    loaded = load(arguments.model)
    print(
        f"| benchmark | n | largest difference, batch 1 | batch {BATCH} | harness: 1 to {BATCH} "
        "| acc: ours, harness | acc_norm: ours, harness |\n|---|---|---|---|---|---|---|"
    )
    agreed = True
    for name in arguments.benchmarks:
        result = compare(loaded, rows_of(name, arguments.data, arguments.rows))
        agreed &= result.holds
        acc, norm = ((f"{values[0]:.3f}, {values[1]:.3f}") for values in (result.acc, result.acc_norm))
        print(
            f"| {name} | {result.n} | {result.single:.1e} | {result.batched:.1e} | {result.harness:.1e} "
            f"| {acc} | {norm} |",
            flush=True,
        )
    sys.exit(not agreed)


if __name__ == "__main__":
    main()
