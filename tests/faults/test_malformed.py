"""Malformed params.yaml, benchmark files and pruned.json: one line, exit code 2, nothing written."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows import cli
from tasks.pipeline.cell import Cell, open_cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import sha256_file, write_json
from tasks.steps.data import store
from tests.cells import SHA
from tests.faults.fault_project import params, write_sources

MANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # their number: tests/conftest.py
ODD: list[Any] = [
    None, True, 0, -1, 2**31, 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", " ", "\0", "\x1b[31m", "a\nb",
    "{{", "{{ x }}", "{% if %}", "../../etc/passwd", "x" * 5000, [], [[]], [None], {}, {"a": {}}, {"kind": "wheel"},
    ["a", "a"], "\u202e", "0" * 64,
]  # fmt: skip


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    return write_sources(tmp_path_factory.mktemp("malformed"))


def everything(root: Path) -> set[Path]:
    return set(root.rglob("*"))


def call(*arguments: str) -> tuple[int, str]:
    """The command's exit code and its stderr, which is one line if the code is 2 and empty if it is 0."""
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code in (0, 2), (result.exit_code, result.stderr[:500])
    lines = result.stderr.splitlines(keepends=True)
    assert len(lines) == (1 if result.exit_code else 0), result.stderr[:500]
    assert result.exit_code == 0 or (lines[0].startswith("error: ") and lines[0][:-1].isprintable())
    assert len(result.stderr) < 3000
    return result.exit_code, result.stderr


def validate(root: Path, content: bytes) -> tuple[int, str]:
    before = everything(root)
    (root / "params.yaml").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        told = call("validate")
    assert everything(root) == before
    return told


def text_of(cell: Cell) -> str:
    return yaml.safe_dump(params(cell.root), sort_keys=False)


BROKEN: dict[str, Callable[[str], str]] = {
    "nothing": lambda good: "",
    "a scalar": lambda good: "x",
    "a list": lambda good: "[1]",
    "two documents": lambda good: good + "\n---\na: 1\n",
    "a tab": lambda good: "\t" + good,
    "a NUL": lambda good: good + "\0",
    "a bell": lambda good: good + "\7",
    "cut short": lambda good: good[: len(good) // 2] + "{",
    "deep brackets": lambda good: "a: " + "[" * 20000 + "]" * 20000,
    "deep mappings": lambda good: "".join(" " * i + "a:\n" for i in range(1500)),
    "a bomb of aliases": lambda good: (
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)) + good
    ),
    "itself": lambda good: "&a {pipeline: *a}",
    "an unknown alias": lambda good: good + "\nx: *nowhere\n",
    "a section twice": lambda good: good + "\nadaptation: {size: 3}\n",
    "a field twice": lambda good: good.replace("  size: 3", "  size: 3\n  size: 4"),
    "a key that is a number": lambda good: good + "\n1: 2\n",
    "a key that is a list": lambda good: good + "\n? [1, 2]\n: 3\n",
    "a key that is nothing": lambda good: good + "\n~: 2\n",
    "a key with a line end": lambda good: good + '\n"a\\nb": 2\n',
    "a key with an escape": lambda good: good + '\n"a\\e[31m": 2\n',
    "a merge of nothing": lambda good: good + "\n<<: 3\n",
    "a Python object": lambda good: good.replace("size: 3", "size: !!python/object/apply:os.getpid []"),
    "an unknown tag": lambda good: good.replace("size: 3", "size: !x 3"),
    "a date": lambda good: good.replace("size: 3", "size: 2024-01-01"),
    "a date that is none": lambda good: good.replace("size: 3", "size: 2024-13-45"),
    "an offset that is none": lambda good: good.replace("size: 3", "size: 2001-12-14t21:59:43.10-99:99"),
    "damaged base64": lambda good: good.replace("size: 3", "size: !!binary abc"),
    "a set": lambda good: good.replace("size: 3", "size: !!set {a}"),
    "a number of 5000 digits": lambda good: good.replace("size: 3", "size: " + "9" * 5000),
    "5000 hexadecimal digits": lambda good: good.replace("size: 3", "size: 0x" + "f" * 5000),
    "a number to the base of 60": lambda good: good.replace("size: 3", "size: 1" + ":59" * 20000),
    "400 digits": lambda good: good.replace("size: 3", "size: " + "9" * 400),
    "NaN": lambda good: good.replace("tolerance: 0.01", "tolerance: .nan"),
    "infinity": lambda good: good.replace("tolerance: 0.01", "tolerance: .inf"),
    "half a surrogate pair": lambda good: good.replace("size: 3", 'size: "\\ud800"'),
    "a list as a kind": lambda good: good.replace("kind: path", "kind: [a]"),
    "a list as a name": lambda good: good.replace("- tiny", "- [tiny]"),
    "an unknown name": lambda good: good.replace("- tiny", "- none"),
    "a template that is none": lambda good: good.replace("{{ text }} :", "{{ text"),
    "options alike": lambda good: good.replace("' yes'", "' no'"),
    "a missing section": lambda good: good.replace("evaluation:", "evaluations:"),
    "a path of 5000 characters": lambda good: good.replace("path: source", "path: " + "x" * 5000),
    "a path for a name": lambda good: good.replace("  tiny:", "  ../tiny:"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_params(cell: Cell, name: str) -> None:
    good = text_of(cell)
    broken = BROKEN[name](good)
    assert broken != good
    assert validate(cell.root, broken.encode("utf-8", "surrogatepass"))[0] == 2


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: \xff", "a: 1".encode("utf-16"), b"\x00" * 100])
def test_params_of_other_bytes(cell: Cell, content: bytes) -> None:
    assert validate(cell.root, content)[0] == 2


def test_good_params_pass_also_with_a_byte_order_mark(cell: Cell) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        assert validate(cell.root, mark + text_of(cell).encode())[0] == 0


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(value, key), *places(inner)]]


