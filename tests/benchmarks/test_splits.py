"""Splits: no prompt is in both; they are drawn by hashes, so that added or removed rows move no other row."""

import hashlib
import json
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.benchmarks.benchmark_spec import BenchmarkSpec
from tasks.benchmarks.rows import Example
from tasks.benchmarks.splits import hash_position, splits
from tasks.method.adaptation_set import draw
from tasks.method.options import Adaptation
from tasks.runtime.errors import InputError

FIELD = "benchmarks.b"


def spec(test):
    templates = {
        "source": {"kind": "path", "path": "train.jsonl", "sha256": "0" * 64},
        "fields": {"text": "{{ text }}"},
        "gold": "{{ label }}",
    }
    return BenchmarkSpec(
        train=templates,
        test=test or templates,
        prompt="{{ text }}?",
        options=[" no", " yes"],
        labels=["0", "1"],
        limits={"test": 1, "transfer": 0},
    )


EXAMPLES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=1, max_size=40).map(
    lambda pairs: [Example(i, f"prompt {p}", gold) for i, (p, gold) in enumerate(pairs, start=1)]
)


def check_disjoint(train, test, first):
    """No prompt occurs twice in a split or in both; each example is the first of its prompt in its source."""
    prompts = [example.prompt for example in train + test]
    assert len(set(prompts)) == len(prompts)
    assert [example.number for example in train] == sorted(example.number for example in train)
    assert all(first[example.prompt] == example for example in train)


@given(EXAMPLES, st.integers(1, 10), st.integers(0, 3))
def test_held_out_rows(found, size, seed):
    different = {example.prompt: example for example in reversed(found)}
    held = spec({"split": size, "seed": seed})
    if size >= len(different):
        with pytest.raises(InputError, match=rf"b\.test\.split: must be less than {len(different)}, the number of"):
            splits(held, found, None, field=FIELD)
        return
    train, test = splits(held, found, None, field=FIELD)
    assert len(test) == size
    assert len(train) + len(test) == len(different)
    check_disjoint(train, test, different)
    assert splits(held, found, None, field=FIELD) == (train, test)


@given(EXAMPLES, EXAMPLES)
def test_a_given_test_split(found, given_test):
    first = {example.prompt: example for example in reversed(given_test)}
    if {example.prompt for example in found} <= set(first):
        with pytest.raises(InputError, match=r"b\.train: is empty: all its prompts are in the test split"):
            splits(spec(None), found, given_test, field=FIELD)
        return
    train, test = splits(spec(None), found, given_test, field=FIELD)
    assert sorted(test, key=lambda example: example.number) == sorted(first.values(), key=lambda e: e.number)
    check_disjoint(train, test, {example.prompt: example for example in reversed(found)})


@pytest.mark.parametrize("split", [10, 0.1])
def test_other_seeds_hold_out_other_rows(split):
    found = [Example(i, str(i), 0) for i in range(100)]
    drawn = [frozenset(splits(spec({"split": split, "seed": s}), found, None, field=FIELD)[1]) for s in range(5)]
    assert len(set(drawn)) == 5


def test_the_first_test_rows_of_a_sorted_file_are_not_all_of_one_label():
    found = [Example(i, f"test {i}", int(i >= 500)) for i in range(1000)]
    _, test = splits(spec(None), [Example(1, "train", 0)], found, field=FIELD)
    assert 0.3 < np.mean([example.gold for example in test[:100]]) < 0.7


@given(st.lists(st.integers(0, 9), min_size=12, max_size=40), st.integers(4, 11), st.integers(0, 3))
def test_groups_are_never_split(groups, size, seed):
    found = [Example(i, f"{i}", 0, group=str(group)) for i, group in enumerate(groups)]
    held = spec({"split": size, "seed": seed})
    if min(Counter(groups).values()) > size:
        with pytest.raises(InputError, match=r"b\.test\.split: every group has more than"):
            splits(held, found, None, field=FIELD)
        return
    train, test = splits(held, found, None, field=FIELD)
    assert 0 < len(test) <= size
    assert len(train) + len(test) == len(found)
    assert not {example.group for example in train} & {example.group for example in test}


def test_a_group_of_a_given_test_split_leaves_train():
    train = [Example(i, f"train {i}", 0, group=str(i % 3)) for i in range(6)]
    kept, test = splits(spec(None), train, [Example(1, "test", 0, group="2")], field=FIELD)
    assert [example.group for example in kept] == ["0", "1"] * 2
    assert len(test) == 1


# -- files that change ------------------------------------------------------------------------------------------------


def numbered(prompts, group=lambda prompt: None):
    return [Example(i, str(p), p % 2, (" a", " b"), group(p)) for i, p in enumerate(prompts, start=1)]


def asked(found):
    return [example.prompt for example in found]


@st.composite
def changes(draw):
    """Prompts before and after: some removed, some added, and all in another order."""
    before = draw(st.lists(st.integers(0, 10**6), min_size=20, max_size=80, unique=True))
    removed = draw(st.integers(0, 3))
    added = draw(st.lists(st.integers(10**6 + 1, 2 * 10**6), max_size=5, unique=True))
    after = [*before[removed:], *added]
    return before, draw(st.permutations(after)), removed, len(added)


