"""Algorithm 1 of 2507.09185: a model and ten examples go in, the neurons of one layer to silence come out.

1. `score_neurons`: integrated gradients of every neuron on the examples' prompts (Eq. 4 and 5). No label is used.
2. `search_grid`: accuracy and gold margin of (layer, fraction) pairs on the same examples, with their labels.
3. `choose`: the most accurate pair; ties are broken by rule. `search.criterion` names other rules.
4. `make_recipe`: the neurons of that pair. The recipe is the pruned model.

`adapt` does all four in memory. The steps `score`, `search` and `prune` call the same functions, with a `Run` that
computes the parts of the work on several workers and keeps a journal.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pandas as pd

from tasks.benchmarks.table import Rows, encode_rows, exact_on
from tasks.method.attribute import Part as Layers
from tasks.method.attribute import assemble as assemble_scores
from tasks.method.attribute import attributor_on, describe
from tasks.method.criteria import ranked_by
from tasks.method.grid import Grid, Part, Value, assemble, parts_of
from tasks.method.neurons import count
from tasks.method.options import Attribution, Search
from tasks.method.pairs import Pairs, every_pair
from tasks.method.precision import Settled, settle
from tasks.method.recipe import ACCURACY, EXACT_MATCH, Recipe, make_recipe
from tasks.method.scores import Scores
from tasks.method.strategies import strategy_of
from tasks.models.products import Precision
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError
from tasks.runtime.worker import groups_of, values_of


class Run(Protocol):
    """Computes parts of the work: in this process (`compute_here`), or on workers with a journal (`run_parts`)."""

    def __call__(self, parts: Sequence[Any], *, advance: Callable[[int], None] = ...) -> Mapping[Any, Any]:
        """The value of each part; `advance` is called with the number of parts that are done."""


def _silently(done: int) -> None:
    pass


@dataclass(frozen=True)
class Adapted:
    """The result of `adapt`.

    Attributes:
        scores: of all neurons; `scores.values` is float32 [layers, width].
        grid: one row per (layer, fraction) with `neurons`, `accuracy` and `margin` on the examples; layer -1 is the
            unpruned model.
        recipe: the chosen pair and its neurons.
    """

    scores: Scores
    grid: pd.DataFrame
    recipe: Recipe


def adapt(
    model: Any,
    tokenizer: Any,
    examples: Iterable[Mapping[str, Any]] | pd.DataFrame,
    *,
    attribution: Attribution | None = None,
    search: Search | None = None,
    precision: Precision = "float32",
    unlabeled: Iterable[Mapping[str, Any]] | pd.DataFrame | None = None,
    computing: Callable[[Any], Run] | None = None,
) -> Adapted:
    """Scores, grid and recipe for a model in memory, which stays as it is (2507.09185 Algorithm 1).

    Args:
        model: a causal language model of `transformers` in float32 or from `tasks.models.loading.load`, or a
            `DecoderStack` of one.
        examples: rows with `prompt`, `options` (a list of texts) and `gold` (the index of the right one). With
            `Search(criterion="mutual_information")` they need no `gold`.
        attribution: by default adaptive integrated gradients, one layer's neurons on one path.
        search: by default every layer x 5, 10, .. 40 % of its neurons.
        precision: of the products of pruned runs; bfloat16 is used where it is faster and changes no choice.
        unlabeled: further rows, for a criterion that reads rows without their labels; by default the examples.
        computing: makes the `Run` of an `Attributor` or a `Grid`; by default `compute_here`.

    Raises:
        InputError: the model has no MLP of a known form, an example does not fit it or has no `gold` that the
            criterion needs, or the settings leave nothing to search.

    Example:
        >>> adapted = adapt(model, tokenizer, examples)
        >>> adapted.recipe.layer, len(adapted.recipe.neurons)
        >>> with silenced(model, adapted.recipe):
        ...     model.generate(**inputs)
    """
    attribution, search = attribution or Attribution(), search or Search()
    stack = model if isinstance(model, DecoderStack) else DecoderStack(model)
    table = _table(examples)
    rows = encode_rows(table, tokenizer, stack.context)
    others = None if unlabeled is None else encode_rows(_table(unlabeled), tokenizer, stack.context)

    with _no_gradients(stack.model):
        scores = score_rows(stack, tokenizer, table, attribution, computing)
        grid, _ = search_rows(stack, tokenizer, rows, scores, search, precision, others, computing)
    return Adapted(scores, grid, make_recipe(grid, scores))


def _table(rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    return table if "id" in table else table.assign(id=[str(number) for number in range(1, len(table) + 1)])


@contextmanager
def _no_gradients(model: Any) -> Iterator[None]:
    """A context with the model in eval mode and without gradients of its parameters, which would cost memory."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modules = [module for module in model.modules() if module.training]
    model.requires_grad_(False).eval()
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad = True
        for module in modules:
            module.training = True


