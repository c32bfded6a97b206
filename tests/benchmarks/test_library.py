"""The library: one line of params.yaml expands to a full entry; every spec fits the rows that it is written for."""

import ast
import datetime
import os
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tasks.benchmarks import library
from tasks.benchmarks.benchmark_spec import BenchmarkSpec, HeldOut
from tasks.benchmarks.row_files import read_rows
from tasks.benchmarks.rows import check_templates, examples
from tasks.benchmarks.splits import splits
from tasks.pipeline.settings import parse_settings
from tasks.runtime.errors import InputError
from tasks.sources.fetch import fetch_file
from tasks.sources.kinds import LocalSource, WheelSource
from tests.benchmarks.lm_eval_tasks import harness_task, harness_value
from tests.cells import settings

LIMITS = {"test": 10, "transfer": 0}
ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DSM_TEST_DATA") or ROOT.parent / "shared" / "data")
NAMES = library.benchmark_names()
DOMAINS = ("stem", "humanities", "social_sciences", "other")
SUBJECTS = [name.removeprefix("mmlu-") for name in NAMES if name.startswith("mmlu-") and name[5:] not in DOMAINS]
# Files that hold fewer rows than were published.
SUBSETS = ("arc_challenge", "xnli-ar", "xnli-bg", "xnli-el", "xnli-hi", "xnli-ru", "xnli-th", "xnli-tr", "xnli-ur")
SUBSETS += ("xnli-vi",)
# The members of a group differ in a word of their spec: by default the rows of one or two are read.
MEMBERS = ("mmlu-anatomy", "mmlu-stem", "xcopa-zh", "xnli-en")
LOCAL = [
    pytest.param(name, marks=[] if "-" not in name or name in MEMBERS else pytest.mark.slow)
    for name in NAMES
    if "local" in library.member(name, field="b")[0].sources
]


def spec_of(name, **fields):
    return BenchmarkSpec.model_validate(library.expand({"spec": name, "limits": LIMITS, **fields}, field="b"))


# -- names and lines --------------------------------------------------------------------------------------------------


def test_the_library_has_what_it_should():
    assert library.spec_names() == [
        *("amazon", "anli", "arc_challenge", "arc_easy", "balanced_copa", "boolq", "cb", "commonsenseqa", "copa", "cr"),
        *("hellaswag", "imdb", "lambada", "logiqa", "mmlu", "mrpc", "multirc", "nq_open", "openbookqa", "paws"),
        *("piqa", "qqp"),
        *("rotten_tomatoes", "rte", "scitail", "siqa", "sst2", "sst5", "storycloze", "stsb", "subj", "truthful_qa"),
        *("tweet_eval", "wic", "winogrande", "xcopa", "xnli"),
    ]
    members = Counter(name.partition("-")[0] for name in NAMES)
    assert (members["xnli"], members["xcopa"], members["mmlu"]) == (15, 11, 57 + 4)
    domains = [library.member(f"mmlu-{domain}", field="b")[1].values["subject"] for domain in DOMAINS]
    assert sorted(subject for domain in domains for subject in domain) == sorted(SUBJECTS)
    assert all(library.is_benchmark(name) for name in NAMES)
    assert not any(library.is_benchmark(name) for name in ("xnli", "xnli-xx", "sst2-en", "", "nothing"))


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_can_be_written_out(name):
    spec, variant = library.member(name, field="b")
    for kind in variant.sources or spec.sources:
        for template in spec.prompts:
            line = {"source": kind, "template": template}
            line |= {"data": "rows"} if kind == "local" else {}
            source = (variant.sources or spec.sources)[kind].train.source
            line |= {"revision": "0" * 40} if kind == "hub" and "revision" not in source else {}
            written = spec_of(name, **line)
            check_templates(written, field="b")
            assert "$" not in str(written.model_dump())
    assert set(spec.limits) == {"test", "transfer"}
    assert spec.note
    assert spec.licence


