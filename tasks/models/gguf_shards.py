"""GGUF models that llama.cpp's gguf-split has split into several files. Only complete models are read."""

from pathlib import Path, PurePath
from typing import Any

from gguf import GGUFReader, GGUFValueType, GGUFWriter

from tasks.models.checks import listed
from tasks.models.gguf_header import Header, check_header
from tasks.runtime.errors import InputError
from tasks.sources.fetch import shard_names


def shards(file: Path, *, name: str, field: str) -> tuple[dict[Path, Header], list[str]]:
    """The shards of a GGUF model with their headers.

    Args:
        file: the whole model, or its first shard, with the other shards in the same directory.
        name: the user's name for the file, for messages.

    Returns:
        The headers of the existing files, and the names of the missing files.

    Raises:
        InputError: the file is not the first shard, or the shards disagree.
        ValueError: a header is damaged.
    """
    paths = [file.parent / shard for shard in shard_names(file.name)]
    names = shard_names(PurePath(name).name)
    if len(names) != len(paths):
        names = [path.name for path in paths]
    headers = {path: check_header(path) for path in paths if path.is_file()}
    for number, (label, path) in enumerate(zip(names, paths, strict=True)):
        if path in headers:
            _check_place(headers[path], number, len(paths), label, field)
    absent = [label for label, path in zip(names, paths, strict=True) if path not in headers]
    if len(paths) > 1:
        _check_agreement(headers, absent, dict(zip(paths, names, strict=True)), field)
    return headers, absent


def _check_place(header: Header, number: int, count: int, label: str, field: str) -> None:
    """Checks that a shard's header agrees with the numbers in its name. A name without numbers means a whole model."""
    says = header.numbers.get("split.no", 0) + 1, header.shards
    if says == (number + 1, count):
        return
    if count > 1:
        raise InputError(field, f"{label} says that it is shard {says[0]} of {says[1]} (split.no, split.count)")
    first = f"-00001-of-{says[1]:05d}.gguf"
    raise InputError(
        field,
        f"{label} is shard {says[0]} of {says[1]} of a model (split.no, split.count); name the first one, whose name "
        f"ends with {first}, and keep the other ones beside it",
    )


def _check_agreement(headers: dict[Path, Header], absent: list[str], labels: dict[Path, str], field: str) -> None:
    seen: dict[str, str] = {}
    for path, header in headers.items():
        for tensor in header.shapes:
            if tensor in seen:
                raise InputError(field, f"the tensor {tensor} is in two shards, {seen[tensor]} and {labels[path]}")
            seen[tensor] = labels[path]
    for path, header in headers.items():
        announced = header.numbers.get("split.tensors.count", len(seen))
        if not absent and announced != len(seen):
            raise InputError(
                field,
                f"{labels[path]} announces {announced} tensors in all shards (split.tensors.count), but they have "
                f"{len(seen)}",
            )
    layers = max(header.layers for header in headers.values())
    if layers > len(seen):
        without = f"; {listed(absent)} must be beside it" if absent else ""
        raise InputError(field, f"{next(iter(labels.values()))}: {layers} layers, but {len(seen)} tensors{without}")


def write_joined(paths: list[Path], target: Path, *, field: str) -> None:
    """Writes the shards as one GGUF file, with the fields of the first one and the tensors of all.

    Raises:
        InputError: a field of another shard differs from that of the first one.
    """
    readers = [GGUFReader(path) for path in paths]
    fields = {name: entry for name, entry in readers[0].fields.items() if _says_something(name)}
    for number, reader in enumerate(readers[1:], 2):
        if reader.endianess != readers[0].endianess:
            raise InputError(field, f"shard {number} of {len(readers)} has a different byte order from the first one")
        for name, entry in filter(lambda item: _says_something(item[0]), reader.fields.items()):
            if name not in fields or entry.contents() != fields[name].contents():
                raise InputError(field, f"shard {number} of {len(readers)} has a different {name} from the first one")
    writer = GGUFWriter(target, str(fields.pop("general.architecture").contents()), endianess=readers[0].endianess)
    for name, entry in fields.items():
        _add(writer, name, entry)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.data, tensor_endianess=readers[0].endianess)
    finally:
        writer.close()


def _says_something(name: str) -> bool:
    """Whether a field describes the model, not its file. The joined file has the default alignment."""
    return not name.startswith(("GGUF.", "split.")) and name != "general.alignment"


def _add(writer: GGUFWriter, name: str, entry: Any) -> None:
    kind = entry.types[0]
    if kind != GGUFValueType.ARRAY:
        writer.add_key_value(name, entry.contents(), kind)
    elif entry.data:  # the writer has no type for an empty list, which means the same as a missing field
        writer.add_key_value(name, entry.contents(), kind, sub_type=entry.types[-1])
