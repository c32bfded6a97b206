"""Specs on real rows: their prompts are those of lm-evaluation-harness, and each kind of bad row is handled one way."""

import ast
import os
from collections import Counter
from pathlib import Path

import pytest

from flows.benchmark_list import catalogue, page_table
from tasks.benchmarks import library
from tasks.benchmarks.benchmark_spec import BenchmarkSpec
from tasks.benchmarks.row_files import read_rows
from tasks.benchmarks.rows import UNLABELLED, examples
from tasks.benchmarks.splits import splits
from tasks.runtime.errors import InputError
from tests.benchmarks.lm_eval_tasks import harness_task, harness_value

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DSM_TEST_DATA") or ROOT.parent / "shared" / "data")
LIMITS = {"test": 10, "transfer": 0}
PAGE = ROOT / "docs" / "benchmarks.md"


def spec_of(name, **fields):
    line = {"spec": name, "limits": LIMITS, "data": "x", **fields}
    return BenchmarkSpec.model_validate(library.expand(line, field="b"))


def found(name, row, split="train", **fields):
    return examples([row], spec_of(name, **fields), split, field="b").examples[0]


def real_rows(path):
    if not (DATA / path).is_file():
        pytest.skip(f"needs {path}; DSM_TEST_DATA names the directory")
    return read_rows(DATA / path, name=path, field="b")


# -- families ---------------------------------------------------------------------------------------------------------


def test_every_spec_is_in_a_family_and_the_list_shows_one(tmp_path):
    by_family = {family: catalogue(tmp_path, None, family)[0] for family in library.FAMILIES}
    assert sum(map(len, by_family.values())) == len(library.spec_names())
    assert all(len(lines) >= 5 for lines in by_family.values())
    assert [line[0] for line in by_family["similarity"]] == ["mrpc", "paws", "qqp", "stsb", "wic"]
    assert {line[1] for line in by_family["sentiment"]} == {"sentiment"}
    with pytest.raises(InputError, match=r"^family: must be one of 'sentiment', 'question answering', "):
        catalogue(tmp_path, None, "similar")


def test_a_spec_without_a_family_is_refused():
    stated = library.read_spec("mrpc").model_dump(exclude_none=True)
    for family in (None, "sentiments"):
        with pytest.raises(ValueError, match="family"):
            library.Spec.model_validate({**stated, "family": family})


def test_the_page_has_the_table_of_the_specs():
    begin, end = "<!-- made by dsm benchmarks ls --markdown -->\n\n", "\n\n<!-- end -->"
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(begin) == text.count(end) == 1
    assert text.split(begin)[1].split(end)[0] == page_table()


# -- real rows --------------------------------------------------------------------------------------------------------

COUNTED = (  # specs whose local files are counted, including train
    *("amazon", "anli-r1", "anli-r2", "anli-r3", "cb", "commonsenseqa", "cr", "hellaswag", "imdb", "logiqa", "mrpc"),
    *("multirc", "openbookqa", "paws", "piqa", "qqp", "rte", "siqa", "stsb", "truthful_qa", "tweet_eval", "wic"),
    "winogrande",
)


@pytest.mark.parametrize("name", COUNTED)
def test_facts_are_counted(name):
    spec, facts = spec_of(name, data=str(DATA)), library.facts(name)["local"]
    kept = {}
    for split in ("train", "test"):
        (path,) = getattr(spec, split).source.paths
        rows = real_rows(Path(path).relative_to(DATA))
        assert len(rows) == getattr(facts, split)
        kept[split] = examples(rows, spec, split, field="b").examples
        assert len(kept[split]) == len(rows)
    golds = Counter(example.gold for example in kept["test"])
    assert facts.majority == round(golds.most_common(1)[0][1] / facts.test, 3)
    train, test = splits(spec, kept["train"], kept["test"], field="b")
    assert not {example.identity for example in train} & {example.identity for example in test}
    assert len(test) > 0.98 * facts.test


class Docs(list):
    """Rows with the two methods of a `datasets.Dataset` that `process_docs` uses."""

    def map(self, change):
        return Docs({**row, **change(dict(row))} for row in self)

    def filter(self, keep):
        return Docs(filter(keep, self))