def mutated(value: Any, rng: random.Random) -> Any:
    """The value with one entry changed to something odd, removed or renamed."""
    container, key = rng.choice(places(value))
    how = rng.randrange(4)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container, dict):
        container[rng.choice(["", "a", "A" * 5000, "spec", "x\ny"])] = container.pop(key)
    else:
        container[key] = rng.choice(ODD)
    return value


@MANY
@given(st.integers(0, 2**32))
def test_mutations_of_params(cell: Cell, seed: int) -> None:
    rng = random.Random(seed)
    validate(cell.root, yaml.safe_dump(mutated(params(cell.root), rng)).encode())


@MANY
@given(st.integers(0, 2**32))
def test_damaged_texts_of_params(cell: Cell, seed: int) -> None:
    validate(cell.root, damaged(text_of(cell).encode(), random.Random(seed)))


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, removed or inserted."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(found))
        how = rng.randrange(3)
        if how == 0:
            found[at] = rng.randrange(256)
        elif how == 1:
            del found[at : at + rng.randint(1, 20)]
        else:
            found[at:at] = rng.choice(
                [b"\0", b'"', b"{", b"[", b"\n", b": ", b"\xff", b"&a ", b"*a", b"- ", b"9" * 500]
            )
    return bytes(found)


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


LINE = b'{"text": "%d good", "label": "%d"}\n'
ROWS = {
    "jsonl": b"".join(LINE % (i, i % 2) for i in range(30)),
    "csv": b"text,label\n" + b"".join(b"%d good,%d\n" % (i, i % 2) for i in range(30)),
    "parquet": parquet(text=[f"{i} good" for i in range(30)], label=[i % 2 for i in range(30)]),
}
DAMAGED_ROWS = [
    ("jsonl", b"[" * 100_000),
    ("jsonl", b'{"a":' * 100_000),
    ("jsonl", b'{"text": NaN, "label": "0"}\n'),
    ("jsonl", b'{"text": "a", "text": "b", "label": "0"}\n'),
    ("jsonl", b'{"text": ' + b"9" * 5000 + b', "label": "0"}\n'),
    ("jsonl", b'{"text": "\x00", "label": "0"}\n'),
    ("jsonl", ROWS["jsonl"].decode().encode("utf-16")),
    ("jsonl", b'{"text": "\\ud800", "label": "0"}\n'),
    ("jsonl", b'{"te\\ud800xt": "a", "label": "0"}\n'),
    ("jsonl", b'{"text": "a", "label": "\\ud800"}\n'),
    ("jsonl", b"[]\n"),
    ("jsonl", b""),
    ("jsonl", b'{"text": null, "label": "0"}\n'),
    ("jsonl", b'{"text": "a", "label": [1]}\n'),
    ("jsonl", b'{"text": "a"}\n'),
    ("csv", b'text,label\n"a,0\n'),
    ("csv", b"text,label\na,b,c\n"),
    ("csv", b"text,text\n1,2\n"),
    ("csv", b"text,label\n" + b"x" * 200_000 + b",0\n"),
    ("csv", b"text,label\n\xff,0\n"),
    ("csv", b""),
    ("parquet", b""),
    ("parquet", b"PAR1PAR1"),
    ("parquet", ROWS["parquet"][:-10]),
    ("parquet", ROWS["parquet"][:20] + b"\xff" * 20 + ROWS["parquet"][40:]),
    ("parquet", b"PAR1" + b"\xff" * 50 + b"\x10\0\0\0PAR1"),
    ("parquet", b"PARE" + ROWS["parquet"][4:-4] + b"PARE"),
    ("parquet", parquet(text=pa.array([2**62], pa.timestamp("us")), label=[0])),
    ("parquet", parquet(other=["a"])),
]


