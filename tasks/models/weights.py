"""The files of a model directory that make up the model, and the tensors in its safetensors files."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.runtime.errors import InputError
from tasks.sources.fetch import CHUNK, MODEL_FILES

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
RECORD = "model.sha256.json"  # what `tasks.models.hashing` writes; not a part of the model
HEADER_LIMIT = 32 << 20  # bytes: 200 000 tensors; the format allows more than three times as much


@dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file: its bytes are those from `start` to `end` of the file."""

    name: str
    dtype: str
    shape: list[int]
    start: int
    end: int


def weight_files(directory: Path) -> list[Path]:
    """model.safetensors, or else the shards that its index names: what transformers loads. Empty if there are none.

    Other safetensors files beside them (`consolidated.safetensors`) are copies of the same weights.

    Raises:
        InputError: the index cannot be read or names a missing shard, or there is an adapter.
    """
    _refuse_adapter(directory)
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError("model", f"{index} is not an index of weights") from None
    for name in names:
        if (
            not isinstance(name, str)
            or "\0" in name
            or Path(name).name != name
            or not name.endswith(".safetensors")
            or not (directory / name).is_file()
        ):
            raise InputError("model", f"{INDEX} names the shard {name!r}, which is not in {directory}")
    return [directory / name for name in names]


def _refuse_adapter(directory: Path) -> None:
    """Refuses an adapter: transformers would add it to the weights, although it may be merged into them already."""
    if not (directory / ADAPTER).is_file():
        return
    if (directory / WEIGHTS).is_file() or (directory / INDEX).is_file():
        held = f"has an adapter ({ADAPTER}) beside the weights of a model, so it is unclear which to use"
        advice = f"merge it into them, or remove {ADAPTER} to use the weights as they are"
    else:
        held = f"has only an adapter ({ADAPTER}), not the weights of a model"
        advice = "merge it into its base model"
    raise InputError("model", f"{directory} {held}; {advice} (peft: merge_and_unload, then save_pretrained)")


def model_files(directory: Path) -> list[Path]:
    """The files of a plain model directory: the weights, and the JSON and tokenizer files beside them, by name.

    No code, no pickles, no folders, no second copies of the weights.

    Raises:
        InputError: see `weight_files`.
    """
    weights = weight_files(directory)
    others = [
        path
        for path in directory.iterdir()
        if path.is_file()
        and path.suffix != ".safetensors"
        and path.name != RECORD
        and any(path.match(pattern) for pattern in MODEL_FILES)
    ]
    if directory / WEIGHTS in weights:
        others = [path for path in others if path.name != INDEX]
    return sorted([*weights, *others])


def tensors(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        InputError: the file is damaged or not of this format.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, HEADER_LIMIT):
                raise ValueError(f"its header would have {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        sorted_tensors = sorted(
            (_tensor(name, entry, 8 + length) for name, entry in header.items()),
            key=lambda tensor: (tensor.start, tensor.end),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError("model", f"{path} is not a safetensors file: {error}") from None
    end = 8 + length
    for tensor in sorted_tensors:  # the format has no gaps and no overlaps, so that no byte is read twice
        if tensor.start != end:
            raise InputError("model", f"{path} is damaged: {tensor.name!r} does not begin where the one before it ends")
        end = tensor.end
    if end != size:
        where = "before" if end > size else "after"
        raise InputError("model", f"{path} is damaged: it ends {where} its last tensor")
    return sorted_tensors


def _tensor(name: str, entry: dict[str, Any], offset: int) -> Tensor:
    """One entry of a header; `offset` is where the bytes of the tensors begin in the file."""
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or not all(
        type(number) is int and number >= 0 for number in [*shape, start]
    ):
        raise ValueError(f"the entry of {name!r} does not describe a tensor")
    if type(end) is not int or end < start:
        raise ValueError(f"{name!r} ends before it begins")
    return Tensor(name, entry["dtype"], shape, offset + start, offset + end)


def hashed_tensors(path: Path) -> Iterator[tuple[str, str, list[int], str]]:
    """(name, type, shape, SHA-256 of the bytes) of each tensor of a safetensors file, which is read once, in pieces.

    Raises:
        InputError: see `tensors`.
    """
    with path.open("rb") as file:
        for tensor in tensors(path):
            file.seek(tensor.start)
            digest, left = hashlib.sha256(), tensor.end - tensor.start
            while left:
                piece = file.read(min(left, CHUNK))
                if not piece:
                    raise InputError("model", f"{path} is damaged: it ends before its last tensor")
                digest.update(piece)
                left -= len(piece)
            yield tensor.name, tensor.dtype, tensor.shape, digest.hexdigest()