def cut(row):
    """A row of HellaSwag as the hub has it: the context in two parts."""
    first, _, last = row["ctx"].rpartition(" ")
    return {**row, "ctx_a": first, "ctx_b": last}


def letter(row):
    """A row of LogiQA as the copy of lm-evaluation-harness has it."""
    return {**row, "question": row["query"], "label": "abcd"[row["correct_option"]]}


SAME = [  # spec, file of lm-evaluation-harness, rows, function that turns one into a row of the hub's copy
    ("mrpc", "glue/mrpc/default.yaml", "mrpc/test.jsonl", None),
    ("qqp", "glue/qqp/default.yaml", "qqp/validation.jsonl", None),
    ("rte", "glue/rte/default.yaml", "rte/validation.jsonl", None),
    ("paws", "paws-x/paws_en.yaml", "paws/validation.jsonl", None),
    ("wic", "super_glue/wic/default.yaml", "wic/validation.jsonl", None),
    ("cb", "super_glue/cb/default.yaml", "cb/validation.jsonl", None),
    ("multirc", "super_glue/multirc/default.yaml", "multirc/validation.jsonl", None),
    ("anli-r1", "anli/anli_r1.yaml", "anli/dev_r1.jsonl", None),
    ("anli-r2", "anli/anli_r2.yaml", "anli/dev_r2.jsonl", None),
    ("anli-r3", "anli/anli_r3.yaml", "anli/dev_r3.jsonl", None),
    ("hellaswag", "hellaswag/hellaswag.yaml", "hellaswag/validation.jsonl", cut),
    ("truthful_qa", "truthfulqa/truthfulqa_mc1.yaml", "truthful_qa/validation.jsonl", None),
    ("commonsenseqa", "commonsense_qa/default.yaml", "commonsense_qa/validation.jsonl", None),
    ("piqa", "piqa/piqa.yaml", "piqa/validation.jsonl", None),
    ("openbookqa", "openbookqa/openbookqa.yaml", "openbookqa/test.jsonl", None),
    ("siqa", "siqa/siqa.yaml", "social_i_qa/validation.jsonl", None),
    ("logiqa", "logiqa/logiqa.yaml", "logiqa/test.jsonl", letter),
]


@pytest.mark.parametrize(("name", "file", "path", "change"), SAME, ids=[same[0] for same in SAME])
def test_prompts_of_real_rows_are_those_of_lm_evaluation_harness(name, file, path, change):
    config = harness_task(file)
    rows = [change(row) if change else row for row in real_rows(path)][:400]
    line = {"source": "hub", "data": None} if name == "hellaswag" else {}  # local files lack a part of the context
    ours = examples(rows, spec_of(name, template="harness", **line), "test", field="b").examples
    theirs = config["process_docs"](Docs(rows)) if "process_docs" in config else rows
    # SIQA has rows with the same choice twice: they are left out if the choices are the options.
    assert len(ours) == len(rows) or (name == "siqa" and len(ours) >= len(rows) - 5)
    for one in ours:
        row = theirs[one.number - 1]
        assert one.prompt == config.get("description", "") + harness_value(config["doc_to_text"], row)
        choices = harness_value(config["doc_to_choice"], row)
        choices = ast.literal_eval(choices) if isinstance(choices, str) else choices
        options = [f"{config.get('target_delimiter', ' ')}{choice}" for choice in choices]
        assert sorted(one.options) == sorted(options)
        target = config["doc_to_target"] if name == "truthful_qa" else harness_value(config["doc_to_target"], row)
        gold = options[choices.index(target) if target in choices else int(target)]
        if name == "multirc":  # the harness takes "yes" for the wrong answers
            assert (one.options[one.gold] == gold, list(one.options)) == (False, options[::-1])
        elif name == "truthful_qa":  # in the harness it is always the first
            assert (one.options[one.gold], gold) == (options[0], options[0])
        else:
            assert (one.options[one.gold], list(one.options)) == (gold, options)