@given(changes(), st.integers(1, 15), st.integers(0, 3))
def test_a_count_of_test_rows_changes_by_no_more_than_the_file(change, size, seed):
    before, after, removed, added = change
    held = spec({"split": size, "seed": seed})
    (_, old), (_, new) = (splits(held, numbered(p), None, field=FIELD) for p in (before, after))
    assert len(set(asked(old)) - set(asked(new))) <= removed + added
    for limit in (3, size):  # `limits` takes the first rows
        first = [set(asked(test)[:limit]) for test in (old, new)]
        assert len(first[0] - first[1]) <= removed + added
    both = set(asked(old)) & set(asked(new))
    assert [p for p in asked(old) if p in both] == [p for p in asked(new) if p in both]  # the others keep their order


@pytest.mark.parametrize("group", [lambda prompt: None, lambda prompt: str(prompt % 7)], ids=["rows", "groups"])
@given(changes(), st.sampled_from([0.2, 0.5, 0.9]), st.integers(0, 3))
def test_a_fraction_moves_no_row_that_stays(group, change, fraction, seed):
    before, after, _, _ = change
    held = spec({"split": fraction, "seed": seed})
    try:
        old, new = (splits(held, numbered(p, group), None, field=FIELD) for p in (before, after))
    except InputError:
        assume(False)
    for here, there in ((0, 1), (1, 0)):
        assert not set(asked(old[here])) & set(asked(new[there]))
    both = set(asked(old[1])) & set(asked(new[1]))
    assert [p for p in asked(old[1]) if p in both] == [p for p in asked(new[1]) if p in both]


def test_a_larger_fraction_keeps_the_test_rows():
    found = numbered(range(500))
    tests = [set(asked(splits(spec({"split": f}), found, None, field=FIELD)[1])) for f in (0.1, 0.25, 0.5)]
    assert tests[0] < tests[1] < tests[2]
    assert [len(test) / 500 for test in tests] == pytest.approx([0.1, 0.25, 0.5], abs=0.05)


def test_rows_that_come_to_a_test_file_only_add_themselves_to_its_order():
    train = [Example(1, "train", 0)]
    old, new = (asked(splits(spec(None), train, numbered(range(n)), field=FIELD)[1]) for n in (50, 53))
    assert [p for p in new if p in set(old)] == old


@pytest.mark.parametrize(
    ("fraction", "line"),
    [
        (1e-9, "benchmarks.b.test.split: 1e-09 of the 3 different prompts gives no test row; "),
        (1 - 1e-9, "benchmarks.b.test.split: 0.999999999 of the 3 different prompts leaves no train row; "),
    ],
)
def test_a_fraction_that_leaves_nothing_is_refused(fraction, line):
    with pytest.raises(InputError) as caught:
        splits(spec({"split": fraction}), numbered(range(3)), None, field=FIELD)
    assert str(caught.value).startswith(line)


# -- the hash ---------------------------------------------------------------------------------------------------------


def test_the_place_is_the_sha256_of_what_is_asked():
    text = json.dumps(["test", 3, "Was ist schön?", [" ja", " nein"]]).encode()
    assert hash_position("test", 3, "Was ist schön?", (" ja", " nein")) == int.from_bytes(hashlib.sha256(text).digest())
    assert (
        hash_position("test", 0, "a", ("b",))
        != hash_position("test", 0, "a", ("b", ""))
        != hash_position("order", 0, "a", ("b",))
    )


def test_places_are_uniform_and_other_draws_are_independent():
    rows = [f"row {i}" for i in range(2000)]
    first, second = ([hash_position(draw, 0, row, (" a", " b")) / 2**256 for row in rows] for draw in ("test", "order"))
    assert np.histogram(first, bins=4, range=(0, 1))[0] == pytest.approx([500] * 4, abs=80)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.07
    assert abs(np.corrcoef(first, range(2000))[0, 1]) < 0.07


# -- the adaptation set -----------------------------------------------------------------------------------------------


def drawn(prompts, seed, size=10):
    """Prompts of the adaptation set that is drawn from a train split with these prompts."""
    options = [np.array([" a", " b"], dtype=object)] * len(prompts)
    table = pd.DataFrame(
        {"id": [f"train-{i}" for i in range(len(prompts))], "prompt": [f"{p}" for p in prompts], "options": options}
    )
    settings = Adaptation(size=size, seed=seed, selection="random")
    return draw(table.assign(gold=0), SimpleNamespace(context=0), None, settings)["prompt"].tolist()


@pytest.fixture(autouse=True, scope="module")
def _no_encoding():
    """Replaces the encoding: `draw` encodes its rows only to refuse those that later steps cannot use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.method.adaptation_set.encode_rows", lambda *_: None)
        yield


@given(changes(), st.integers(0, 3))
def test_the_adaptation_set_changes_by_no_more_than_the_rows(change, seed):
    before, after, removed, added = change
    old, new = drawn(before, seed), drawn(after, seed)
    assert len(set(old) - set(new)) <= removed + added
    assert [p for p in old if p in new] == [p for p in new if p in old]


def test_the_adaptation_set_knows_no_order_and_hangs_on_the_seed():
    prompts = list(range(200))
    random.Random(0).shuffle(prompts)
    assert drawn(prompts, 1) == drawn(range(200), 1)
    assert len({tuple(drawn(prompts, seed)) for seed in range(5)}) == 5
    assert drawn(prompts, 1, size=20)[:10] == drawn(prompts, 1)
