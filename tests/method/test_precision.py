"""When the runs of a grid may multiply in bfloat16."""

import numpy as np
import pytest
import torch

from tasks.method.grid import parts_of
from tasks.method.pairs import every_pair
from tasks.method.precision import settle, settle_on_rows
from tasks.models.products import multiplies_bfloat16

PARTS = parts_of(every_pair(11, [0.1, 0.2]), 3)
ROWS = 10


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """Hardware with bfloat16 products."""
    monkeypatch.setattr("tasks.method.precision.multiplies_bfloat16", lambda device: True)


def run_with(change):
    """Runs parts: the pair (5, 0.2) is the best in float32; `change(value, part)` alters the bfloat16 values."""
    asked = []

    def run(parts):
        asked.extend(parts)
        values = {}
        for part in parts:
            best = part.layer == 5
            value = {"right": [4, 9 if best else 5], "margin": [0.0, 0.0], "predicted": [[0] * ROWS, [1] * ROWS]}
            if part.precision == "bfloat16":
                change(value, part)
            values[part] = value
        return values

    return run, asked


def test_float32_needs_no_sample():
    assert settle("float32", PARTS, lambda parts: 1 / 0, 48).precision == "float32"


def test_bfloat16_is_used_where_the_sample_agrees():
    run, asked = run_with(lambda value, part: None)
    settled = settle("bfloat16", PARTS, run, 48)
    assert (settled.precision, settled.agreement, settled.same_choice) == ("bfloat16", 1.0, True)
    assert settled.predictions == 3 * 2 * ROWS
    assert {(part.pack, part.layer) for part in asked} == {(0, 0), (0, 5), (0, 10)}
    assert {part.precision for part in asked} == {"float32", "bfloat16"}


def test_too_many_changed_predictions_turn_it_off():
    run, _ = run_with(lambda value, part: value["predicted"][0].__setitem__(0, 1) if part.layer == 10 else None)
    settled = settle("bfloat16", PARTS, run, 48)
    assert (settled.precision, settled.same_choice) == ("float32", True)
    assert settled.agreement == 59 / 60


def test_another_choice_turns_it_off():
    run, _ = run_with(lambda value, part: value.update(right=[10, 5]) if part.layer == 0 else None)
    settled = settle("bfloat16", PARTS, run, 48)
    assert (settled.precision, settled.agreement, settled.same_choice) == ("float32", 1.0, False)


def test_on_rows():
    exact = np.zeros((2, 150), dtype=int)
    other = exact.copy()
    other[0, :2] = 1
    assert settle_on_rows("bfloat16", lambda p: exact).precision == "bfloat16"
    assert settle_on_rows("bfloat16", lambda p: other if p == "bfloat16" else exact).precision == "float32"
    assert settle_on_rows("float32", lambda p: 1 / 0).precision == "float32"


def test_where_it_is_slower_it_is_not_even_tried(monkeypatch):
    monkeypatch.setattr("tasks.method.precision.multiplies_bfloat16", lambda device: False)
    assert settle("bfloat16", PARTS, lambda parts: 1 / 0, 48).precision == "float32"
    assert settle_on_rows("bfloat16", lambda p: 1 / 0).precision == "float32"


@pytest.mark.parametrize(("name", "expected"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
def test_the_processor_says_whether_it_is_faster(monkeypatch, name, expected):
    flags = {"avx2": False, "avx512_bf16": False, "amx_bf16": False} | {name: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert multiplies_bfloat16(torch.device("cpu")) is expected
