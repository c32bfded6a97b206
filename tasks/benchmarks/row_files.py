"""Rows of JSONL, CSV and Parquet files."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.runtime.errors import InputError

Row = dict[str, Any]  # column -> value

VALUES_LIMIT = 20_000_000  # of a Parquet file; repeated values are small in the file, but not in memory
BYTES_LIMIT = 2 << 30  # of any file, and of a Parquet file's content in memory


def read_rows(path: Path, *, name: str, field: str) -> list[Row]:
    """All rows of a file. The file ending selects the reader.

    Args:
        name: the file's name in params.yaml, for messages.
        field: the source's field in params.yaml, for messages.

    Raises:
        InputError: the ending is unknown, or the file is damaged or too large.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise InputError(field, f"{name} is not a .jsonl, .csv or .parquet file")
    try:
        if (size := path.stat().st_size) > BYTES_LIMIT:
            raise ValueError(f"has {size} bytes; the limit is {BYTES_LIMIT}")
        return readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise InputError(field, f"{name} is not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise InputError(field, f"{name} is nested too deeply") from None
    except (ValueError, OverflowError, csv.Error, pa.ArrowException) as error:
        raise InputError(field, f"{name}: {error}") from None
    except OSError as error:  # pyarrow raises it for damaged files too, without errno
        raise InputError(field, f"{name}: {error.strerror or error}") from None


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    # Only \n ends a line: rows may contain U+0085 and U+2028.
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_repeats, parse_constant=_no_number)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object")
        rows.append(row)
    return rows


def _without_repeats(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"a name occurs twice: {sorted(name for name, _ in pairs)}")
    return row


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _read_csv(path: Path) -> list[Row]:
    """Every value is text: a CSV file has no types, and guessing would turn "007" into 7."""
    with path.open(encoding="utf-8-sig", newline="") as file, _long_csv_values():
        lines = csv.reader(file, strict=True)
        header = next(lines, [])
        if len(set(header)) != len(header):
            raise ValueError(f"two columns have the same name: {header}")
        rows = []
        for values in lines:
            if not values:
                continue
            if len(values) != len(header):
                raise ValueError(f"line {lines.line_num} has {len(values)} values for {len(header)} columns")
            rows.append(dict(zip(header, values, strict=True)))
    return rows


@contextmanager
def _long_csv_values() -> Iterator[None]:
    """Raises the limit of 131,072 characters per CSV value, which is global to the process."""
    before = csv.field_size_limit(BYTES_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_parquet(path: Path) -> list[Row]:
    file = pq.ParquetFile(path)
    if (values := file.metadata.num_rows * file.metadata.num_columns) > VALUES_LIMIT:
        raise ValueError(f"has {values} values; the limit is {VALUES_LIMIT}")
    rows: list[Row] = []
    size = 0
    for batch in file.iter_batches(batch_size=1024):
        size += batch.nbytes
        if size > BYTES_LIMIT:
            raise ValueError(f"has more than {BYTES_LIMIT} bytes")
        rows += batch.to_pylist()
    return rows
