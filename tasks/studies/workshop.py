"""What all studies share: the cell's model and rows, an adaptation with other settings, and a record of an accuracy."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.attribution.attribute import assemble as assemble_scores
from tasks.benchmarks.encoding import Encoded
from tasks.benchmarks.scoring import Answers, answers_unedited, answers_without
from tasks.benchmarks.table import Rows, encode_rows, read_split
from tasks.data import rows_of
from tasks.evidence.statistics import mcnemar, standard_error
from tasks.models.loading import load
from tasks.models.stack import DecoderStack, Projection
from tasks.pipeline.cell import Cell
from tasks.pipeline.files import read_jsonl
from tasks.pipeline.settings import Adaptation, Attribution, StudyRun
from tasks.pruning.grid import Grid
from tasks.pruning.masks import count, read_ranking, top_neurons
from tasks.pruning.recipe import choose, read_recipe
from tasks.pruning.searching import search_here
from tasks.sample import draw
from tasks.score import attributor_on


@dataclass(frozen=True)
class Record:
    """A row of a study's table, and a point of its plot.

    Attributes:
        label: what was varied.
        value: an accuracy, or what `Table.unit` of the study says; None: not possible on this
            benchmark, and `more` tells why.
        stderr: of the value, None where it has none.
        n: test rows.
        p: exact McNemar test against the unpruned model on the same rows; None where there is no such pair.
        x: where on a numeric axis it stands; None: a row of a dot plot.
        group: the line or colour it belongs to.
        more: further columns, as they are shown.
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


@dataclass(frozen=True)
class Choice:
    """What an adaptation chose: `neurons` of `projection` in one layer; the seconds of its scores and search."""

    layer: int
    fraction: float
    neurons: np.ndarray
    projection: Projection
    seconds: float | None = None
    accuracy: float | None = None

    def more(self) -> dict[str, Any]:
        found: dict[str, Any] = {"layer": self.layer, "fraction": self.fraction}
        return found | ({} if self.seconds is None else {"seconds": round(self.seconds, 1)})


class Workshop:
    """The model, the train split and the test rows of a cell, each read when it is first needed."""

    def __init__(self, cell: Cell, run: StudyRun):
        self.cell = cell
        self.run = run
        self.settings = cell.settings
        self._others: dict[str, tuple[pd.DataFrame, pd.DataFrame]] = {}

    @cached_property
    def loaded(self) -> Any:
        return load(self.cell.model_dir)

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
    def test(self) -> Rows:
        return self.encoded(read_split(self.cell.test, self.run.test or self.cell.benchmark_spec.limits.test))

    @cached_property
    def base(self) -> Answers:
        """The unpruned model's answers to the test rows."""
        return answers_unedited(self.stack, self.test.encoded)

    def rows_of(self, benchmark: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Train and test rows of another benchmark, from its source: they need no stage of their own."""
        if benchmark not in self._others:
            train, test, _ = rows_of(replace(self.cell, benchmark=benchmark))
            self._others[benchmark] = train, test
        return self._others[benchmark]

    def encoded(self, table: pd.DataFrame) -> Rows:
        return encode_rows(table, self.loaded.tokenizer, self.stack.context)

    # -- adaptation ---------------------------------------------------------------------------------------------------

    def adapt(
        self,
        adaptation: Adaptation | None = None,
        attribution: Attribution | None = None,
        train: pd.DataFrame | None = None,
    ) -> Choice:
        """Sample, score, search and choose as the steps do. What equals the cell's own settings is read from the cell.

        Args:
            train: another train split than the cell's.
        """
        adaptation = adaptation or self.settings.adaptation
        attribution = attribution or self.settings.attribution
        own = (adaptation, attribution) == (self.settings.adaptation, self.settings.attribution)
        if own and train is None:
            return self.chosen
        started = time.monotonic()
        table = draw(self.train if train is None else train, self.stack, self.loaded.tokenizer, adaptation)
        scores = self.scores(table, attribution)
        choice = self.search(self.encoded(table), scores, attribution.projection)
        return Choice(**vars(choice) | {"seconds": time.monotonic() - started})

    @cached_property
    def chosen(self) -> Choice:
        """What the cell's own steps chose."""
        recipe = read_recipe(self.cell.pruned)
        return Choice(recipe.layer, recipe.fraction, np.array(recipe.neurons), recipe.projection)

    @cached_property
    def ranking(self) -> np.ndarray:
        """The cell's own scores in the order that its settings ask for, [layers, width]."""
        return read_ranking(self.cell.scores).values

    def scores(self, table: pd.DataFrame, attribution: Attribution) -> np.ndarray:
        """What neurons are ordered by, float32 [layers, width]."""
        rows = json.loads(table.to_json(orient="records"))
        attributor = attributor_on(self.stack, self.loaded.tokenizer, rows, attribution)
        values = assemble_scores([attributor.compute(part) for part in attributor.parts])
        scores: np.ndarray = values["scores"].numpy()
        return np.abs(scores) if attribution.ranking == "absolute" else scores

    def search(self, rows: Rows, scores: np.ndarray, projection: Projection) -> Choice:
        """The choice on these rows, searched as the cell is: by its strategy and in its precision."""
        width, settings = scores.shape[1], self.settings.search
        grid = Grid(self.stack, rows.encoded, rows.gold, scores, projection)
        pair, _ = choose(
            search_here(grid, scores, settings.fractions, settings.strategy, self.settings.precision.search)
        )
        layer, fraction = int(pair["layer"]), float(pair["fraction"])
        neurons = top_neurons(scores[layer], count(fraction, width))
        return Choice(layer, fraction, neurons, projection, accuracy=float(pair["accuracy"]))

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def answers(self, choice: Choice, rows: Sequence[Encoded] | None = None) -> Answers:
        """The pruned model's answers, by default to the test rows."""
        rows = self.test.encoded if rows is None else rows
        return answers_without(self.stack, rows, choice.layer, [choice.neurons], projection=choice.projection)

    def right(self, answers: Answers, rows: Rows | None = None) -> npt.NDArray[np.bool_]:
        """Which rows the first model got right, bool [n]."""
        found: npt.NDArray[np.bool_] = answers.predicted()[0] == np.array((rows or self.test).gold)
        return found

    def base_record(self) -> Record:
        return accuracy_record("unpruned", self.right(self.base), None)

    def pruned_record(self, label: str, choice: Choice, **more: Any) -> Record:
        """The accuracy of a choice on the test rows."""
        right = self.right(self.answers(choice))
        return accuracy_record(label, right, self.right(self.base), **choice.more() | more)


def counts(answers: Answers) -> str:
    """How often the first model predicted each option, as `12:88`."""
    width = max(len(logprobs[0]) for logprobs in answers.logprobs)
    return ":".join(map(str, np.bincount(answers.predicted()[0], minlength=width)))


def accuracy_record(
    label: str, right: npt.NDArray[np.bool_], base: npt.NDArray[np.bool_] | None, **more: Any
) -> Record:
    """The record of an accuracy on n rows, against the unpruned model where `base` says what that got right."""
    n, accuracy = len(right), float(right.mean())
    x, group = more.pop("x", None), more.pop("group", "")
    p = None if base is None else mcnemar(right, base)["p"]
    return Record(label, accuracy, standard_error(accuracy, n), n, p, x, group, more)
