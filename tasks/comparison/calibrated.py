"""Contextual calibration: division by the prior of the options after prompts without content (Zhao et al. 2021).

Zhao et al., "Calibrate Before Use: Improving Few-Shot Performance of Language Models" (arXiv 2102.09690), section 5:
the probabilities of the options after the content-free inputs "N/A", "[MASK]" and the empty text are averaged to p_cf,
and a row's probabilities are divided by it, W = diag(p_cf)^-1 and b = 0. It uses no example and no label.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from tasks.benchmarks.benchmark_spec import BenchmarkSpec
from tasks.benchmarks.encoding import Encoded, encode
from tasks.benchmarks.scoring import Answers
from tasks.benchmarks.templates import compile_template, names_used
from tasks.comparison.system import Answer, FitData, Fitted, System, unedited
from tasks.runtime.errors import InputError

CONTENT_FREE = ("N/A", "[MASK]", "")  # from the paper


class ContentFree(str):
    """A text whose items, attributes and method results are the text itself.

    So a template that uses a part of a field, such as `{{ choices[0] }}` or `{{ text.strip() }}`, gets the same text.
    """

    __slots__ = ()

    def __getitem__(self, key: Any) -> "ContentFree":
        return self

    def __iter__(self) -> Iterator[str]:
        return iter([self])

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return super().__getattribute__(name)
        if hasattr(str, name):
            return lambda *_, **__: self
        return self


def content_free(spec: BenchmarkSpec) -> list[str]:
    """The benchmark's prompt, once for each content-free text, which replaces all names that the template uses.

    Raises:
        InputError: the template cannot be rendered, for example because it uses a field as an index.
    """
    render = compile_template(spec.prompt, field="prompt")
    prompts = []
    for text in CONTENT_FREE:
        try:
            prompts.append(render(dict.fromkeys(names_used(spec.prompt), ContentFree(text)), 1))
        except InputError as error:
            raise InputError(
                "prompt", f"the template has no content-free form, with {text!r} for every name: {error.problem}"
            ) from None
    return prompts


def encoded_prompts(spec: BenchmarkSpec, tokenizer: Any, context: int) -> list[list[int]]:
    """Token ids of the content-free prompts, encoded like those of the benchmark's rows.

    Raises:
        InputError: as `content_free` and `encode`.
    """
    options = ["A", "B"]  # the prompt's tokens do not depend on them
    return [encode(tokenizer, prompt, options, context, chat=spec.chat).prompt for prompt in content_free(spec)]


def log_priors(
    answer: Callable[[Sequence[Encoded]], Answers], prompts: Sequence[Sequence[int]], rows: Sequence[Encoded]
) -> list[np.ndarray]:
    """Log of the mean over content-free prompts of the softmax over each row's own options.

    Args:
        answer: the answers of C models to rows.

    Returns:
        For each row, float64 [C, options]. Rows with the same options are computed once.
    """
    distinct = {_key(row): row.options for row in rows}
    blank_rows = [Encoded(list(prompt), options) for options in distinct.values() for prompt in prompts]
    logprobs = answer(blank_rows).logprobs
    priors = {}
    for number, key in enumerate(distinct):
        by_prompt = np.stack(logprobs[number * len(prompts) : (number + 1) * len(prompts)]).astype(np.float64)
        priors[key] = logsumexp(log_softmax(by_prompt, axis=-1), axis=0) - np.log(len(prompts))
    return [priors[_key(row)] for row in rows]


def _key(row: Encoded) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, row.options))


def divided_out(answers: Answers, priors: Sequence[np.ndarray]) -> Answers:
    """The answers minus the log prior of each row's options, float32. They are no longer log-probabilities."""
    corrected = [
        (logprobs.astype(np.float64) - prior).astype(np.float32)
        for logprobs, prior in zip(answers.logprobs, priors, strict=True)
    ]
    return Answers(corrected, answers.greedy)


def calibrated(spec: BenchmarkSpec) -> System:
    """The base model with the option prior after the benchmark's content-free prompts divided out.

    `Answers.greedy` does not change: the correction applies only to the options.
    """

    def fit(fit_data: FitData) -> Fitted:
        prompts = encoded_prompts(spec, fit_data.loaded.tokenizer, fit_data.stack.context)

        @contextmanager
        def applied() -> Iterator[Answer]:
            with unedited(fit_data.stack) as answer:
                yield lambda rows: divided_out(answer(rows), log_priors(answer, prompts, rows))

        return Fitted(applied, examples=0, labels=0, settings={"content-free inputs": list(CONTENT_FREE)})

    return fit
