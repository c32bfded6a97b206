"""Benchmarks with free answers: their prompts are those of lm-evaluation-harness, and any accepted answer is right."""

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from tasks.benchmarks import library
from tasks.benchmarks.benchmark_spec import EVERY, BenchmarkSpec
from tasks.benchmarks.prepare import prepare
from tasks.benchmarks.rows import examples
from tasks.benchmarks.scoring import Answers, answers_unedited
from tasks.benchmarks.table import encode_rows, exact_matches
from tasks.models.stack import DecoderStack
from tasks.pipeline.settings import parse_settings
from tasks.runtime.errors import InputError
from tests.benchmarks.lm_eval_tasks import harness_task, harness_value
from tests.benchmarks.test_task_families import DATA, found, real_rows, spec_of
from tests.cells import settings
from tests.tiny import tiny_model, tiny_tokenizer

SOURCE = {"kind": "path", "path": "quiz.jsonl", "sha256": "0" * 64}
FREE = {
    "train": {"source": SOURCE, "gold": "any"},
    "test": {"split": 2},
    "prompt": "{{ question }} :",
    "options": "{{ answers }}",
    "limits": {"test": 2, "transfer": 0},
}


@pytest.mark.parametrize(
    ("name", "file", "path"),
    [
        ("nq_open", "nq_open/nq_open.yaml", "nq_open/validation.jsonl"),
        ("lambada", "lambada/lambada_openai.yaml", "lambada/test.jsonl"),
    ],
)
def test_prompts_and_answers_of_real_rows_are_those_of_lm_evaluation_harness(name, file, path):
    config, rows = harness_task(file), real_rows(path)[:300]
    ours = examples(rows, spec_of(name), "train", field="b").examples
    assert len(ours) == len(rows)
    for one, row in zip(ours, rows, strict=True):
        assert one.prompt == config.get("description", "") + harness_value(config["doc_to_text"], row)
        assert one.gold == EVERY
        target = harness_value(config["doc_to_target"], row)
        if name == "nq_open":
            # The harness ends the answer at a line feed.
            answers = [f" {answer}\n" for answer in ast.literal_eval(target)]
            assert list(one.options) == list(dict.fromkeys(answers))
        else:
            assert list(one.options) == [target]


def test_the_splits_of_lambada_share_no_passage():
    real_rows("lambada/test.jsonl")
    prepared = prepare("lambada", spec_of("lambada", data=str(DATA), limits={"test": 9, "transfer": 0}), Path())
    assert prepared.summary.endswith(
        "train 499 with free answers, test 2800 with free answers"
    )  # one passage occurs twice
    assert not set(prepared.train["prompt"]) & set(prepared.test["prompt"])
    assert set(prepared.test["gold"]) == {EVERY}


def test_an_answer_that_is_there_twice_is_kept_once():
    row = {"question": "who", "answer": ["Ann", "Bob", "Ann"]}
    assert found("nq_open", row).options == (" Ann\n", " Bob\n")


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([], "options: row 1: the template must give a list of at least one, not []"),
        (["Ann", ""], "options: row 1: an option is empty: ['Ann', '']"),
        (["Ann", None], "options: row 1: answers[1] is empty (null)"),
        ("Ann", "options: row 1: the template must give a list of at least one, not 'Ann'"),
        (None, "options: row 1: "),
    ],
)
def test_rows_without_usable_answers_are_one_line(answers, told):
    with pytest.raises(InputError) as caught:
        examples([{"question": "who", "answers": answers}], BenchmarkSpec.model_validate(FREE), "train", field="b")
    assert str(caught.value).startswith(f"b.{told}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answers", ["Ann", None, ["Ann", None]])
def test_nq_answers_that_are_no_list_of_texts_are_one_line(answers):
    with pytest.raises(InputError, match=r"^b\..*row 1") as caught:
        found("nq_open", {"question": "who", "answer": answers})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"labels": ["0", "1"]}, "benchmarks.free: labels: free answers have none; with gold: any "),
        ({"options": [" yes", " no"]}, "benchmarks.free: options: must be one template; with gold: any "),
        (
            {"test": {"source": SOURCE, "gold": "{{ right }}"}},
            "benchmarks.free: gold must be any in both train and test, or in neither",
        ),
    ],
)
def test_an_entry_that_mixes_options_and_free_answers_is_one_line(change, told):
    with pytest.raises(InputError) as caught:
        parse_settings(yaml.safe_dump(with_free(**change)))
    assert str(caught.value).startswith(told)


def with_free(**change):
    params = settings()
    params["benchmarks"]["free"] = FREE | change
    return params