def score_neurons(
    run: Run, parts: Sequence[Layers], header: dict[str, Any], advance: Callable[[int], None] = _silently
) -> Scores:
    """The scores of all neurons from those of all parts of an `Attributor`, which `run` computes."""
    return assemble_scores(list(run(parts, advance=advance).values()), header)


def score_rows(
    stack: DecoderStack,
    tokenizer: Any,
    table: pd.DataFrame,
    attribution: Attribution,
    computing: Callable[[Any], Run] | None = None,
) -> Scores:
    """`score_neurons` on the rows of a table, in memory."""
    attributor = attributor_on(stack, tokenizer, table, attribution)
    header = describe(attribution) | {"n": len(table), "products": attributor.products} | attributor.experts
    return score_neurons((computing or compute_here)(attributor), attributor.parts, header)


def search_grid(
    run: Run,
    sizes: Sequence[int],
    scores: Scores,
    search: Search,
    precision: Precision = "float32",
    advance: Callable[[int], None] = _silently,
) -> tuple[pd.DataFrame, Settled]:
    """The grid over the pairs that `search.strategy` looks at, and the precision it was computed in.

    Args:
        run: computes parts of a `Grid` of these scores.
        sizes: the number of rows in each pack of that grid.

    Raises:
        InputError: the smallest fraction of the neurons is none, or from_cell has no depths.
    """
    layers, width = scores.values.shape
    if not count(search.fractions[0], width):
        raise InputError(
            "search.fractions",
            f"{search.fractions[0]} of {width} neurons is less than half a neuron; use larger fractions",
        )
    strategy = strategy_of(search)
    settled = settle(precision, parts_of(every_pair(layers, search.fractions), len(sizes)), run, width)
    evaluate = _Evaluate(partial(run, advance=advance), sizes, settled.precision, width)
    keys = EXACT_MATCH if search.criterion == "exact_match" else ACCURACY
    return strategy(scores.ranked, search.fractions, evaluate, keys), settled


def grid_on(stack: DecoderStack, tokenizer: Any, rows: Rows, scores: Scores, search: Search) -> Grid:
    """The grid on labeled or unlabeled rows, with what `search.criterion` reads."""
    exact = exact_on(tokenizer, rows) if search.criterion == "exact_match" else None
    gold = rows.gold if rows.labeled else None
    return Grid(stack, rows.encoded, gold, scores.ranked, scores.projection, exact, search.reads_logprobs)


def search_rows(
    stack: DecoderStack,
    tokenizer: Any,
    rows: Rows,
    scores: Scores,
    search: Search,
    precision: Precision = "float32",
    unlabeled: Rows | None = None,
    computing: Callable[[Any], Run] | None = None,
) -> tuple[pd.DataFrame, Settled]:
    """`search_grid` on encoded rows, in memory, with the columns of the criterion.

    Args:
        unlabeled: further rows, for a criterion that reads rows without their labels; by default `rows`.

    Raises:
        InputError: the rows have no labels and the criterion needs them; or as `search_grid`.
    """
    if search.reads_labels and not rows.labeled:
        raise InputError("gold", f"is missing in the examples, and search.criterion {search.criterion} needs it")

    def searched(part: Rows, wanted: Precision) -> tuple[pd.DataFrame, Settled]:
        grid = grid_on(stack, tokenizer, part, scores, search)
        return search_grid((computing or compute_here)(grid), grid.sizes, scores, search, wanted)

    unranked, settled = searched(rows, precision)
    others = None
    if search.reads_unlabeled and unlabeled is not None:
        others, _ = searched(unlabeled, settled.precision)
    return ranked_by(search.criterion, unranked, others, rows.gold if rows.labeled else None), settled


class _Worker(Protocol):
    def compute(self, part: Any) -> Any: ...


def compute_here(worker: _Worker) -> Run:
    """Computes parts in this process, without a journal."""
    return partial(_compute, worker)


def _compute(worker: _Worker, parts: Sequence[Any], *, advance: Callable[[int], None] = _silently) -> dict[Any, Any]:
    values: dict[Any, Any] = {}
    for group in groups_of(worker, parts):
        values.update(zip(group, values_of(worker, group), strict=True))
        advance(len(group))
    return values


@dataclass
class _Evaluate:
    """Computes the grids that a strategy asks for (`tasks.method.strategies.Evaluate`)."""

    run: Callable[[Sequence[Part]], Mapping[Part, Value]]
    sizes: Sequence[int]
    precision: Precision
    width: int

    def __call__(self, pairs: Pairs, pack: int | None = None) -> pd.DataFrame:
        parts = parts_of(pairs, len(self.sizes), self.precision)
        wanted = [part for part in parts if pack in (None, part.pack)]
        rows = sum(self.sizes) if pack is None else self.sizes[pack]
        return assemble(self.run(wanted), rows, self.width)