def test_a_line_in_params():
    params = settings()
    params["benchmarks"]["zh"] = {"spec": "xcopa-zh", "data": "rows", "template": "harness", "limits": LIMITS}
    params["benchmarks"]["stem"] = {"spec": "mmlu-stem", "limits": LIMITS, "chat_template": True, "date": "2025-02-03"}
    parsed = parse_settings(yaml.safe_dump(params)).benchmarks
    assert parsed["zh"].train.source.paths == ["rows/xcopa/zh/validation.jsonl"]
    assert "因为" in parsed["zh"].prompt
    assert not parsed["zh"].chat_template
    stem = parsed["stem"]
    assert stem.chat == "2025-02-03"
    assert (stem.test.source.id, stem.test.source.config, stem.test.source.split) == ("cais/mmlu", "all", "test")
    assert len(stem.test.where["subject"]) == 19


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"spec": "xnli"}, "spec: xnli is a group; name one of its languages, such as xnli-ar, xnli-bg, xnli-de"),
        ({"spec": "xnli-xy"}, "spec: no benchmark 'xnli-xy' in the library; did you mean "),
        ({"spec": "mmlu-anatmy"}, "spec: no benchmark 'mmlu-anatmy' in the library; did you mean mmlu-anatomy"),
        ({"spec": "../params"}, "spec: no benchmark '../params' in the library; `dsm benchmarks ls` lists all"),
        ({"spec": "sst5", "template": "harness"}, "template: sst5 has no 'harness'; choose from ['sadi']"),
        ({"spec": "cb", "source": "wheel"}, "source: cb has no source 'wheel'; choose from ['hub', 'local']"),
        ({"spec": "amazon"}, "data: is missing: name the directory with the benchmark's files"),
        ({"spec": "sst2", "source": "local"}, "data: is missing: name the directory with the benchmark's files"),
        ({"spec": "sst2", "source": "hub", "data": "x"}, "data: is for local files, but source is 'hub'"),
        ({"spec": "siqa", "source": "hub"}, "revision: is missing: no commit of lighteval/siqa is known here"),
        ({"spec": "sst2", "revision": "0" * 40}, "revision: sst2 is read from the commit bcdcba79"),
        ({"spec": "boolq", "revision": "0" * 40}, "revision: is for the hub, but the rows come from: wheel"),
        ({"spec": "siqa", "source": "hub", "revision": "main"}, "train.source.revision: must be a commit of 40"),
        ({"spec": "sst2", "prompt": "?"}, "prompt: Extra inputs are not permitted"),
        ({"spec": "sst2", "date": datetime.date(2025, 2, 3)}, "date: must be in quotes"),
        ({"spec": "sst2", "date": 5}, "date: must be a date such as"),
        ({"spec": "sst2", "chat_template": "maybe"}, "chat_template: Input should be a valid boolean"),
        ({"spec": "sst2", "test": {"split": 0}}, "test.split: Input should be greater than 0"),
        ({"spec": "sst2", "limits": {"test": 0, "transfer": 0}}, "limits.test: Input should be greater than 0"),
        ({"spec": "sst2", "limits": None}, "limits: "),
    ],
)
def test_a_mistake_in_a_line_is_one_line(line, told):
    params = settings()
    params["benchmarks"]["b"] = {"limits": LIMITS, **line}
    with pytest.raises(InputError) as caught:
        parse_settings(yaml.safe_dump(params))
    assert str(caught.value).startswith(f"benchmarks.b.{told}")
    assert "\n" not in str(caught.value)


def test_twins_of_balanced_copa_stay_together():
    rows = [
        {"id": i + 1000 * twin, "premise": f"p{i} {twin}", "question": "cause", "label": twin}
        | {"choice1": f"a{i}", "choice2": f"b{i}"}
        for twin in (0, 1)
        for i in range(1, 31)
    ]
    for size, expected in ((20, 20), (21, 20)):
        spec = spec_of("balanced_copa", test={"split": size, "seed": 3})
        found = examples(rows, spec, "train", field="b").examples
        train, test = splits(spec, found, None, field="b")
        assert (len(test), len(train)) == (expected, 60 - expected)
        assert not {example.group for example in test} & {example.group for example in train}
    with pytest.raises(InputError, match=r"b\.test\.split: every group has more than 1 rows"):
        splits(spec_of("balanced_copa", test={"split": 1}), found, None, field="b")


# -- real rows --------------------------------------------------------------------------------------------------------


def local_rows(source):
    return [row for path in source.paths for row in read_rows(Path(path), name=path, field="b")]


