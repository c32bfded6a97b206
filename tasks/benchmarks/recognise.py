"""A benchmark from a file of rows: which columns are the prompt, the options and the label.

Columns are recognised by names that are common on the hub, and every guess is checked on all rows. If the label can be
read in two ways or in no way, the file is refused, and the user must write the benchmark into params.yaml.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tasks.benchmarks.benchmark_spec import BenchmarkSpec
from tasks.benchmarks.row_files import Row
from tasks.benchmarks.rows import MISSING, Example, examples
from tasks.benchmarks.splits import splits
from tasks.benchmarks.templates import is_name
from tasks.benchmarks.values import NotTextError, compared, is_null, text_of
from tasks.runtime.errors import InputError

# Names of columns, ignoring case and punctuation, the likeliest first.
PROMPTS = ("prompt", "question", "query", "sentence", "text", "review", "content", "statement", "input")
CONTEXTS = ("passage", "context", "article", "paragraph", "support")
OPTIONS = ("choices", "options", "endings", "candidates", "answers")
LABELS = ("label", "answer", "gold", "target", "answerkey", "correctanswer", "answeridx", "answerindex", "correct")
WHOLE = ("prompt",)  # used unchanged
ASKED = ("question", "query")  # asked as "Question: ..", after the context if there is one

LETTERS = ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
NUMBERED = re.compile(r"(?P<kind>option|choice|ending|candidate|answer|solution|sol)?(?P<place>[a-j]|\d)")
MOST_CLASSES = 20  # different labels of a file without options; more labels are free text
SMALL = 200  # with at least so many rows a fraction is held out instead of a count: see `splits`
LIMITS = {"test": 400, "transfer": 30}
GUIDE = "write the benchmark into params.yaml: docs/own.md shows how"


@dataclass(frozen=True)
class Recognised:
    """A benchmark as params.yaml declares it (but for `source`), and what was guessed, line by line."""

    entry: dict[str, Any]
    notes: list[str]


@dataclass(frozen=True)
class _Choices:
    """Options from columns of the rows.

    Attributes:
        options: as in params.yaml.
        texts: the options of each row.
        columns: for messages.
        expression: the Jinja expression of the list of options.
        own: the Jinja expression of the rows' own labels of the options, and these labels of each row; None without.
    """

    options: list[str] | str
    texts: list[list[str]]
    columns: str
    expression: str
    own: tuple[str, list[list[str]]] | None = None


def recognise(rows: list[Row], *, name: str, source: Mapping[str, Any]) -> Recognised:
    """The benchmark that the rows of a file make.

    Args:
        name: what the user calls the file, for messages.
        source: as params.yaml will have it; nothing is read from it.

    Raises:
        InputError: a column is missing, the label cannot be read in exactly one way, or a row is invalid.
    """
    if not rows:
        raise InputError("benchmark", f"{name} has no rows")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    prompt = _one_of(PROMPTS, columns, "prompt", name)
    label = _one_of(LABELS, columns, "label", name)
    rows = [row for row in rows if _label(row, label, name) is not None]
    if not rows:
        raise InputError("benchmark", f"{name}: no row has a label in {label!r}")
    said = [str(_label(row, label, name)) for row in rows]
    others = [column for column in columns if column not in (prompt, label)]
    given = _prompt(prompt, others)
    # White space at the end of the prompt belongs to the options.
    space = "" if given.whole and all(str(row.get(prompt)).endswith((" ", "\n")) for row in rows) else " "
    entry: dict[str, Any] = {"train": {"source": dict(source), "gold": _braced(label)}}
    entry["test"] = {"split": 0.5 if len(rows) >= SMALL else max(1, len(rows) // 2), "seed": 0}
    choices = _choices(rows, others, space, name)
    if choices is None:
        options, labels = _classes(label, said, space, name)
        entry |= {"prompt": given.of_classes([option.strip() for option in options]), "options": options}
        entry["labels"], how = labels, "options from its values"
    else:
        reading, named = _reading(choices, said, label, name)
        entry |= {"prompt": given.template, "options": choices.options} | ({"labels": named} if named else {})
        how = f"{reading}; options from {choices.columns}"
    entry["limits"] = dict(LIMITS)
    first = _checked(entry, rows, name)
    notes = [
        f"{name}: {len(rows)} rows with a label, half of them test rows; prompt from {given.columns}; "
        f"label from {label!r}, {how}",
        f"the first row asks {first.prompt!r}; options {', '.join(map(repr, first.options))}; right is "
        f"{first.options[first.gold]!r}",
    ]
    return Recognised(entry, notes)


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]", "", column.lower())


def _one_of(known: Sequence[str], columns: Sequence[str], what: str, name: str) -> str:
    for wanted in known:
        if matches := [column for column in columns if _plain(column) == wanted]:
            return matches[0]
    there = ", ".join(map(repr, columns))
    raise InputError(
        "benchmark",
        f"{name}: no column is recognised as the {what}; the columns are {there}. Known names are {', '.join(known)}; "
        f"or {GUIDE}",
    )


def _label(row: Row, column: str, name: str) -> str | None:
    """The label as text; None without a label."""
    if is_null(row.get(column)):
        return None
    try:
        text = compared(text_of(row[column], column))
    except NotTextError as error:
        raise InputError("benchmark", f"{name}: {error}; {GUIDE}") from None
    return None if text in MISSING else text


def _column(name: str) -> str:
    """A column in an expression of Jinja."""
    return name if is_name(name) else f"row[{json.dumps(name, ensure_ascii=False)}]"


def _braced(name: str) -> str:
    return "{{ " + _column(name) + " }}"


# -- prompt -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prompt:
    """The template, that for options that are classes, the columns, and whether the column is the whole prompt."""

    template: str
    of_classes: Callable[[list[str]], str]
    columns: str
    whole: bool


def _prompt(column: str, others: list[str]) -> _Prompt:
    kind = _plain(column)
    if kind in WHOLE:
        return _Prompt(_braced(column), lambda _: _braced(column), repr(column), True)
    if kind in ASKED:
        context = next((other for wanted in CONTEXTS for other in others if _plain(other) == wanted), None)
        before = f"{_braced(context)}\n" if context else ""
        described = f"{column!r} after {context!r}" if context else repr(column)
        template = f"{before}Question: {_braced(column)}\nAnswer:"
        return _Prompt(template, lambda _: template, described, False)

    def classes(names: list[str]) -> str:
        return f"{_braced(column)}\nIs this {', '.join(names[:-1])} or {names[-1]}?\nAnswer:"

    return _Prompt(f"{_braced(column)}\nAnswer:", classes, repr(column), False)


# -- options ----------------------------------------------------------------------------------------------------------


def _choices(rows: list[Row], columns: list[str], space: str, name: str) -> _Choices | None:
    """The options from columns of the rows; None if no column has options."""
    for wanted in OPTIONS:
        for column in columns:
            if _plain(column) == wanted:
                return _listed(rows, column, space, name)
    return _lettered(rows, columns, space, name)


def _listed(rows: list[Row], column: str, space: str, name: str) -> _Choices:
    """A column of lists, or of mappings with lists `text` and `label` as in ARC."""
    values: list[Any] = [row.get(column) for row in rows]
    expression, described, own = _column(column), repr(column), None
    if all(isinstance(value, Mapping) and "text" in value for value in values):
        mappings = [value for value in values if isinstance(value, Mapping)]
        if all(isinstance(value.get("label"), list) for value in mappings):
            own = f"{expression}.label", [_texts(value["label"], column, name) for value in mappings]
        values, expression, described = (
            [value["text"] for value in mappings],
            f"{expression}.text",
            f"{column + '.text'!r}",
        )
    for number, value in enumerate(values, start=1):
        if not isinstance(value, list) or len(value) < 2:
            raise InputError(
                "benchmark", f"{name}: {column!r} of row {number} is {value!r:.60}, not a list of options; {GUIDE}"
            )
    texts = [_texts(value, column, name) for value in values]
    spaced = f'{expression} | map("replace", "", "{space}", 1) | list' if space else f"{expression} | list"
    return _Choices(f"{{{{ {spaced} }}}}", texts, described, f"{expression} | list", own)


def _lettered(rows: list[Row], columns: list[str], space: str, name: str) -> _Choices | None:
    """Columns such as A, B, C, D; option1, option2; ending0, ending1."""
    kinds: dict[str, dict[str, str]] = {}
    for column in columns:
        if match := NUMBERED.fullmatch(_plain(column)):
            kinds.setdefault(match["kind"] or "", {})[match["place"]] = column
    for places in kinds.values():
        sequence = "".join(sorted(places))
        if len(sequence) < 2 or not any(run.startswith(sequence) for run in ("abcdefghij", "0123456789", "123456789")):
            continue
        names = [places[place] for place in sequence]
        return _Choices(
            [space + _braced(column) for column in names],
            [[_texts([row.get(column)], column, name)[0] for column in names] for row in rows],
            ", ".join(map(repr, names)),
            f"[{', '.join(map(_column, names))}]",
        )
    return None


def _texts(values: list[Any], column: str, name: str) -> list[str]:
    try:
        return [text_of(value, column) for value in values]
    except NotTextError as error:
        raise InputError("benchmark", f"{name}: {error}; {GUIDE}") from None


def _classes(column: str, said: list[str], space: str, name: str) -> tuple[list[str], list[str]]:
    """Options and labels of a file whose labels are a few words, or booleans."""
    values = sorted(set(said))
    if sorted(value.lower() for value in values) == ["false", "true"]:
        return [f"{space}no", f"{space}yes"], values
    problem = None
    if any(re.fullmatch(r"-?\d+(\.\d+)?", value) for value in values):
        problem = f"the labels in {column!r} are numbers"
    elif not 2 <= len(values) <= MOST_CLASSES:
        problem = f"{column!r} has {len(values)} different values"
    if problem:
        known = f"Known names are {', '.join(OPTIONS)}, or A, B, C and so on"
        raise InputError(
            "benchmark", f"{name}: {problem}, and no column is recognised as the options. {known}; or {GUIDE}"
        )
    return [space + value for value in values], values


# -- label ------------------------------------------------------------------------------------------------------------


def _reading(choices: _Choices, said: list[str], column: str, name: str) -> tuple[str, list[str] | str | None]:
    """How the label refers to the right option, and `labels` as in params.yaml (None means numbers from 0).

    Raises:
        InputError: there is no such way, or several that do not agree on every row.
    """
    widths = [len(row) for row in choices.texts]

    def begun(names: Sequence[str]) -> list[str] | str:
        """`labels` of these names, one for each option of the row."""
        some = list(names[: max(widths)])
        if isinstance(choices.options, list):
            return some
        return f"{{{{ {json.dumps(some)}[: {choices.expression} | length] }}}}"

    ways: list[tuple[str, list[list[str]], list[str] | str | None]] = []
    if choices.own:
        expression, own = choices.own
        ways.append((f"one of {expression!r}", own, f"{{{{ {expression} }}}}"))
    else:
        numbers = [str(i) for i in range(max(widths) + 1)]
        ways.append(("a number from 0", [numbers[:width] for width in widths], None))
        ways.append(("a number from 1", [numbers[1 : width + 1] for width in widths], begun(numbers[1:])))
        ways += [("a letter", [list(some[:width]) for width in widths], begun(some)) for some in LETTERS]
    ways.append(("the text of an option", choices.texts, f"{{{{ {choices.expression} }}}}"))
    possible: dict[tuple[int, ...], tuple[str, list[str] | str | None]] = {}
    for how, names, labels in ways:
        if all(one.count(label) == 1 for one, label in zip(names, said, strict=True)):
            gold = tuple(one.index(label) for one, label in zip(names, said, strict=True))
            possible.setdefault(gold, (how, labels))
    if len(possible) == 1:
        return next(iter(possible.values()))
    some = ", ".join(sorted(set(said))[:5])
    if possible:
        problem = f"may be {' or '.join(how for how, _ in possible.values())}"
    else:
        problem = "are not letters, numbers or texts of the options"
    raise InputError("benchmark", f"{name}: the labels in {column!r} ({some}) {problem}; {GUIDE}")


def _checked(entry: dict[str, Any], rows: list[Row], name: str) -> Example:
    """The first example, after all rows have been rendered and split as the `data` step does it."""
    try:
        spec = BenchmarkSpec.model_validate(entry)
        result = examples(rows, spec, "train", field=name)
        splits(spec, result.examples, None, field=name)
    except ValidationError as error:
        raise InputError("benchmark", f"{name}: {error.errors()[0]['msg']}; {GUIDE}") from None
    except InputError as error:
        raise InputError("benchmark", f"{error}; {GUIDE}") from None
    return result.examples[0]