def stored(root: Path, kind: str, content: bytes) -> str | None:
    """Runs the step `data` on such a file; returns its message if it refuses it."""
    path = root / f"rows.{kind}"
    path.write_bytes(content)
    changed = params(root)
    changed["benchmarks"]["reviews"]["train"]["source"] |= {"path": path.name, "sha256": sha256_file(path)}
    (root / "params.yaml").write_text(yaml.safe_dump(changed))
    before = everything(root)
    try:
        store(open_cell(root=root))
        return None
    except InputError as error:
        told = str(error)
    assert everything(root) <= before | {root / "data", root / "data" / "benchmarks"}
    assert told.isprintable()
    return told


@pytest.mark.parametrize("number", range(len(DAMAGED_ROWS)))
def test_rows(cell: Cell, number: int) -> None:
    assert stored(cell.root, *DAMAGED_ROWS[number])


@pytest.mark.parametrize("kind", ROWS)
@MANY
@given(seed=st.integers(0, 2**32))
def test_damaged_files_of_rows(cell: Cell, kind: str, seed: int) -> None:
    stored(cell.root, kind, damaged(ROWS[kind], random.Random(seed)))


def test_good_rows_pass(tmp_path: Path) -> None:
    write_sources(tmp_path)
    for kind, content in ROWS.items():
        assert stored(tmp_path, kind, content) is None


def recipe() -> dict[str, Any]:
    return {
        "format": 1, "model": "tiny", "benchmark": "reviews", "base_sha256": SHA, "projection": "gate_proj",
        "layer": 0, "fraction": 0.1, "layers": 3, "d_ff": 48, "neurons": [0, 1],
        "adaptation": {"n": 10, "accuracy": 0.9, "margin": 0.4, "base_accuracy": 0.6, "base_margin": 0.1},
        "trail": [{"rule": "accuracy", "best": 0.9, "tied": 1}],
    }  # fmt: skip


def applied(root: Path, content: bytes) -> str:
    (root / "pruned.json").write_bytes(content)
    before = everything(root)
    code, told = call(
        "apply", str(root / "pruned.json"), "--model", str(root / "source"), "--out", str(root / "applied")
    )
    assert code == 2
    assert everything(root) == before
    return told


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0", b"null", b"[]", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a":' * 100_000, b'"\\ud800"', b"NaN",
        b'{"format": 1, "format": 1}',
    ],
)  # fmt: skip
def test_recipes(cell: Cell, content: bytes) -> None:
    assert "pruned.json" in applied(cell.root, content)


@MANY
@given(st.integers(0, 2**32))
def test_mutations_of_a_recipe(cell: Cell, seed: int) -> None:
    rng = random.Random(seed)
    applied(cell.root, json.dumps(mutated(recipe(), rng)).encode())


@MANY
@given(st.integers(0, 2**32))
def test_damaged_recipes(cell: Cell, seed: int) -> None:
    applied(cell.root, damaged(json.dumps(recipe()).encode(), random.Random(seed)))


def test_a_good_recipe_is_refused_by_its_hash_only(cell: Cell) -> None:
    write_json(cell.root / "pruned.json", recipe())
    told = applied(cell.root, (cell.root / "pruned.json").read_bytes())
    assert f"but the recipe is for {SHA}" in told