def check_rows(name, spec, facts, train, test, exact=True):
    """Three rows of each split are valid, and the facts in the file are those of the rows."""
    kept = {}
    for split, rows in (("train", train), ("test", test)):
        if rows is None:
            continue
        kept[split] = examples(rows, spec, split, field=name).examples
        for example in kept[split][:3]:
            assert spec.free_answers or 0 <= example.gold < len(example.options)
            assert len(set(example.options)) == len(example.options) >= (1 if spec.free_answers else 2)
            assert "{{" not in example.prompt + "".join(example.options)
    pool = kept.get("test") or kept["train"]
    if exact and facts.majority is not None:
        share = Counter(example.gold for example in pool).most_common(1)[0][1] / len(pool)
        assert share == pytest.approx(facts.majority, abs=0.025 if isinstance(spec.test, HeldOut) else 6e-4)
    if test is not None:
        assert len(test) == facts.test if exact else len(test) < facts.test
        assert facts.train is None or len(train) <= facts.train
    else:
        assert facts.test == spec.test.split
        assert facts.train <= len(train) - facts.test
    choices = {len(example.options) for example in pool}
    told = library.member(name, field="b")[0].choices.split(" to ")[0]
    assert told == ("free" if spec.free_answers else str(min(choices)))


@pytest.mark.parametrize("name", LOCAL)
def test_specs_fit_local_rows(name):
    spec = spec_of(name, data=str(DATA))
    files = [*spec.train.source.paths, *([] if isinstance(spec.test, HeldOut) else spec.test.source.paths)]
    if not all(Path(path).is_file() for path in files):
        pytest.skip(f"needs the rows of {name}; DSM_TEST_DATA names the directory")
    _, _, facts = library.origin(name, field="b", data=str(DATA))
    train = local_rows(spec.train.source)
    test = None if isinstance(spec.test, HeldOut) else local_rows(spec.test.source)
    for template in library.member(name, field="b")[0].prompts:
        check_rows(name, spec_of(name, data=str(DATA), template=template), facts, train, test, name not in SUBSETS)


@pytest.mark.real
def test_specs_fit_the_wheels(tmp_path):
    for name in ("rotten_tomatoes", "boolq", "commonsenseqa", "piqa", "openbookqa", "siqa", "logiqa"):
        assert library.origin(name, field="b")[0] == "wheel"
        for template in library.member(name, field="b")[0].prompts:
            spec = spec_of(name, template=template)
            facts = library.origin(name, field="b")[2]
            rows = [
                None if isinstance(split, HeldOut) else wheel_rows(split.source, tmp_path)
                for split in (spec.train, spec.test)
            ]
            if name == "boolq":  # the file of train also has the rows of test and rows without a label
                found = [
                    examples(part, spec, split, field="b").examples for part, split in zip(rows, SPLITS, strict=True)
                ]
                train, test = splits(spec, *found, field="b")
                assert (len(train), len(test)) == (facts.train, facts.test)
            elif name == "rotten_tomatoes":
                check_rows(name, spec, facts, [row for row in rows[0] if row["source"] == name], rows[1])
            else:
                check_rows(name, spec, facts, *rows)


SPLITS = ("train", "test")


def wheel_rows(source, work):
    assert isinstance(source, WheelSource)
    return read_rows(fetch_file(source, field="b", root=work, work=work), name=source.file, field="b")


# -- prompts ----------------------------------------------------------------------------------------------------------

