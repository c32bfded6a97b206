"""What all studies share: the cell's model and rows, adaptation with other settings, and records of results."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.benchmarks.encoding import Encoded
from tasks.benchmarks.prepare import prepare
from tasks.benchmarks.scoring import Answers, answers_unedited, answers_without
from tasks.benchmarks.table import Rows, encode_rows, read_split
from tasks.evidence.statistics import mcnemar, standard_error
from tasks.method.adaptation_set import draw, draw_unlabeled
from tasks.method.algorithm import Run, adapt, search_rows
from tasks.method.options import Adaptation, Attribution
from tasks.method.recipe import Recipe, make_recipe, read_recipe
from tasks.method.scores import Scores, read_scores
from tasks.models.hashing import recorded_hash
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell
from tasks.pipeline.runs import StudyRun
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_jsonl
from tasks.runtime.journal import Journal, journal_key
from tasks.runtime.work import run_here
from tasks.sparsity.calibration import Calibration

# Studies that change weights by more than zeroing some: the model is in memory, in float32.
CHANGES_WEIGHTS = ("compare", "calibration", "bridge", "timing")


@dataclass(frozen=True)
class Record:
    """A row of a study's table, and a point of its plot.

    Attributes:
        label: what was varied.
        value: in the unit of the study (`Study.unit`); None if not possible on this benchmark, with the reason in
            `more`.
        stderr: standard error of the value, if there is one.
        n: the number of test rows.
        p: exact McNemar test against the unpruned model on the same rows, if there is such a pair.
        x: the position on a numeric axis; None for a dot plot.
        group: the line or colour in the plot.
        more: further columns of the table.
    """

    label: str
    value: float | None
    stderr: float | None = None
    n: int | None = None
    p: float | None = None
    x: float | None = None
    group: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class StudyContext:
    """The model, the train split and the test rows of a cell, each read at its first use."""

    def __init__(self, cell: Cell, run: StudyRun):
        self.cell = cell
        self.run = run
        self.settings = cell.settings
        self.calibrations: dict[str, Calibration] = {}  # that parts of `calibration` share
        self._others: dict[str, tuple[pd.DataFrame, pd.DataFrame]] = {}

    @cached_property
    def loaded(self) -> Any:
        return load(self.cell.model_dir, wide=self.run.study in CHANGES_WEIGHTS)

    @cached_property
    def stack(self) -> DecoderStack:
        return DecoderStack(self.loaded.model)

    @cached_property
    def train(self) -> pd.DataFrame:
        return read_split(self.cell.train)

    @cached_property
    def samples(self) -> Rows:
        """The adaptation set of the cell."""
        return self.encoded(pd.DataFrame(read_jsonl(self.cell.samples)))

    @cached_property
    def unlabeled(self) -> Rows | None:
        """The train rows that the cell's criterion reads without their labels; None if it reads none."""
        if not self.settings.search.reads_unlabeled:
            return None
        return self.encoded(pd.DataFrame(read_jsonl(self.cell.unlabeled)))

    @cached_property
    def test(self) -> Rows:
        return self.encoded(read_split(self.cell.test, self.run.test or self.cell.benchmark_spec.limits.test))

    @cached_property
    def base(self) -> Answers:
        """The unpruned model's answers to the test rows."""
        return answers_unedited(self.stack, self.test.encoded)

    def rows_of(self, benchmark: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Train and test rows of another benchmark, from its source, without a stage of DVC."""
        if benchmark not in self._others:
            prepared = prepare(benchmark, self.settings.benchmarks[benchmark], self.cell.root)
            self._others[benchmark] = prepared.train, prepared.test
        return self._others[benchmark]

    def test_of(self, benchmark: str) -> Rows:
        """The test rows of the cell's benchmark or another one, as many as the study uses."""
        if benchmark == self.cell.benchmark:
            return self.test
        limit = self.run.test or self.settings.benchmarks[benchmark].limits.test
        return self.encoded(self.rows_of(benchmark)[1].head(limit))

    def encoded(self, table: pd.DataFrame) -> Rows:
        return encode_rows(table, self.loaded.tokenizer, self.stack.context)

    # -- adaptation ---------------------------------------------------------------------------------------------------

    def adapt(
        self,
        adaptation: Adaptation | None = None,
        attribution: Attribution | None = None,
        train: pd.DataFrame | None = None,
    ) -> tuple[Recipe, float | None]:
        """Samples, scores, searches and chooses as the steps do. With the cell's settings its recipe is returned.

        Args:
            train: a train split other than the cell's.

        Returns:
            The recipe, and the duration in seconds; None for the cell's recipe.
        """
        adaptation = adaptation or self.settings.adaptation
        attribution = attribution or self.settings.attribution
        own = (adaptation, attribution) == (self.settings.adaptation, self.settings.attribution)
        if own and train is None:
            return self.recipe, None
        started = time.monotonic()
        split = self.train if train is None else train
        table = draw(split, self.stack, self.loaded.tokenizer, adaptation)
        search, precision = self.settings.search, self.settings.precision.search
        unlabeled = None
        if search.reads_unlabeled:
            unlabeled = draw_unlabeled(split, table, self.stack, self.loaded.tokenizer, adaptation)
        inputs = [
            table.to_json(),
            unlabeled is not None and unlabeled.to_json(),
            attribution.model_dump(),
            search.model_dump(),
            precision,
        ]
        with self._resumable(inputs) as computing:
            adapted = adapt(
                self.stack,
                self.loaded.tokenizer,
                table,
                attribution=attribution,
                search=search,
                precision=precision,
                unlabeled=unlabeled,
                computing=computing,
            )
        return adapted.recipe, time.monotonic() - started

    @contextmanager
    def _resumable(self, inputs: list[Any]) -> Iterator[Callable[[Any], Run]]:
        """Keeps journals until the end: an adaptation that is killed goes on at the layer where it stopped."""
        key = journal_key([*inputs, recorded_hash(self.cell.model_dir), self.stack.products])
        journals: list[Journal] = []

        def computing(worker: Any) -> Run:
            path = self.cell.scratch / f"study-{self.run.study}-{key[:12]}-{len(journals)}.jsonl"
            journals.append(Journal(path, key))
            return partial(run_here, worker, journal=journals[-1])

        refused = None
        try:
            yield computing
        except InputError as error:
            refused = error
        for journal in journals:
            journal.remove()
        if refused:
            raise refused

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the cell's steps."""
        return read_recipe(self.cell.pruned)

    @cached_property
    def scores(self) -> Scores:
        """The cell's scores."""
        return read_scores(self.cell.scores)

    def search(self, rows: Rows) -> Recipe:
        """The recipe that the cell's scores and search settings choose on these rows."""
        search, precision = self.settings.search, self.settings.precision.search
        grid, _ = search_rows(
            self.stack, self.loaded.tokenizer, rows, self.scores, search, precision, unlabeled=self.unlabeled
        )
        return make_recipe(grid, self.scores)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def answers(self, recipe: Recipe, rows: Sequence[Encoded] | None = None) -> Answers:
        """The pruned model's answers, by default to the test rows."""
        rows = self.test.encoded if rows is None else rows
        return answers_without(self.stack, rows, recipe.layer, [np.array(recipe.neurons)], projection=recipe.projection)

    def correct(self, answers: Answers, rows: Rows | None = None) -> npt.NDArray[np.bool_]:
        """Which rows the first model answers correctly, bool [n]."""
        correct: npt.NDArray[np.bool_] = answers.predicted()[0] == np.array((rows or self.test).gold)
        return correct

    def base_record(self) -> Record:
        return accuracy_record("unpruned", self.correct(self.base), None)

    def pruned_record(self, label: str, recipe: Recipe, seconds: float | None = None, **more: Any) -> Record:
        """The accuracy of a recipe on the test rows."""
        right = self.correct(self.answers(recipe))
        return accuracy_record(label, right, self.correct(self.base), **pair_columns(recipe, seconds) | more)


def pair_columns(recipe: Recipe, seconds: float | None = None) -> dict[str, Any]:
    """Further columns of a record: layer and fraction, and the seconds of scores and search, if measured."""
    columns: dict[str, Any] = {"layer": recipe.layer, "fraction": recipe.fraction}
    return columns | ({} if seconds is None else {"seconds": round(seconds, 1)})


def counts(answers: Answers) -> str:
    """How often the first model predicted each option, as `12:88`."""
    width = max(len(logprobs[0]) for logprobs in answers.logprobs)
    return ":".join(map(str, np.bincount(answers.predicted()[0], minlength=width)))


def accuracy_record(
    label: str, right: npt.NDArray[np.bool_], base: npt.NDArray[np.bool_] | None, **more: Any
) -> Record:
    """The record of an accuracy on n rows, with p against the unpruned model if `base` has its correct rows."""
    n, accuracy = len(right), float(right.mean())
    x, group = more.pop("x", None), more.pop("group", "")
    p = None if base is None else mcnemar(right, base)["p"]
    return Record(label, accuracy, standard_error(accuracy, n), n, p, x, group, more)
