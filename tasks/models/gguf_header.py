"""A check of the header of a GGUF file before a library loops over it: its counts and lengths must fit the file.

The reader of the package `gguf` trusts them, and creates several objects for every value.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

VALUES_LIMIT = 4_000_000  # in all lists together; a vocabulary of 262 144 tokens has about three lists of that length
NAME_LIMIT = 1 << 16  # bytes
DIMENSIONS = 4
STRING, LIST = 8, 9  # numbers of types
WHOLE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}  # struct formats of integers, by type
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value, by its type


@dataclass(frozen=True)
class Header:
    """The contents of the header of a GGUF file that are used here.

    Attributes:
        shapes: the shape of each tensor, outermost dimension first, as in PyTorch.
        numbers: the fields with an integer value.
    """

    shapes: dict[str, tuple[int, ...]]
    numbers: dict[str, int]

    @property
    def shards(self) -> int:
        return self.numbers.get("split.count", 1)

    @property
    def layers(self) -> int:
        return max((n for name, n in self.numbers.items() if name.endswith(".block_count")), default=0)


class _Reader:
    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._size = size
        self._values = 0
        self._order = "<"

    def header(self) -> Header:
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
        header = Header({}, {})
        for _ in range(fields):
            name = self._name()
            value = self._value(self._number("I"))
            if value is not None:
                header.numbers[name] = value
        total, twice = 0, list[str]()
        for _ in range(tensors):
            name = self._name()
            if name in header.shapes:
                twice.append(name)
            dimensions = self._number("I")
            if dimensions > DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            shape = [self._number("Q") for _ in range(dimensions)]
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType(self._number("I"))]
            self._number("Q")
            total += -(-math.prod(shape) // block) * width
            if total > self._size:
                raise ValueError("its tensors have more bytes than it")
            header.shapes[name] = tuple(reversed(shape))
        if twice:
            raise ValueError(f"it has two tensors named {twice[0]}")
        if header.layers > tensors and header.shards <= 1:
            raise ValueError(f"{header.layers} layers, but {tensors} tensors")
        return header

    def _left(self) -> int:
        return self._size - self._file.tell()

    def _take(self, count: int) -> bytes:
        if count > self._left():
            raise ValueError(f"{count} bytes are announced where {self._left()} are left")
        return self._file.read(count)

    def _number(self, kind: str) -> int:
        number: int = struct.unpack(self._order + kind, self._take(struct.calcsize(kind)))[0]
        return number

    def _name(self) -> str:
        return self._take(self._length(NAME_LIMIT)).decode()

    def _length(self, limit: int) -> int:
        length = self._number("Q")
        if length > min(limit, self._left()):
            raise ValueError(f"a text of {length} bytes")
        return length

    def _value(self, kind: int) -> int | None:
        """Skips a value; returns it if it is an integer."""
        if kind == LIST:
            inner, count = self._number("I"), self._number("Q")
            self._values += count
            if self._values > VALUES_LIMIT:
                raise ValueError(f"lists of {self._values} values; the limit is {VALUES_LIMIT}")
            if inner in WIDTHS:
                self._skip(count * WIDTHS[inner])
            elif inner == STRING:
                for _ in range(count):
                    self._skip(self._number("Q"))
            else:
                raise ValueError(f"a list of values of type {inner}")
        elif kind == STRING:
            self._skip(self._number("Q"))
        elif kind in WHOLE:
            return self._number(WHOLE[kind])
        elif kind in WIDTHS:
            self._skip(WIDTHS[kind])
        else:
            raise ValueError(f"a value of the unknown type {kind}")
        return None

    def _skip(self, count: int) -> None:
        if count > self._left():
            raise ValueError(f"{count} bytes are announced where {self._left()} are left")
        self._file.seek(count, 1)


def check_header(file: Path) -> Header:
    """Reads the header; raises ValueError if its counts do not fit into the file or exceed those of real models."""
    with file.open("rb") as opened:
        return _Reader(opened, file.stat().st_size).header()
