"""A journal of the finished parts of a long step, so that a killed step resumes where it stopped."""

import json
import os
from pathlib import Path
from typing import Any

from tasks.runtime.files import sha256_file, sha256_json


def journal_key(inputs: Any) -> str:
    """Hash of a step's inputs (a JSON value) and of all code, so that parts computed by other code are not reused."""
    code = Path(__file__).parents[1]
    return sha256_json([inputs, {str(path.relative_to(code)): sha256_file(path) for path in code.rglob("*.py")}])


class Journal:
    """Finished parts by name, one JSON line each, flushed to disk.

    The first line holds a key, the hash of everything that the parts depend on. A file with another key is
    overwritten. An incomplete last line is dropped. Floats are restored exactly.
    """

    def __init__(self, path: Path, key: str):
        self._path = path
        self.parts: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read(key)
        if whole is None:
            path.write_bytes(json.dumps({"key": key}).encode() + b"\n")
        else:
            os.truncate(path, len(whole))

    def _read(self, key: str) -> bytes | None:
        """The bytes up to the last complete line; None if the file does not exist or has another key."""
        if not self._path.exists():
            return None
        data = self._path.read_bytes()
        data = data[: data.rfind(b"\n") + 1]
        head, *lines = data.split(b"\n")[:-1] or [b"{}"]
        try:
            if json.loads(head) != {"key": key}:
                return None
            self.parts = {part["name"]: part["value"] for part in map(json.loads, lines)}
        except (ValueError, KeyError, TypeError):
            self.parts = {}
            return None
        return data

    def put(self, name: str, value: Any) -> None:
        """Adds a finished part."""
        with self._path.open("ab") as file:
            file.write(json.dumps({"name": name, "value": value}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.parts[name] = value

    def remove(self) -> None:
        """Deletes the journal. Call it after the step's output is written."""
        self._path.unlink()