def test_storycloze_is_asked_as_lm_evaluation_harness_asks():
    config = harness_task("storycloze/storycloze_2016.yaml")
    row = {f"input_sentence_{i}": f"Part {i}." for i in range(1, 5)}
    row |= {"sentence_quiz1": "x.", "sentence_quiz2": "y.", "answer_right_ending": 2}
    one = found("storycloze", row, template="harness")
    assert one.prompt == harness_value(config["doc_to_text"], row)
    assert list(one.options) == [
        f" {choice}" for choice in ast.literal_eval(harness_value(config["doc_to_choice"], row))
    ]
    assert one.gold == int(harness_value(config["doc_to_target"], row))


# -- TruthfulQA: the right choice is always the first -----------------------------------------------------------------

TRUTH = {
    "question": "What is it?",
    "mc1_targets": {"choices": ["right", "wrong", "worse", "no"], "labels": [1, 0, 0, 0]},
}


def reordered(row, order):
    target = row["mc1_targets"]
    return {**row, "mc1_targets": {key: [values[i] for i in order] for key, values in target.items()}}


def test_the_order_of_the_file_says_nothing_in_truthful_qa():
    for template in ("sadi", "harness"):
        first = found("truthful_qa", TRUTH, "test", template=template)
        for order in ([3, 2, 1, 0], [1, 0, 2, 3]):
            again = found("truthful_qa", reordered(TRUTH, order), "test", template=template)
            assert (again.prompt, again.options, again.gold) == (first.prompt, first.options, first.gold)
    shown = [line[3:] for line in first_prompt().splitlines() if line[1:3] == ". "]
    assert sorted(shown) == sorted(TRUTH["mc1_targets"]["choices"])
    assert shown[found("truthful_qa", TRUTH, "test").gold] == "right"
    fewer = reordered(TRUTH, [0, 1, 2])
    left = [line[3:] for line in found("truthful_qa", fewer, "test").prompt.splitlines() if line[1:3] == ". "]
    assert left == [text for text in shown if text != "no"]


def first_prompt():
    return found("truthful_qa", TRUTH, "test").prompt


def test_the_right_choice_of_truthful_qa_is_at_every_place():
    rows = real_rows("truthful_qa/validation.jsonl")
    assert all(row["mc1_targets"]["labels"][0] == 1 for row in rows)
    ours = examples(rows, spec_of("truthful_qa"), "test", field="b").examples
    four = Counter(example.gold for example in ours if len(example.options) == 4)
    # 208 rows: 52 are expected at each place, with a standard deviation of 6.2.
    assert sum(four.values()) == 208
    assert all(30 <= four[place] <= 74 for place in range(4))


@pytest.mark.parametrize(("labels", "told"), [([0, 0, 0, 0], "1 is not in list"), (None, "has no attribute 'index'")])
def test_a_row_of_truthful_qa_without_a_right_choice_is_refused(labels, told):
    row = {**TRUTH, "mc1_targets": {**TRUTH["mc1_targets"], "labels": labels}}
    with pytest.raises(InputError, match=rf"^b\.test\.gold: row 1: .*{told}"):
        found("truthful_qa", row, "test")


# -- STS-B: scores ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "same"),
    [(0, 0), (0.0, 0), (1.0, 0), (2.999, 0), ("2.8", 0), (3, 1), (3.0, 1), ("3.0", 1), (4.2, 1), (5, 1), (5.0, 1)],
)
def test_scores_of_stsb_are_two_classes(score, same):
    assert found("stsb", {"sentence1": "a", "sentence2": "b", "label": score}).gold == same


def test_scores_of_stsb_that_are_hidden_or_wrong():
    row = {"sentence1": "a", "sentence2": "b", "label": 4.0}
    rows = [row, *({**row, "label": hidden} for hidden in (-1, -1.0, "-1", None, float("nan"), ""))]
    told = examples(rows, spec_of("stsb"), "train", field="b")
    assert (len(told.examples), told.left_out[UNLABELLED]) == (1, 6)
    for wrong in (5.5, -0.5, 100, "high", "nan", "inf"):
        with pytest.raises(InputError, match=r"^b\.train\.gold: row 2: the label '.*' is not one of \['0', '1'\]$"):
            examples([row, {**row, "label": wrong}], spec_of("stsb"), "train", field="b")


