"""The header of a GGUF file, looked through before a library loops over it: its counts and lengths must fit the file.

The reader of the package `gguf` believes them, and makes a handful of objects for every value.
"""

import math
import struct
from pathlib import Path
from typing import BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

VALUES_LIMIT = 4_000_000  # in all lists together; a vocabulary of 262 144 tokens has some three of that length
NAME_LIMIT = 1 << 16  # bytes
DIMENSIONS = 4
STRING, LIST = 8, 9  # numbers of types
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type


class _Header:
    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._size = size
        self._values = 0
        self._order = "<"

    def check(self) -> None:
        if self._take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version & 0xFFFF == 0:  # written on a machine of the other byte order
            self._order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not known")
        tensors, fields = self._number("Q"), self._number("Q")
        # The shortest tensor info has 24 bytes, the shortest field 13.
        if tensors * 24 + fields * 13 > self._left():
            raise ValueError(f"{tensors} tensors and {fields} fields do not fit in it")
        layers = 0
        for _ in range(fields):
            name = self._take(self._length(NAME_LIMIT))
            value = self._value(self._number("I"))
            if name.endswith(b".block_count") and value is not None:
                layers = value
        if layers > tensors:
            raise ValueError(f"{layers} layers, but {tensors} tensors")
        total = 0
        for _ in range(tensors):
            self._take(self._length(NAME_LIMIT))
            dimensions = self._number("I")
            if dimensions > DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            count = math.prod(self._number("Q") for _ in range(dimensions))
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType(self._number("I"))]
            self._number("Q")
            total += -(-count // block) * width
            if total > self._size:
                raise ValueError("its tensors have more bytes than it")

    def _left(self) -> int:
        return self._size - self._file.tell()

    def _take(self, count: int) -> bytes:
        if count > self._left():
            raise ValueError(f"{count} bytes are announced where {self._left()} are left")
        return self._file.read(count)

    def _number(self, kind: str) -> int:
        number: int = struct.unpack(self._order + kind, self._take(struct.calcsize(kind)))[0]
        return number

    def _length(self, limit: int) -> int:
        length = self._number("Q")
        if length > min(limit, self._left()):
            raise ValueError(f"a text of {length} bytes")
        return length

    def _value(self, kind: int) -> int | None:
        """Steps over a value; returns it if it is a whole number of four bytes."""
        if kind == LIST:
            inner, count = self._number("I"), self._number("Q")
            self._values += count
            if self._values > VALUES_LIMIT:
                raise ValueError(f"lists of {self._values} values; {VALUES_LIMIT} are the limit")
            if inner in WIDTHS:
                self._skip(count * WIDTHS[inner])
            elif inner == STRING:
                for _ in range(count):
                    self._skip(self._number("Q"))
            else:
                raise ValueError(f"a list of values of type {inner}")
        elif kind == STRING:
            self._skip(self._number("Q"))
        elif kind in (4, 5):
            return self._number("I")
        elif kind in WIDTHS:
            self._skip(WIDTHS[kind])
        else:
            raise ValueError(f"a value of the unknown type {kind}")
        return None

    def _skip(self, count: int) -> None:
        if count > self._left():
            raise ValueError(f"{count} bytes are announced where {self._left()} are left")
        self._file.seek(count, 1)


def check_header(file: Path) -> None:
    """Raises ValueError if the header announces what the file cannot hold, or more than any model has."""
    with file.open("rb") as opened:
        _Header(opened, file.stat().st_size).check()
