"""Study `generation`: the effect of pruning on answers that are not restricted to the options.

Models are chosen and compared by exact match of the greedily decoded answer. Teacher forcing suffices: greedy decoding
gives an answer if and only if each of its tokens is the most probable one after those before it. In addition to the
cell's benchmark, the study uses benchmarks with free answers, where any accepted answer is right.
"""

import pandas as pd

from tasks.benchmarks.scoring import answers_unedited
from tasks.benchmarks.table import exact_matches
from tasks.method.adaptation_set import draw
from tasks.method.algorithm import score_rows, search_rows
from tasks.method.recipe import Recipe, make_recipe
from tasks.method.scores import Scores
from tasks.method.targets import ON_OPTIONS
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_jsonl
from tasks.studies.context import Record, StudyContext, accuracy_record, pair_columns


def parts(context: StudyContext) -> list[str]:
    """The cell's benchmark, and each one with free answers."""
    return [context.cell.benchmark, *context.run.benchmarks]


def compute(context: StudyContext, part: str) -> list[Record]:
    """The exact matches of the unpruned model, of the cell's recipe, and of a recipe that is chosen by exact match.

    On a benchmark with free answers, the scores and examples of the latter are from the train split of this benchmark;
    the examples are drawn with the cell's size and seed.
    """
    own = part == context.cell.benchmark
    test = context.test_of(part)
    base = context.base if own else answers_unedited(context.stack, test.encoded)
    before = exact_matches(context.loaded.tokenizer, test, base, 0)
    by_exact_match, best = _chosen(context, part)
    where = "" if own else f" on {part}"
    records = [accuracy_record(f"unpruned{where}", before, None, group=part)]
    for label, recipe, more in (
        (f"chosen by exact match{where}", by_exact_match, {"on the examples": round(best, 3)}),
        (f"chosen by option accuracy (the cell's){where}", context.recipe, {}),
    ):
        answers = context.answers(recipe, test.encoded)
        right = exact_matches(context.loaded.tokenizer, test, answers, 0)
        records.append(accuracy_record(label, right, before, group=part, **pair_columns(recipe) | more))
    return records


def _chosen(context: StudyContext, benchmark: str) -> tuple[Recipe, float]:
    """The recipe with the most exact matches on the examples, and their rate."""
    table, scores = _examples(context, benchmark)
    search = context.settings.search.model_copy(update={"criterion": "exact_match"})
    rows, precision = context.encoded(table), context.settings.precision.search
    grid, _ = search_rows(context.stack, context.loaded.tokenizer, rows, scores, search, precision)
    recipe = make_recipe(grid, scores)
    return recipe, recipe.trail[0].best


def _examples(context: StudyContext, benchmark: str) -> tuple[pd.DataFrame, Scores]:
    if benchmark == context.cell.benchmark:
        return pd.DataFrame(read_jsonl(context.cell.samples)), context.scores
    settings, tokenizer = context.settings, context.loaded.tokenizer
    if settings.attribution.target in ON_OPTIONS:
        problem = f"{settings.attribution.target} needs options, and {benchmark} has free answers; use max_logit"
        raise InputError("attribution.target", problem)
    adaptation = settings.adaptation.model_copy(update={"selection": "random"})  # other selections need a right option
    table = draw(context.rows_of(benchmark)[0], context.stack, tokenizer, adaptation)
    return table, score_rows(context.stack, tokenizer, table, settings.attribution)
