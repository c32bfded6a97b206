"""The hash of a model. A recipe names its base model by it, and a local model directory is pinned by it.

The step `model` computes the hash once and records it beside the weights; the other steps read the record. Whether the
bytes have changed since is left to DVC; `dsm verify` hashes all of them.
"""

import json
from pathlib import Path
from typing import Any

from tasks.models.weights import INDEX, RECORD, hashed_tensors, model_files
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, sha256_file, sha256_json, write_json

# Predictions do not depend on these files: the recipe of an exported model, the settings of text generation, and the
# index that says which file a tensor is in.
LEFT_OUT = {"pruned.json", "generation_config.json", INDEX}


def sha256_directory(directory: Path) -> str:
    """SHA-256 of the model in `directory`. It does not depend on the path or on the version of transformers.

    The hash covers exactly these parts of the files (`tasks.models.weights.model_files`):

    - name, type, shape and bytes of each tensor in the weights, but neither their distribution over files nor the
      metadata of the files;
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
    """The hash of the model in `directory` from its record, without reading the weights.

    If there is no record, the hash is computed.

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
        raise InputError("model", f"{path} is damaged; `dsm verify` checks the other files") from None
    there = _sizes(directory)
    if changed := sorted({*sizes.items()} ^ {*there.items()}):
        raise InputError(
            "model",
            f"{directory / changed[0][0]} is not as it was stored (its size); `dsm verify` checks the other files",
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
