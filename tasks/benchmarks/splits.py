"""Train and test splits by hashes of prompt and options, so that new or removed rows move as few others as possible."""

import hashlib
import json
from typing import Literal

from tasks.benchmarks.benchmark_spec import BenchmarkSpec, HeldOut
from tasks.benchmarks.rows import Example
from tasks.runtime.errors import InputError

# The draws use different hashes, so the order of the test rows is independent of their selection.
Draw = Literal["test", "order", "adaptation"]
HASH_RANGE = 2**256


def hash_position(draw: Draw, seed: int, *content: object) -> int:
    """The sort key of a row in a draw: a number below HASH_RANGE that depends on the arguments alone.

    Args:
        content: prompt and options of the row, or its group; any JSON values.
    """
    text = json.dumps([draw, seed, *content])
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest(), "big")


def splits(
    spec: BenchmarkSpec, train: list[Example], test: list[Example] | None, *, field: str
) -> tuple[list[Example], list[Example]]:
    """(train, test) without repeated prompts; if `test` is None, it is drawn from `train`.

    If several examples have the same prompt and options, the first one is kept, even if their gold options differ. A
    prompt or group that is in both splits stays in test. Test is ordered by hashes, since files are often sorted by
    label and `limits` takes the first rows; train keeps its order. `field` is the benchmark's field in params.yaml.

    Raises:
        InputError: train or test would be empty.
    """
    train = _first_of_each(train)
    if isinstance(spec.test, HeldOut):
        seed, test = spec.test.seed, _held_out(train, spec.test, f"{field}.test.split")
    else:
        seed, test = 0, _first_of_each(test or [])
    test = sorted(test, key=lambda example: hash_position("order", seed, *example.identity))
    tested = {example.identity for example in test}
    groups = {example.group for example in test} - {None}
    train = [example for example in train if example.identity not in tested and example.group not in groups]
    if not train:
        raise InputError(f"{field}.train", "is empty: all its prompts are in the test split")
    return train, test


def _held_out(examples: list[Example], held: HeldOut, field: str) -> list[Example]:
    """The held-out rows. A group is taken as a whole; a row without a group is a group of its own."""
    split = held.split
    if isinstance(split, int) and split >= len(examples):
        raise InputError(field, f"must be less than {len(examples)}, the number of different prompts")
    groups: dict[tuple[object, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.identity if example.group is None else (example.group,), []).append(example)
    positions = {group: hash_position("test", held.seed, *group) for group in groups}
    taken: list[Example] = []
    if isinstance(split, float):
        taken = [
            example for group, members in groups.items() if positions[group] / HASH_RANGE < split for example in members
        ]
        if len(taken) in (0, len(examples)):
            result = "leaves no train row" if taken else "gives no test row"
            raise InputError(
                field, f"{split} of the {len(examples)} different prompts {result}; use a count, or another seed"
            )
        return taken
    for group in sorted(groups, key=positions.__getitem__):
        if len(taken) + len(groups[group]) <= split:
            taken += groups[group]
    if not taken:
        raise InputError(field, f"every group has more than {split} rows")
    return taken


def _first_of_each(examples: list[Example]) -> list[Example]:
    first: dict[tuple[str, tuple[str, ...]], Example] = {}
    for example in examples:
        first.setdefault(example.identity, example)
    return list(first.values())