SADI = {  # a row as in the local files or the wheel, and SADI's prompt (or one of the same form)
    "sst2": (
        {"sentence": "so dull .", "label": 0},
        "Consider the sentiment expression in this sentence and respond briefly with 'positive' or 'negative'.\n\n"
        "so dull .\n\nAnswer:",
        (" Negative", " Positive"),
    ),
    "sst5": (
        {"text": "so dull .", "label": 0},
        "Consider the sentiment expression in this sentence and respond briefly with 'very positive', 'positive', "
        "'neutral', 'negative', and 'very negative'.\n\nso dull .\n\nAnswer:",
        (" very negative", " negative", " neutral", " positive", " very positive"),
    ),
    "boolq": (
        {"question": "is it wet", "passage": "Water is wet.", "answer": True},
        "Is the answer to the question encapsulated in the passage? Please confirm with 'yes' or 'no'.\n\n"
        "Passage: Water is wet.\n\nQuestion: is it wet\n\nAnswer:",
        (" No", " Yes"),
    ),
    "copa": (
        {"premise": "It fell.", "question": "cause", "choice1": "I hit it.", "choice2": "It ran.", "label": 0},
        "Question:\nIt fell. Based on the previous passage, choose the most reasonable cause.\nA:I hit it.\n"
        "B:It ran.\n\nAnswer:\n",
        (" A", " B"),
    ),
    "xnli-en": (
        {"premise": "P.", "hypothesis": "H.", "label": 2},
        "Answer whether the hypothesis is more likely to be true, false, or unclusive based on the given premise.\n"
        "Premise: P.\nHypothesis: H.\nAnswer:",
        (" True", " unclusive", " False"),
    ),
    "mmlu-anatomy": (
        {"question": "Q?", "subject": "anatomy", "choices": ["w", "x", "y", "z"], "answer": 3},
        "Question: Q?\nWhich of the following answers is correct?\nA. w\nB. x\nC. y\nD. z\n"
        "State the letter corresponding to the correct answer.\nAnswer:",
        (" A", " B", " C", " D"),
    ),
    "arc_easy": (
        {"question": "Q?", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "2"},
        "Question: Q?\nWhich of the following answers is correct?\nA. x\nB. y\nC. z\n"
        "State the letter corresponding to the correct answer.\nAnswer:",
        (" A", " B", " C"),
    ),
    "scitail": (
        {"premise": "P.", "hypothesis": "H.", "label": "neutral"},
        "Answer whether the hypothesis is more likely to be true or inconclusive based on the given premise.\n"
        "Premise: P.\nHypothesis: H.\nAnswer:",
        (" True", " inconclusive"),
    ),
    "subj": (
        {"text": "so dull .", "label": 0, "label_text": "subjective"},
        "Consider the expression in this sentence and respond briefly with 'subjective' or 'objective'.\n\n"
        "so dull .\n\nAnswer:",
        (" subjective", " objective"),
    ),
    "commonsenseqa": (
        {"question": "Q?", "options": "\nA. v\nB. w\nC. x\nD. y\nE. z", "answer": "B. w"},
        "Question: Q?\nWhich of the following answers is correct?\nA. v\nB. w\nC. x\nD. y\nE. z\n"
        "State the letter corresponding to the correct answer.\nAnswer:",
        (" A", " B", " C", " D", " E"),
    ),
    "piqa": (
        {"question": "Q?", "options": "A. x\nB. y", "answer": "B. y"},
        "Question: Q?\nWhich of the following answers is correct?\nA. x\nB. y\n"
        "State the letter corresponding to the correct answer.\nAnswer:",
        (" A", " B"),
    ),
    "openbookqa": (
        {"question": "Q:", "options": "A. w\nB. x\nC. y\nD. z", "answer": "B. x"},
        "Question: Q:\nWhich of the following answers is correct?\nA. w\nB. x\nC. y\nD. z\n"
        "State the letter corresponding to the correct answer.\nAnswer:",
        (" A", " B", " C", " D"),
    ),
    "siqa": (
        {"passage": "P.", "question": "Q?", "options": "A. x\nB. y\nC. z", "answer": "C. z"},
        "Question: P. Q?\nWhich of the following answers is correct?\nA. x\nB. y\nC. z\n"
        "State the letter corresponding to the correct answer.\nAnswer:",
        (" A", " B", " C"),
    ),
    "logiqa": (
        {"passage": "P.", "question": "Q?\n", "options": "A. w\nB. x\nC. y\nD. z", "answer": "D. z"},
        "Question: P. Q?\nWhich of the following answers is correct?\nA. w\nB. x\nC. y\nD. z\n"
        "State the letter corresponding to the correct answer.\nAnswer:",
        (" A", " B", " C", " D"),
    ),
}
SADI["rotten_tomatoes"] = ({"text": "so dull .", "label": 0, "source": "rotten_tomatoes"}, SADI["sst2"][1])
SADI["rotten_tomatoes"] += ((" negative", " positive"),)
SADI["arc_challenge"] = SADI["arc_easy"]
SADI["xcopa-zh"] = SADI["copa"]
SADI["balanced_copa"] = ({**SADI["copa"][0], "id": 7}, *SADI["copa"][1:])
SENTENCES = {"sentence1": "One ran.", "sentence2": "One walked.", "label": 1}
SAME = "Do the two sentences mean the same thing? Please confirm with 'yes' or 'no'.\n\nSentence 1: One ran.\n\n"
SAME += "Sentence 2: One walked.\n\nAnswer:"
SADI |= {
    "mrpc": (SENTENCES, SAME, (" No", " Yes")),
    "paws": (SENTENCES, SAME, (" No", " Yes")),
    "stsb": ({**SENTENCES, "label": 4.2}, SAME, (" No", " Yes")),
    "qqp": (
        {"question1": "Who ran?", "question2": "Who walked?", "label": 0},
        "Do the two questions ask the same thing? Please confirm with 'yes' or 'no'.\n\nQuestion 1: Who ran?\n\n"
        "Question 2: Who walked?\n\nAnswer:",
        (" No", " Yes"),
    ),
    "wic": (
        {**SENTENCES, "word": "one", "start1": 0, "end1": 3, "start2": 0, "end2": 3},
        "Does the word 'one' have the same meaning in the two sentences? Please confirm with 'yes' or 'no'.\n\n"
        "Sentence 1: One ran.\n\nSentence 2: One walked.\n\nAnswer:",
        (" No", " Yes"),
    ),
    "rte": (
        SENTENCES,
        "Answer whether the hypothesis is more likely to be true or false based on the given premise.\n"
        "Premise: One ran.\nHypothesis: One walked.\nAnswer:",
        (" True", " False"),
    ),
    "cb": (*SADI["xnli-en"][:2], (" True", " False", " unclusive")),
    "anli-r3": SADI["xnli-en"],
    "multirc": (
        {"paragraph": "One ran.", "question": "Who ran?", "answer": "One", "label": 1},
        "Is the answer to the question right according to the passage? Please confirm with 'yes' or 'no'.\n\n"
        "Passage: One ran.\n\nQuestion: Who ran?\n\nProposed answer: One\n\nAnswer:",
        (" No", " Yes"),
    ),
    "hellaswag": (
        {"ctx": "[header] How to run [title] Run. he", "endings": ["w", "x", "y", "[step] z  z"], "label": "3"},
        " How to run. Run. he\nQuestion: What is a possible continuation for the story given the following options?\n"
        "A: w B: x C: y D:  z z\nAnswer:",
        (" A", " B", " C", " D"),
    ),
    "winogrande": (
        {"sentence": "The _ ran.", "option1": "cat", "option2": "mat", "answer": "1"},
        "Please fill in the blanks. Write A or B as the answer.\n\nSentence: The _ ran.\nA. cat\nB. mat\nAnswer:",
        (" A", " B"),
    ),
    "storycloze": (
        {f"input_sentence_{i}": f"Part {i}." for i in range(1, 5)}
        | {"sentence_quiz1": "x.", "sentence_quiz2": "y.", "answer_right_ending": 2},
        "Part 1. Part 2. Part 3. Part 4.\nQuestion: What is a possible continuation for the story given the following "
        "options?\nA: x. B: y.\nAnswer:",
        (" A", " B"),
    ),
    "imdb": (
        {"text": "so dull .", "label": 0},
        SADI["sst2"][1].replace("this sentence", "this review"),
        (" negative", " positive"),
    ),
    "cr": ({"text": "so dull .", "label": 0, "label_text": "negative"}, SADI["sst2"][1], (" negative", " positive")),
    "tweet_eval": (
        {"text": "so dull .", "label": 2},
        "Consider the sentiment expression in this tweet and respond briefly with 'positive', 'neutral', or "
        "'negative'.\n\nso dull .\n\nAnswer:",
        (" negative", " neutral", " positive"),
    ),
    "amazon": (
        {"title": "dull", "content": "so dull .", "label": 0},
        SADI["sst5"][1].replace("this sentence", "this review").replace("so dull", "dull\nso dull"),
        SADI["sst5"][2],
    ),
    "truthful_qa": SADI["arc_easy"],  # its train rows are those of ARC; the test rows are below
}
GOLD = {"boolq": 1, "xnli-en": 2, "mmlu-anatomy": 3, "arc_easy": 1, "arc_challenge": 1, "scitail": 1}
GOLD |= {"mrpc": 1, "paws": 1, "stsb": 1, "wic": 1, "rte": 1, "cb": 2, "anli-r3": 2, "multirc": 1}
GOLD |= {"hellaswag": 3, "storycloze": 1, "tweet_eval": 2, "truthful_qa": 1}
GOLD |= {"commonsenseqa": 1, "piqa": 1, "openbookqa": 1, "siqa": 2, "logiqa": 3}


