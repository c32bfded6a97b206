"""What params.yaml declares of a benchmark."""

import datetime
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tasks.runtime.fields import Count, Fraction, Seed, Strict
from tasks.sources.kinds import RowsSource

DATE = "2024-07-26"  # what a chat template is told is today: the date that the Llama 3 models have for want of another


class SplitRows(Strict):
    """The rows of one split: a source, a filter, and templates over its columns.

    `fields` are what prompt and options are made of; without any, that is the columns themselves.
    """

    source: RowsSource
    where: dict[str, list[str | int | float | bool]] = Field(default={})
    fields: dict[str, str] = Field(default={})
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
    return "held_out" if isinstance(value, HeldOut) or (isinstance(value, dict) and "split" in value) else "rows"


# Told apart by `split`, so that a mistake in one is not reported as a field missing from the other.
TestSplit = Annotated[
    Annotated[SplitRows, Tag("rows")] | Annotated[HeldOut, Tag("held_out")], Discriminator(_kind_of_test)
]


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

    train: SplitRows
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
