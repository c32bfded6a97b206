"""The decision rule of docs/choice.md on results with a known outcome."""

import pytest

from bench.choice import DESIGN, MODELS, NAMES, PAPER, REPORT, decide, half, page


def result(benchmark, **gains):
    """A cell where each criterion gains and harms as given, by default like the paper's: gain 0.02, harm 0.1."""
    records = [{"label": "unpruned", "value": 0.6, "n": 150, "more": {}}]
    for name in NAMES:
        gain, harm = gains.get(name, (0.02, 0.1))
        more = {"gain": gain, "harm": harm, "help": 0.0, "regret": 0.1, "abstained": 0.0}
        records.append({"label": name, "value": 0.6 + gain, "n": 150, "more": more})
    records.append({"label": "best pair on the test rows", "value": 0.7, "n": 150, "more": {}})
    return {"model": "tiny", "benchmark": benchmark, "records": records}


def decided(design, report):
    results = [result(b, halves=design) for b in DESIGN * 2] + [
        result(b, halves=(report[0] + i / 1000, report[1])) for i, b in enumerate(REPORT * 2)
    ]
    return decide(half(results, DESIGN), half(results, REPORT))


def test_the_criterion_that_gains_most_without_more_harm_is_picked_and_replaces():
    found = decided((0.05, 0.1), (0.06, 0.1))
    assert (found.picked, found.replaces) == ("halves", True)
    assert found.p == pytest.approx(2 / 2**8)  # all eight differences have one sign
    assert found.gain == pytest.approx(0.0635)


def test_more_harm_is_not_picked():
    assert decided((0.5, 0.2), (0.5, 0.2)).picked == PAPER


def test_what_does_not_hold_on_the_report_half_does_not_replace():
    found = decided((0.05, 0.1), (0.0, 0.1))
    assert (found.picked, found.replaces) == ("halves", False)


def test_half_the_harm_at_no_less_gain_replaces():
    found = decided((0.05, 0.1), (0.0165, 0.04))
    assert found.gain == pytest.approx(found.paper_gain)
    assert found.p > 0.05
    assert found.replaces


def test_the_page_says_what_was_decided():
    results = [result(b, halves=(0.05, 0.1)) for b in (*DESIGN, *REPORT)]
    text = page(results)
    assert "pick `halves`" in text
    assert (
        "This is provisional: of the cells of the plan, these are missing: smollm2-135m-instruct on sst2, gemma" in text
    )
    both = [result(b, halves=(0.05, 0.1)) | {"model": m} for m in MODELS for b in (*DESIGN, *REPORT)]
    assert "provisional" not in page(both)
    assert text.count("tiny on") == 8
    assert "Report half, 4 cells" in text


def test_nothing_is_decided_before_both_halves_are_there():
    text = page([result(b) for b in DESIGN])
    assert "None yet: no cell of the report half" in text
    assert "## Cells" not in text