WHEELS = ("rotten_tomatoes", "commonsenseqa", "piqa", "openbookqa", "siqa", "logiqa")  # rows as above


def rendered(name, template, row):
    local = name not in WHEELS
    spec = spec_of(name, template=template, **({"data": "rows"} if local else {}))
    assert isinstance(spec.train.source, LocalSource) == local
    return examples([row], spec, "train", field="b").examples[0]


FREE = {"lambada", "nq_open"}  # without options: test_free_answers.py


def test_there_is_a_prompt_of_every_spec():
    assert {name.partition("-")[0] for name in SADI} | FREE == set(library.spec_names())


@pytest.mark.parametrize("name", SADI)
def test_the_default_prompt(name):
    row, prompt, options = SADI[name]
    found = rendered(name, "sadi", row)
    assert (found.prompt, found.options, found.gold) == (prompt, options, GOLD.get(name, 0))


def test_broken_rows_of_commonsenseqa_are_cut_by_their_letters():
    for row in (
        {"question": "Q", "options": ".\nA. v\nB. w\nC. x\nD. y\nE. z?", "answer": "E. z"},
        {"question": "Q\nA. v\nB. w", "options": "\nC. x\nD. y\nE. z?", "answer": "E. z"},
    ):
        found = rendered("commonsenseqa", "sadi", row)
        assert "A. v\nB. w\nC. x\nD. y\nE. z\nState" in found.prompt
        assert found.gold == 4