def test_scores_as_the_labels_of_two_options_are_refused():
    declared = spec_of("mrpc").model_dump() | {"labels": None}
    row = {"sentence1": "a", "sentence2": "b", "label": 2.6}
    with pytest.raises(InputError, match=r"^b\.train\.gold: row 1: the label '2\.6' is not one of \['0', '1'\]$"):
        examples([row], BenchmarkSpec.model_validate(declared), "train", field="b")


# -- labels 1..4 beside A..D ------------------------------------------------------------------------------------------


def arc(labels, answer):
    return {"question": "Q?", "choices": {"text": list("wxyz"), "label": labels}, "answerKey": answer}


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "commonsenseqa"])
def test_labels_are_those_of_the_row(name):
    more = ["v"] if name == "commonsenseqa" else []
    letters, digits = list("ABCDE")[: 4 + len(more)], list("12345")[: 4 + len(more)]
    for labels, answer in ((letters, "C"), (digits, "3"), (digits, 3), ([int(one) for one in digits], "3")):
        row = arc(labels, answer)
        row["choices"]["text"] = [*"wxyz", *more]
        assert found(name, row).gold == 2
    for labels, answer in ((letters, "3"), (letters, 3), (digits, "C"), (letters, "c"), (letters, "F")):
        row = arc(labels, answer)
        row["choices"]["text"] = [*"wxyz", *more]
        with pytest.raises(InputError, match=r"^b\.train\.gold: row 1: the label '.' is not one of \["):
            found(name, row)
    twice = arc([*letters[:-1], "A"], "A")
    twice["choices"]["text"] = [*"wxyz", *more]
    with pytest.raises(InputError, match=r" 2 times in "):
        found(name, twice)
    fewer = arc(letters[:-1], "A")
    fewer["choices"]["text"] = [*"wxyz", *more]
    with pytest.raises(
        InputError, match=rf"^b\.labels: row 1: {len(letters) - 1} (labels )?for {len(letters)} options"
    ):
        found(name, fewer)


# -- null choices, and numbers where texts are expected ---------------------------------------------------------------

ROWS = {  # one row each, with the columns that appear as text in prompt or options
    "mrpc": {"sentence1": "1", "sentence2": "2", "label": 1},
    "paws": {"sentence1": "1", "sentence2": "2", "label": 1},
    "stsb": {"sentence1": "1", "sentence2": "2", "label": 4.5},
    "qqp": {"question1": "1", "question2": "2", "label": 1},
    "rte": {"sentence1": "1", "sentence2": "2", "label": 1},
    "cb": {"premise": "1", "hypothesis": "2", "label": 1},
    "anli-r1": {"premise": "1", "hypothesis": "2", "label": 1},
    "xnli-en": {"premise": "1", "hypothesis": "2", "label": 1},
    "scitail": {"premise": "1", "hypothesis": "2", "label": "neutral"},
    "wic": {"word": "1", "sentence1": "11", "sentence2": "22", "start1": 0, "end1": 1, "label": 1},
    "multirc": {"paragraph": "1", "question": "2", "answer": "3", "label": 1},
    "winogrande": {"sentence": "1", "option1": "2", "option2": "3", "answer": "1"},
    "piqa": {"goal": "1", "sol1": "2", "sol2": "3", "label": 0},
    "siqa": {"context": "1", "question": "2", "answerA": "3", "answerB": "4", "answerC": "5", "label": "2"},
    "copa": {"premise": "1", "question": "cause", "choice1": "2", "choice2": "3", "label": 1},
    "balanced_copa": {"premise": "1", "question": "cause", "choice1": "2", "choice2": "3", "label": 1, "id": 3},
    "xcopa-it": {"premise": "1", "question": "cause", "choice1": "2", "choice2": "3", "label": 1},
    "boolq": {"passage": "1", "question": "2", "answer": True},
    "mmlu-anatomy": {"question": "1", "subject": "3", "choices": ["1", "2", "3", "4"], "answer": 2},
    "hellaswag": {"ctx": "1", "endings": ["2", "3", "4", "5"], "label": "1"},
    "logiqa": {"context": "1", "query": "2", "options": ["3", "4", "5", "6"], "correct_option": 1},
    "commonsenseqa": {
        "question": "1",
        "choices": {"text": list("23456"), "label": list("ABCDE")},
        "answerKey": "B",
    },
    "openbookqa": {"question_stem": "1", "choices": {"text": list("2345"), "label": list("ABCD")}, "answerKey": "B"},
    "arc_easy": {"question": "1", "choices": {"text": list("2345"), "label": list("ABCD")}, "answerKey": "B"},
    "arc_challenge": {"question": "1", "choices": {"text": list("2345"), "label": list("1234")}, "answerKey": "2"},
    "truthful_qa": {"question": "1", "mc1_targets": {"choices": list("2345"), "labels": [1, 0, 0, 0]}},
    "storycloze": {f"input_sentence_{i}": str(i) for i in range(1, 5)}
    | {"sentence_quiz1": "5", "sentence_quiz2": "6", "answer_right_ending": 1},
    "imdb": {"text": "1", "label": 1},
    "cr": {"text": "1", "label": 1},
    "tweet_eval": {"text": "1", "label": 1},
    "rotten_tomatoes": {"text": "1", "label": 1},
    "sst2": {"sentence": "1", "label": 1},
    "sst5": {"text": "1", "label": 1},
    "subj": {"text": "1", "label_text": "objective"},
    "amazon": {"title": "1", "content": "2", "label": 1},
}
NOT_TEXT = {
    "label",
    "answer_right_ending",
    "correct_option",
    "answerKey",
    "start1",
    "end1",
    "id",
    "label_text",
    "labels",
}


