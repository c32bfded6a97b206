"""A benchmark as params.yaml declares it."""

import datetime
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tasks.runtime.fields import Count, Fraction, Seed, Strict
from tasks.sources.kinds import RowsSource

ANY = "any"  # the `gold` of free answers
EVERY = -1  # the index of the right option of a row with free answers: every option is an accepted answer
DATE = "2024-07-26"  # today's date for chat templates; the default of the Llama 3 templates


class SplitRows(Strict):
    """The rows of one split: a source, a filter, and templates over its columns.

    Prompt and options are templates over `fields`, or over the columns if there are no fields.

    Attributes:
        gold: a template over the columns that gives the label of the right option; or `any` for free answers.
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
    """A test split drawn from the train rows by seeded hashes of prompt and options: see `benchmarks.splits`.

    Attributes:
        split: the number of rows (the maximum, if rows are in groups) or their approximate fraction. When rows are
            added or removed, a fraction moves no other row between the splits; a count moves as few as possible.
    """

    split: Annotated[
        Annotated[Count, Tag("count")] | Annotated[Fraction, Tag("fraction")], Discriminator(_kind_of_split)
    ]
    seed: Seed = 0


def _kind_of_test(value: Any) -> str:
    return "held_out" if isinstance(value, HeldOut) or (isinstance(value, dict) and "split" in value) else "rows"


# Distinguished by `split`, so that an error in one is not reported as a missing field of the other.
TestSplit = Annotated[
    Annotated[SplitRows, Tag("rows")] | Annotated[HeldOut, Tag("held_out")], Discriminator(_kind_of_test)
]


class Limits(Strict):
    """The number of test rows that `evaluate` and `transfer` use; 0 skips the transfer check."""

    test: Count
    transfer: int = Field(ge=0, lt=2**31)


# Either a list of templates, or one template `{{ expression }}` that gives the list of a row.
def _kind_of_list(value: Any) -> str:
    return "one" if isinstance(value, str) else "several"


Options = Annotated[
    Annotated[str, Tag("one")] | Annotated[list[str], Field(min_length=2), Tag("several")],
    Discriminator(_kind_of_list),
]
Labels = Annotated[Annotated[str, Tag("one")] | Annotated[list[str], Tag("several")], Discriminator(_kind_of_list)]


class BenchmarkSpec(Strict):
    """A multiple-choice benchmark as data, or one with free answers.

    With free answers (`gold: any`) the options are the accepted answers, one or more in a row, and each is right. Only
    exact match is defined, so such a benchmark is not used in a cell, but by the study `generation` and for its
    prompts.

    Attributes:
        prompt: a Jinja template over the fields of a row. As in lm-evaluation-harness, white space at its end is
            tokenized with the options.
        options: the possible answers: a list of templates over the same fields, or one template that gives the list.
        labels: the gold value of each option; by default its number, from 0. A template uses the columns.
        group: a template over the columns. Rows with the same value are never split between train and test.
        chat_template: apply the tokenizer's chat template; the prompt is one user turn.
        date: today's date for the chat template, fixed so that prompts are the same every day.

    Example:
        >>> split = {"source": {"kind": "path", "path": "quiz.jsonl", "sha256": "0" * 64}, "gold": "{{ right }}"}
        >>> spec = BenchmarkSpec(train=split, test={"split": 40}, prompt="{{ question }}", options=[" yes", " no"],
        ...                      limits={"test": 40, "transfer": 0})
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
    def free_answers(self) -> bool:
        """Whether the options are accepted answers, each of which is right."""
        return self.train.gold == ANY

    @property
    def chat(self) -> str | bool:
        """The date for the chat template; False without a chat template."""
        return self.date if self.chat_template else False

    @field_validator("date", mode="before")
    @classmethod
    def _is_a_date(cls, value: Any) -> Any:
        if isinstance(value, datetime.date):
            raise ValueError(f'must be in quotes, "{value}": DVC cannot read a date without them')
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
    def _free_answers_have_no_labels(self) -> "BenchmarkSpec":
        if not isinstance(self.test, HeldOut) and (self.test.gold == ANY) != self.free_answers:
            raise ValueError(f"gold must be {ANY} in both train and test, or in neither")
        if self.free_answers and (self.labels is not None or not isinstance(self.options, str)):
            what = "labels: free answers have none" if self.labels is not None else "options: must be one template"
            raise ValueError(f"{what}; with gold: {ANY} it gives the list of accepted answers")
        return self

    @model_validator(mode="after")
    def _options_are_distinct(self) -> "BenchmarkSpec":
        options, labels = self.options, self.labels
        if isinstance(options, list) and isinstance(labels, list) and len(labels) != len(options):
            raise ValueError(f"labels has {len(labels)} values for {len(options)} options; one per option is needed")
        for name, values in (("options", options), ("labels", labels)):
            if isinstance(values, list) and len(set(values)) != len(values):
                raise ValueError(f"{name} holds a value twice: {values}")
        if isinstance(options, list) and any(not option.strip() for option in options):
            raise ValueError("options holds an empty option")
        if not isinstance(self.test, HeldOut) and bool(self.train.fields) != bool(self.test.fields):
            raise ValueError("train and test must both have fields, or neither: they share the prompt")
        return self