HARNESS = {  # the task of lm-evaluation-harness, and a row as the hub has it
    "sst2": ("glue/sst2/default.yaml", SADI["sst2"][0]),
    "boolq": ("super_glue/boolq/default.yaml", SADI["boolq"][0]),
    "copa": ("super_glue/copa/default.yaml", SADI["copa"][0]),
    "balanced_copa": ("super_glue/copa/default.yaml", SADI["balanced_copa"][0]),
    "arc_easy": ("arc/arc_easy.yaml", SADI["arc_easy"][0]),
    "arc_challenge": ("arc/arc_challenge.yaml", SADI["arc_easy"][0]),
    "commonsenseqa": (
        "commonsense_qa/default.yaml",
        {"question": "Q? ", "choices": {"text": list("vwxyz"), "label": list("ABCDE")}, "answerKey": "B"},
    ),
    "piqa": ("piqa/piqa.yaml", {"goal": "Q?", "sol1": "x", "sol2": "y", "label": 1}),
    "openbookqa": (
        "openbookqa/openbookqa.yaml",
        {"question_stem": "Q:", "choices": {"text": list("wxyz"), "label": list("ABCD")}, "answerKey": "B"},
    ),
    "siqa": (
        "siqa/siqa.yaml",
        {"context": "P.", "question": "Q?", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3"},
    ),
    "mmlu-high_school_us_history": (
        "mmlu/default/mmlu_high_school_us_history.yaml",
        {**SADI["mmlu-anatomy"][0], "question": " Q?\n", "subject": "high_school_us_history"},
    ),
}
HARNESS |= {
    f"xnli-{name}": (f"xnli/xnli_{name}.yaml", SADI["xnli-en"][0]) for name in library.read_spec("xnli").variants
}
HARNESS |= {
    f"xcopa-{name}": (f"xcopa/default_{name}.yaml", SADI["copa"][0]) for name in library.read_spec("xcopa").variants
}


@pytest.mark.parametrize("name", HARNESS)
def test_the_harness_prompt_is_that_of_lm_evaluation_harness(name):
    file, row = HARNESS[name]
    config = harness_task(file)
    found = examples([row], spec_of(name, template="harness", data="x"), "train", field="b").examples[0]
    assert found.prompt == config.get("description", "") + harness_value(config["doc_to_text"], row)
    choices = harness_value(config["doc_to_choice"], row)
    choices = ast.literal_eval(choices) if isinstance(choices, str) else choices
    delimiter = config.get("target_delimiter", " ")
    assert list(found.options) == [f"{delimiter}{choice}" for choice in choices]
