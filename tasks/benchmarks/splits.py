"""Examples to splits, by hashes of what they ask, so that rows that come or go move as few others as can be."""

import hashlib
import json
from typing import Literal

from tasks.benchmarks.benchmark_spec import BenchmarkSpec, HeldOut
from tasks.benchmarks.rows import Example
from tasks.runtime.errors import InputError

# Each draw has hashes of its own: the order of the test rows has nothing to do with which rows they are.
Draw = Literal["test", "order", "adaptation"]
PLACES = 2**256


def place(draw: Draw, seed: int, *content: object) -> int:
    """Where a row stands in a draw: a number below PLACES that depends on the row alone, on every machine the same.

    Args:
        content: what the row asks (prompt, options) or the group that it is in; anything that JSON can hold.
    """
    text = json.dumps([draw, seed, *content])
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest(), "big")


def splits(
    spec: BenchmarkSpec, train: list[Example], test: list[Example] | None, *, field: str
) -> tuple[list[Example], list[Example]]:
    """(train, test) in which no prompt occurs twice; `test` is None if it is to be drawn from `train`.

    Of several examples with one prompt (and the same options) the first is kept, whatever the gold options of the
    others; a prompt of both splits stays in test, and so does a group. Test comes in the order of its places, since
    files are often sorted by label and `limits` takes the first rows; train keeps its order. `field` is the benchmark's
    place in params.yaml.

    Raises:
        InputError: nothing would be left for train or test.
    """
    train = _first_of_each(train)
    if isinstance(spec.test, HeldOut):
        seed, test = spec.test.seed, _held_out(train, spec.test, f"{field}.test.split")
    else:
        seed, test = 0, _first_of_each(test or [])
    test = sorted(test, key=lambda example: place("order", seed, *example.asked))
    tested = {example.asked for example in test}
    groups = {example.group for example in test} - {None}
    train = [example for example in train if example.asked not in tested and example.group not in groups]
    if not train:
        raise InputError(f"{field}.train", "is empty: the test split has every prompt of it too")
    return train, test


def _held_out(found: list[Example], held: HeldOut, field: str) -> list[Example]:
    """The rows that are held out; a group is taken whole, and a row that is in none counts as a group of its own."""
    split = held.split
    if isinstance(split, int) and split >= len(found):
        raise InputError(field, f"must be less than {len(found)}, the number of different prompts")
    groups: dict[tuple[object, ...], list[Example]] = {}
    for example in found:
        groups.setdefault(example.asked if example.group is None else (example.group,), []).append(example)
    places = {group: place("test", held.seed, *group) for group in groups}
    taken: list[Example] = []
    if isinstance(split, float):
        taken = [example for group, members in groups.items() if places[group] / PLACES < split for example in members]
        if len(taken) in (0, len(found)):
            left = "leaves no train row" if taken else "is no test row"
            raise InputError(
                field, f"{split} of the {len(found)} different prompts {left}; use a count, or another seed"
            )
        return taken
    for group in sorted(groups, key=places.__getitem__):
        if len(taken) + len(groups[group]) <= split:
            taken += groups[group]
    if not taken:
        raise InputError(field, f"every group has more than {split} rows")
    return taken


def _first_of_each(found: list[Example]) -> list[Example]:
    first: dict[tuple[str, tuple[str, ...]], Example] = {}
    for example in found:
        first.setdefault(example.asked, example)
    return list(first.values())
