"""A killed step continues where it stopped, and never uses the parts of another step."""

import pytest

from tasks.runtime.journal import Journal


def test_parts_come_back_exactly(tmp_path):
    path = tmp_path / "deep" / "journal.jsonl"
    first = Journal(path, "key")
    first.put("0", {"a": [0.1, 1 / 3]})
    first.put("1", 2)
    assert Journal(path, "key").parts == {"0": {"a": [0.1, 1 / 3]}, "1": 2}


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_last_line_cut_short_is_dropped(tmp_path, cut):
    path = tmp_path / "journal.jsonl"
    Journal(path, "key").put("0", 1.5)
    whole = path.read_bytes()
    Journal(path, "key").put("1", 2.5)
    assert len(path.read_bytes()) > len(whole) + cut
    path.write_bytes(path.read_bytes()[: len(whole) + cut])

    again = Journal(path, "key")
    assert again.parts == {"0": 1.5}
    again.put("2", 3.5)
    assert Journal(path, "key").parts == {"0": 1.5, "2": 3.5}


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"{", b'{"key": "other"}\n{"name": "0", "value": 1}\n', b'{"key": "key"}\nnot json\n', b"[]\n"],
)
def test_another_key_or_damage_starts_anew(tmp_path, content):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    journal = Journal(path, "key")
    assert journal.parts == {}
    journal.put("1", True)
    assert Journal(path, "key").parts == {"1": True}


def test_removed_when_the_output_is_in_place(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", "key")
    journal.remove()
    assert list(tmp_path.iterdir()) == []
