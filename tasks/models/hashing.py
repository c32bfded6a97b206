"""The hash of a model: what a recipe is bound to, and what a local model directory is pinned by.

The step `model` computes it once and records it beside the weights; the other steps read the record. That the bytes are
still those of the record is what DVC looks after, and `dsm verify` hashes all of them.
"""

import json
from pathlib import Path
from typing import Any

from tasks.models.weights import INDEX, RECORD, hashed_tensors, model_files
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, sha256_file, sha256_json, write_json

# Not what a prediction depends on: the recipe that an exported model carries, how text is generated, which file a
# tensor is in.
LEFT_OUT = {"pruned.json", "generation_config.json", INDEX}


def sha256_directory(directory: Path) -> str:
    """SHA-256 of the model in `directory`, the same wherever it lies and whichever transformers version saved it.

    Over all of these (`tasks.models.weights.model_files`), and nothing else:

    - of each tensor in the weights its name, type, shape and bytes; not how they are spread over files, nor the
      metadata of these;
    - the values in config.json, without `transformers_version`;
    - name and bytes of the other *.json, *.model, *.txt and *.jinja files, those of the tokenizer, but for
      generation_config.json, the index of the weights and pruned.json.

    Raises:
        InputError: a file of the weights or config.json is damaged.
    """
    entries: list[tuple[Any, ...]] = []
    for path in model_files(directory):
        if path.suffix == ".safetensors":
            entries += hashed_tensors(path)
        elif path.name == "config.json":
            entries.append(("config.json", sha256_json(_config(path))))
        elif path.name not in LEFT_OUT:
            entries.append((path.name, sha256_file(path)))
    return sha256_json(sorted(entries, key=lambda entry: (len(entry), entry[0])))


def record_hash(directory: Path) -> str:
    """Hashes the model in `directory`, and writes the hash and the sizes of its files beside them."""
    digest = sha256_directory(directory)
    write_json(directory / RECORD, {"sha256": digest, "sizes": _sizes(directory)})
    return digest


def recorded_hash(directory: Path) -> str:
    """The hash of the model in `directory` from its record, without reading the weights; hashes where there is none.

    Raises:
        InputError: a file is missing, was added, or has another size than recorded.
    """
    path = directory / RECORD
    if not path.is_file():  # stored by an earlier version
        return sha256_directory(directory)
    try:
        record = read_json(path)
        known, sizes = str(record["sha256"]), dict(record["sizes"])
    except (ValueError, KeyError, TypeError):
        raise InputError("model", f"{path} is damaged; `dsm verify` says what else is") from None
    there = _sizes(directory)
    if changed := sorted({*sizes.items()} ^ {*there.items()}):
        raise InputError(
            "model", f"{directory / changed[0][0]} is not as it was stored (its size); `dsm verify` says what else is"
        )
    return known


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in model_files(directory)}


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"), parse_constant=str)  # Infinity is no JSON, but occurs
    except ValueError as error:
        raise InputError("model", f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError("model", f"{path} is not a mapping")
    return {key: value for key, value in config.items() if key != "transformers_version"}