def entry(study, **fields):
    return {f"{study}-tiny-reviews": {"study": study, "model": "tiny", "benchmark": "reviews"} | fields}


def test_free_answers_are_for_the_study_of_generation_and_for_prompts():
    params = with_free()
    params["studies"] = entry("generation", benchmarks=["free"]) | entry("calibration", benchmarks=["free"])
    params["studies"] |= entry("word_neurons", benchmarks=["free"])
    parsed = parse_settings(yaml.safe_dump(params))
    assert parsed.benchmarks["free"].free_answers
    assert not parsed.benchmarks["reviews"].free_answers


@pytest.mark.parametrize(
    ("section", "value", "told"),
    [
        ("pipeline", {"models": ["tiny"], "benchmarks": ["free"], "cells": {
            "tiny-free": {"model": "tiny", "benchmark": "free"}}},
         "pipeline.cells.tiny-free: free has free answers, not"),
        ("nsa", {"tiny-free": {"model": "tiny", "benchmark": "free"}}, "nsa.tiny-free: free has free answers, not"),
        ("studies", {"seeds-tiny-free": {"study": "seeds", "model": "tiny", "benchmark": "free"}},
         "studies.seeds-tiny-free: free has free answers, not"),
        ("studies", entry("cross_benchmark", benchmarks=["free"]),
         "studies.cross_benchmark-tiny-reviews.benchmarks: free has free answers, not"),
        ("studies", entry("generation", benchmarks=["others"]),
         "studies.generation-tiny-reviews.benchmarks: others has no free answers (gold: any)"),
    ],
)  # fmt: skip
def test_free_answers_where_options_are_needed_are_one_line(section, value, told):
    params = with_free() | {section: value}
    params["benchmarks"]["others"] = params["benchmarks"]["reviews"]
    with pytest.raises(InputError) as caught:
        parse_settings(yaml.safe_dump(params))
    assert str(caught.value).startswith(f"params.yaml: {told}")


def test_the_library_tells_how_free_answers_are_used():
    spec = library.member("nq_open", field="b")[0]
    assert (spec.gold, spec.choices) == ("any", "free")
    assert found("nq_open", {"question": "who", "answer": ["Ann"]}).prompt.endswith("Q: who?\nA:")


def test_teacher_forcing_finds_what_greedy_decoding_writes():
    """The accepted answers are what a plain greedy loop writes, after some wrong ones; or only wrong ones."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    prompts, answers, expected = [], [], []
    for i in range(60):
        prompt = f"{i} is the number {i * i}"
        text = tokenizer.decode(greedy(model, tokenizer(prompt)["input_ids"], 2))
        if text.isascii() and text.isalnum():
            prompts += [prompt, prompt + "!"]
            wrong = "Q" if text != "Q" else "R"
            answers += [[text + wrong, text], [wrong + text]]
            other = tokenizer.decode(greedy(model, tokenizer(prompt + "!")["input_ids"], len(wrong + text)))
            expected += [True, other.lower() == (wrong + text).lower()]
    assert sum(expected) >= 2
    assert not all(expected)
    columns = {"id": prompts, "prompt": prompts, "options": answers, "gold": EVERY}
    rows = encode_rows(pd.DataFrame(columns), tokenizer, 512)
    found_answers = answers_unedited(DecoderStack(model), rows.encoded)
    assert exact_matches(tokenizer, rows, found_answers, 0).tolist() == expected
    best = [logprobs[0].max() for logprobs in found_answers.logprobs]
    assert found_answers.margins(rows.gold)[0].tolist() == pytest.approx(best)


def greedy(model, ids, count):
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


def test_an_answer_must_end_where_the_accepted_one_does():
    """A line feed or punctuation ends the answer; another word continues it."""
    tokenizer = tiny_tokenizer()
    rows = encode_rows(
        pd.DataFrame({"id": ["0"], "prompt": ["Q:"], "options": [[" one\n", " one season\n"]], "gold": [EVERY]}),
        tokenizer, 100,
    )  # fmt: skip

    def right(text, option):
        tokens = np.full((1, 2, 12), -1)
        tokens[0, option, : len(text)] = tokenizer(text)["input_ids"]
        tokens[0, 1 - option, :4] = tokenizer("zzzz")["input_ids"]
        return exact_matches(tokenizer, rows, Answers([np.zeros((1, 2))], [tokens]), 0).tolist()

    assert [right(text, 0) for text in (" one\n", " One.", " one,", " onex", " two\n")] == [[True]] * 3 + [[False]] * 2
    assert right(" one season\n", 1) == [True]
