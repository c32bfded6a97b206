"""The recipe, pruned.json: the model, the layer and the neurons that are silenced, and how they were chosen.

The recipe is the pruned model: its weights are computed from the recipe and the base model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field, ValidationError, model_validator

from tasks.method.neurons import prominent_neurons
from tasks.method.pairs import UNPRUNED
from tasks.method.scores import Scores
from tasks.models.projections import Projection
from tasks.runtime.errors import InputError
from tasks.runtime.fields import Sha256, Strict

ACCURACY = ("accuracy", "margin")  # the keys of the paper's criterion: columns of the grid, the most important first
EXACT_MATCH = ("exact_match", "margin")
RULES = {  # names of keys; other keys have the names of their columns
    "margin": "mean gold margin",
    "gold_logprob": "mean gold log-probability",
    "information": "mutual information",
    "within_one_error": "within one standard error of the best accuracy",
    "worse_half": "accuracy of the worse half",
    "-fraction": "smaller fraction",
    "-layer": "lower layer",
}

SIZE_LIMIT = 16 << 20  # bytes; the neurons of the widest known layer need less than 1 MiB


class Step(Strict):
    """One tie-break rule: its best value, and the number of remaining pairs that have it."""

    rule: str
    best: float
    tied: int


class AdaptationResult(Strict):
    """Accuracy and mean gold margin on the adaptation set, pruned and unpruned; None if it has no labels."""

    n: int
    accuracy: float | None
    margin: float | None
    base_accuracy: float | None
    base_margin: float | None


class Recipe(Strict):
    """The pruned model as data.

    `neurons` are rows of `projection` in layer `layer`, ascending. `d_ff` is the number of its rows: the MLP's width,
    or the model's width for down_proj. The same rows of gate_proj and of up_proj silence the same neurons.
    `base_sha256` is the hash of the base model's directory (`tasks.models.hashing`); None for a model in memory only.
    """

    format: Literal[1] = 1
    model: str
    benchmark: str
    base_sha256: Sha256 | None = None
    projection: Projection = "gate_proj"
    layer: int = Field(ge=0)
    fraction: float = Field(gt=0, lt=1)
    layers: int = Field(gt=0)
    d_ff: int = Field(gt=0)
    neurons: list[int]
    adaptation: AdaptationResult
    trail: list[Step]

    @model_validator(mode="after")
    def _in_range(self) -> "Recipe":
        if self.layer >= self.layers:
            raise ValueError(f"layer {self.layer} of a model with {self.layers} layers")
        if self.neurons != sorted(set(self.neurons)) or not all(0 <= j < self.d_ff for j in self.neurons):
            raise ValueError(f"neurons must be ascending, without repeats, from 0 to {self.d_ff - 1}")
        return self


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file.

    Raises:
        InputError: the file does not exist, or is not a recipe.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(str(path), "is not a file")
        if path.stat().st_size > SIZE_LIMIT:
            raise InputError(str(path), f"has {path.stat().st_size} bytes; the limit is {SIZE_LIMIT}")
        return Recipe.model_validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise InputError(str(path), error.strerror or "cannot be read") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}{': ' + field if field else ''}", first["msg"].removeprefix("Value error, ")) from None


def choose(grid: pd.DataFrame, keys: Sequence[str] | None = None) -> tuple[dict[str, Any], list[Step]]:
    """The chosen row of the grid, and the rules that led to it.

    The paper says only "highest accuracy", but accuracy on ten examples has only eleven levels. Ties are broken by the
    higher mean gold margin, then the smaller fraction, then the lower layer.

    Args:
        keys: columns of the grid. The row with the largest value of the first one is chosen; ties are broken by the
            next ones. `-fraction` prefers the smallest fraction. By default, the keys of the grid's criterion; accuracy
            and margin if the grid names no criterion.
    """
    left = grid[grid.layer != UNPRUNED]
    trail = []
    for key in dict.fromkeys((*(keys or grid.attrs.get("keys", ACCURACY)), "-fraction", "-layer")):
        column = left[key.removeprefix("-")]
        value = column.min() if key.startswith("-") else column.max()
        left = left[column == value]
        trail.append(Step(rule=RULES.get(key, key.replace("_", " ")), best=float(value), tied=len(left)))
        if len(left) == 1:
            break
    # Not iloc[0]: a series has one type, so all values would be floats, and the layer 4.0.
    return {str(name): value for name, value in left.head(1).to_dict("records")[0].items()}, trail


def make_recipe(
    grid: pd.DataFrame,
    scores: Scores,
    *,
    model: str = "",
    benchmark: str = "",
    base_sha256: str | None = None,
) -> Recipe:
    """The recipe of the pair that `choose` selects from the grid.

    Args:
        model, benchmark: names, for the reader of the recipe.
        base_sha256: hash of the model's directory. Without it, the recipe applies only to models in memory.
    """
    chosen, trail = choose(grid)
    unpruned = grid[grid.layer == UNPRUNED].iloc[0]
    measured = (chosen["accuracy"], chosen["margin"], unpruned.accuracy, unpruned.margin)
    accuracy, margin, base_accuracy, base_margin = (None if pd.isna(value) else float(value) for value in measured)
    layers, width = scores.values.shape
    layer, fraction = int(chosen["layer"]), float(chosen["fraction"])
    return Recipe(
        model=model,
        benchmark=benchmark,
        base_sha256=base_sha256,
        projection=scores.projection,
        layer=layer,
        fraction=fraction,
        layers=layers,
        d_ff=width,
        neurons=prominent_neurons(scores.ranked[layer], fraction).tolist(),
        adaptation=AdaptationResult(
            n=scores.header["n"],
            accuracy=accuracy,
            margin=margin,
            base_accuracy=base_accuracy,
            base_margin=base_margin,
        ),
        trail=trail,
    )
