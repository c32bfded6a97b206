"""A benchmark from a file alone: recognised columns give the right options and labels; ambiguous ones are refused."""

import pytest

from tasks.benchmarks.benchmark_spec import BenchmarkSpec
from tasks.benchmarks.recognise import recognise
from tasks.benchmarks.rows import examples
from tasks.runtime.errors import InputError

SOURCE = {"kind": "path", "path": "quiz.jsonl", "sha256": "0" * 64}
GOLD = [i % 3 for i in range(30)]
CHOICES = ["red", "green", "blue"]


def rows(**columns):
    """Thirty rows; a column is a constant or a function of the row's gold index."""
    return [
        {name: value(i, gold) if callable(value) else value for name, value in columns.items()}
        for i, gold in enumerate(GOLD)
    ]


def question(i, _):
    return f"Which colour has number {i}?"


@pytest.mark.parametrize(
    "columns",
    [
        {"choices": CHOICES, "answer": lambda i, g: g},
        {"options": CHOICES, "label": lambda i, g: g + 1},
        {"choices": CHOICES, "gold": lambda i, g: "ABC"[g]},
        {"choices": CHOICES, "Answer Key": lambda i, g: "abc"[g]},
        {"choices": CHOICES, "correct_answer": lambda i, g: CHOICES[g]},
        {"choices": {"text": CHOICES, "label": ["1", "2", "3"]}, "answerKey": lambda i, g: str(g + 1)},
        {"A": "red", "B": "green", "C": "blue", "answer": lambda i, g: "ABC"[g]},
        {"option_1": "red", "option_2": "green", "option_3": "blue", "answer": lambda i, g: str(g + 1)},
        {"ending0": "red", "ending1": "green", "ending2": "blue", "label": lambda i, g: float(g)},
        {"A": "red", "B": "green", "C": "blue", "answer": lambda i, g: CHOICES[g]},
    ],
)
def test_options_and_labels_of_a_question(columns):
    given = rows(question=question, **columns)
    found = recognise(given, name="quiz.jsonl", source=SOURCE)
    spec = BenchmarkSpec.model_validate(found.entry)
    made = examples(given, spec, "train", field="benchmarks.quiz").examples
    assert [example.gold for example in made] == GOLD
    assert {example.options for example in made} == {(" red", " green", " blue")}
    assert made[4].prompt == "Question: Which colour has number 4?\nAnswer:"
    assert found.entry["train"]["source"] == SOURCE
    assert found.entry["test"] == {"split": 15, "seed": 0}
    assert found.notes[0].startswith(
        "quiz.jsonl: 30 rows with a label, half of them test rows; prompt from 'question'; "
    )
    assert found.notes[1].endswith("options ' red', ' green', ' blue'; right is ' red'")


def test_rows_may_differ_in_the_number_of_options():
    given = rows(
        question=question, choices=lambda i, g: CHOICES[: 2 + i % 2 if g < 2 else 3], answer=lambda i, g: "ABC"[g]
    )
    found = recognise(given, name="quiz.jsonl", source=SOURCE)
    made = examples(given, BenchmarkSpec.model_validate(found.entry), "train", field="q").examples
    assert {len(example.options) for example in made} == {2, 3}
    assert [example.gold for example in made] == GOLD


def test_a_passage_stands_before_the_question_and_truth_values_are_yes_and_no():
    given = rows(question=question, passage="Red is one.", answer=lambda i, g: g == 0)
    found = recognise(given, name="b.jsonl", source=SOURCE)
    made = examples(given, BenchmarkSpec.model_validate(found.entry), "train", field="q").examples
    assert made[0].prompt == "Red is one.\nQuestion: Which colour has number 0?\nAnswer:"
    assert [example.options[example.gold] for example in made] == [" yes" if g == 0 else " no" for g in GOLD]


def test_few_labels_in_words_are_the_options():
    given = [{"text": f"a film {i}", "label": CHOICES[i % 3]} for i in range(300)]
    found = recognise(given, name="b.csv", source=SOURCE)
    assert found.entry["options"] == [" blue", " green", " red"]
    assert found.entry["prompt"] == "{{ text }}\nIs this blue, green or red?\nAnswer:"
    assert found.entry["test"] == {"split": 0.5, "seed": 0}


def test_a_prompt_is_taken_as_it_is_and_the_white_space_it_ends_in_belongs_to_the_options():
    given = rows(prompt=lambda i, g: f"{i} is ", choices=CHOICES, answer=lambda i, g: g)
    found = recognise(given, name="b.jsonl", source=SOURCE)
    made = examples(given, BenchmarkSpec.model_validate(found.entry), "train", field="q").examples
    assert (made[0].prompt, made[0].options) == ("0 is ", ("red", "green", "blue"))


def test_rows_without_a_label_are_not_looked_at():
    given = rows(question=question, choices=CHOICES, label=lambda i, g: g)
    given += [{"question": "?", "choices": CHOICES, "label": label} for label in (None, -1, "")]
    assert "30 rows with a label" in recognise(given, name="b.jsonl", source=SOURCE).notes[0]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "has no rows"),
        (
            [{"q": 1, "answer": 2}],
            "no column is recognised as the prompt; the columns are 'q', 'answer'. Known names are prompt",
        ),
        ([{"question": "?"}], "no column is recognised as the label; the columns are 'question'"),
        ([{"question": "?", "label": None}], "no row has a label in 'label'"),
        (
            rows(text=question, label=lambda i, g: g),
            "the labels in 'label' are numbers, and no column is recognised as",
        ),
        (rows(text=question, label=lambda i, g: f"w{i}"), "'label' has 30 different values, and no column is"),
        (rows(question=question, choices="[1, 2]", answer=0), "'choices' of row 1 is '[1, 2]', not a list of options"),
        (rows(question=question, choices=CHOICES, answer=1), "(1) may be a number from 0 or a number from 1"),
        (rows(question=question, choices=["1", "0"], answer=lambda i, g: g % 2), "may be a number from 0 or the text"),
        (rows(question=question, choices=CHOICES, answer="red wine"), "(red wine) are not letters, numbers or texts"),
        (rows(question=None, choices=CHOICES, answer=lambda i, g: g), "row 1: question is empty (null)"),
        (rows(question=question, choices=["a", None], answer=lambda i, g: g % 2), "is empty (null)"),
    ],
)
def test_what_is_not_clear_is_refused(given, problem):
    with pytest.raises(InputError) as refused:
        recognise(given, name="quiz.jsonl", source=SOURCE)
    assert str(refused.value).startswith("benchmark: quiz.jsonl")
    assert problem in str(refused.value)
