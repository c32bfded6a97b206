"""Several recipes on the test rows by one pass over each pack: for studies whose recipes differ in their layers."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.benchmarks.answering import Answering
from tasks.benchmarks.answering import Part as PackPart
from tasks.benchmarks.scoring import Answers
from tasks.method.algorithm import Run
from tasks.method.neurons import random_neurons
from tasks.method.precision import settle_on_rows
from tasks.method.recipe import Recipe
from tasks.models.products import Precision
from tasks.models.stack import Projection
from tasks.studies.context import StudyContext

SAMPLE = 32  # rows on which a lower precision is tested
NOTHING = np.array([], dtype=np.int64)


@dataclass(frozen=True)
class Model:
    """A pruned model: silenced rows of a projection of one layer, and the width from which random ones are drawn."""

    layer: int
    neurons: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class Part:
    """The test rows of one pack, answered by the unpruned model, the pruned ones, and a random control of each."""

    pack: int
    projection: Projection
    models: tuple[Model, ...]
    precision: Precision = "float32"

    def __str__(self) -> str:
        digest = hashlib.sha256(repr((self.projection, self.models)).encode()).hexdigest()
        return f"test rows {self.pack} {self.precision} {digest}"


@dataclass(frozen=True)
class HeldOutResults:
    """What the models answer correctly, bool [n] each: as the most probable option, and in words (`exact`)."""

    base: npt.NDArray[np.bool_]
    base_exact: npt.NDArray[np.bool_]
    pruned: npt.NDArray[np.bool_]
    pruned_exact: npt.NDArray[np.bool_]
    random: npt.NDArray[np.bool_]


# Recipes -> their results on the test rows of the study.
EvaluateRecipes = Callable[[Sequence[Recipe]], list[HeldOutResults]]


class HeldOutRows:
    """Computes the answers to the test rows of a study, in its worker; `evaluate` collects them."""

    def __init__(self, context: StudyContext):
        self._context = context
        self._last: tuple[tuple[Projection, tuple[Model, ...]], Answering] | None = None

    @property
    def packs(self) -> tuple[int, int]:
        """The number of packs, and how many of the first packs are the sample for a lower precision."""
        answering = self._answering("gate_proj", ())
        return len(answering.sizes), answering.sampled

    def compute(self, part: Part) -> dict[str, Any]:
        """Indices of rows, and which of the 1 + 2 C models answer each correctly and exactly; the predictions."""
        value = self._answering(part.projection, part.models).compute(PackPart(part.pack, part.precision))
        predicted = Answers([np.array(row) for row in value["logprobs"]], []).predicted()
        gold = np.array(self._context.test.gold)[value["rows"]]
        return {
            "rows": value["rows"],
            "right": (predicted == gold).T.tolist(),
            "exact": value["exact"],
            "predicted": predicted.tolist(),
        }

    def _answering(self, projection: Projection, models: tuple[Model, ...]) -> Answering:
        if self._last is None or self._last[0] != (projection, models):
            context = self._context
            # The unpruned model: no neurons are silenced, in the last layer, where runs are cheapest.
            edits = [(len(context.stack) - 1, [NOTHING])]
            for number, model in enumerate(models):
                control = random_neurons(model.width, len(model.neurons), number)
                edits.append((model.layer, [np.array(model.neurons, dtype=np.int64), control]))
            tokenizer = context.loaded.tokenizer
            answering = Answering(context.stack, tokenizer, context.test, edits, projection, SAMPLE)
            self._last = (projection, models), answering
        return self._last[1]


def evaluate(
    run: Run, packs: tuple[int, int], recipes: Sequence[Recipe], precision: Precision, advance: Callable[[int], None]
) -> list[HeldOutResults]:
    """The results of each recipe on all test rows.

    Random controls have as many neurons of the same layer, drawn with the recipe's position in the list as the seed.

    Args:
        run: computes parts of `HeldOutRows`.
        packs: `HeldOutRows.packs`.
        precision: bfloat16 is used where it is faster and changes at most 0.5 % of the predictions on a sample.
    """
    results: dict[int, HeldOutResults] = {}
    for projection in dict.fromkeys(recipe.projection for recipe in recipes):
        own = [number for number, recipe in enumerate(recipes) if recipe.projection == projection]
        models = tuple(Model(recipes[i].layer, tuple(recipes[i].neurons), recipes[i].d_ff) for i in own)

        def predictions(chosen: Precision, projection: Projection = projection, models: Any = models) -> np.ndarray:
            values = run([Part(pack, projection, models, chosen) for pack in range(packs[1])])
            return np.concatenate([np.array(value["predicted"]) for value in values.values()], axis=1)

        settled = settle_on_rows(precision, predictions)
        parts = [Part(pack, projection, models, settled.precision) for pack in range(packs[0])]
        right, exact = _in_order(run(parts, advance=advance).values())
        for position, number in enumerate(own):
            pruned, control = 1 + 2 * position, 2 + 2 * position
            results[number] = HeldOutResults(right[0], exact[0], right[pruned], exact[pruned], right[control])
    return [results[number] for number in range(len(recipes))]


def _in_order(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """`right` and `exact` of all parts, bool [models, n], in the order of the rows."""
    values = list(values)
    order = np.argsort(np.concatenate([value["rows"] for value in values]))

    def joined(key: str) -> np.ndarray:
        return np.concatenate([np.array(value[key], dtype=bool) for value in values])[order].T

    return joined("right"), joined("exact")