def places(value, path=()):
    """The places of the texts of a row that are shown, as keys and indexes."""
    if isinstance(value, dict):
        return [place for key, inner in value.items() if key not in NOT_TEXT for place in places(inner, (*path, key))]
    if isinstance(value, list):
        return [place for i, inner in enumerate(value) for place in places(inner, (*path, i))]
    shown = isinstance(value, str) and value.isdigit() and path not in (("answer",),)
    return [path] if shown or (path == ("answer",) and value == "3") else []


def put(value, path, new):
    if not path:
        return new(value)
    kept = dict(value) if isinstance(value, dict) else list(value)
    kept[path[0]] = put(value[path[0]], path[1:], new)
    return kept


def test_there_is_a_row_of_every_spec():
    free = {"lambada", "nq_open"}  # without options: test_free_answers.py
    assert {name.partition("-")[0] for name in ROWS} | free == set(library.spec_names())


@pytest.mark.parametrize("name", ROWS)
def test_a_number_is_the_text_that_it_prints(name):
    split = "test" if name == "truthful_qa" else "train"
    for template in library.member(name, field="b")[0].prompts:
        text = found(name, ROWS[name], split, template=template)
        assert places(ROWS[name])
        for place in places(ROWS[name]):
            assert found(name, put(ROWS[name], place, int), split, template=template) == text
            number, printed = (put(ROWS[name], place, lambda _, new=new: new) for new in (1.5, "1.5"))
            expected = found(name, printed, split, template=template)
            assert found(name, number, split, template=template) == expected


@pytest.mark.parametrize("name", ROWS)
def test_a_null_in_a_text_is_refused_in_one_line(name):
    split = "test" if name == "truthful_qa" else "train"
    for template in library.member(name, field="b")[0].prompts:
        for place in places(ROWS[name]):
            with pytest.raises(InputError) as caught:
                found(name, put(ROWS[name], place, lambda _: None), split, template=template)
            told = str(caught.value)
            assert "row 1: " in told
            assert "is empty (null)" in told
            assert str(place[0]) in told
            assert "\n" not in told


def test_filters_refuse_what_they_cannot_take():
    row = {**TRUTH, "mc1_targets": {"choices": "right", "labels": [1]}}
    with pytest.raises(InputError, match=r"row 1: shuffled takes a list, not a str$"):
        found("truthful_qa", row, "test")
    with pytest.raises(InputError, match=r"^b\.test\.(gold|fields\.choices): row 1: .*no attribute 'choices'"):
        found("truthful_qa", {"question": "?", "mc1_targets": {"labels": [1]}}, "test")
