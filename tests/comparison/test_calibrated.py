"""Contextual calibration against a direct computation, and the templates that it must render."""

import numpy as np
import pytest
import torch

from tasks.benchmarks.benchmark_spec import BenchmarkSpec
from tasks.benchmarks.encoding import encode
from tasks.comparison.calibrated import calibrated, content_free
from tasks.comparison.system import FitData
from tasks.models.loading import Loaded
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError
from tests.tiny import tiny_model, tiny_tokenizer

CHAT = "{% for message in messages %}<u>{{ message['content'] }}</u><a>{% endfor %}"


def spec_of(prompt, options=(" no", " yes !"), **fields):
    source = {"kind": "path", "path": "rows.jsonl", "sha256": "0" * 64}
    return BenchmarkSpec.model_validate(
        {
            "train": {"source": source, "gold": "{{ label }}"},
            "test": {"split": 5},
            "prompt": prompt,
            "options": options if isinstance(options, str) else list(options),
            "limits": {"test": 5, "transfer": 0},
            **fields,
        }
    )


@pytest.fixture(scope="module")
def fit_data():
    model = tiny_model("llama")
    return FitData(Loaded(model, tiny_tokenizer()), DecoderStack(model), None, None)


def direct(fit_data, prompt, options):
    """Log-probability of each option, by one plain forward pass each."""
    row = encode(fit_data.loaded.tokenizer, prompt, options, 512)
    found = []
    for option in row.options:
        logits = fit_data.loaded.model(torch.tensor([row.prompt + option]), use_cache=False).logits[0]
        logprobs = logits.log_softmax(-1)
        found.append(sum(float(logprobs[len(row.prompt) - 1 + i, token]) for i, token in enumerate(option)))
    return np.array(found)


def softmax(values):
    exponential = np.exp(values - values.max())
    return exponential / exponential.sum()


def answers_of(fit_data, spec, prompts, options):
    rows = [
        encode(fit_data.loaded.tokenizer, prompt, choices, 512)
        for prompt, choices in zip(prompts, options, strict=True)
    ]
    fitted = calibrated(spec)(fit_data)
    assert (fitted.examples, fitted.labels) == (0, 0)
    with fitted.applied() as answer:
        return answer(rows)


def test_rows_of_equal_options(fit_data):
    spec = spec_of("Text: {{ text }}\nIs it good?")
    prompts = [f"Text: {text}\nIs it good?" for text in ("warm and long", "cold", "a dull film")]
    answers = answers_of(fit_data, spec, prompts, [spec.options] * 3)
    blank = [f"Text: {text}\nIs it good?" for text in ("N/A", "[MASK]", "")]
    prior = np.mean([softmax(direct(fit_data, prompt, spec.options)) for prompt in blank], axis=0)
    for found, prompt in zip(answers.logprobs, prompts, strict=True):
        np.testing.assert_allclose(found[0], direct(fit_data, prompt, spec.options) - np.log(prior), atol=1e-5)
        expected = softmax(direct(fit_data, prompt, spec.options)) / prior  # Zhao et al.: W p with W = diag(p_cf)^-1
        np.testing.assert_allclose(softmax(found[0]), expected / expected.sum(), atol=1e-5)


def test_every_row_has_the_prior_of_its_own_options(fit_data):
    spec = spec_of("{{ question }} ->", "{{ choices }}")
    options = [[" red", " blue"], [" one", " two", " three"], [" red", " blue"]]
    prompts = ["colour ->", "number ->", "sea ->"]
    answers = answers_of(fit_data, spec, prompts, options)
    for found, prompt, choices in zip(answers.logprobs, prompts, options, strict=True):
        blank = [f"{text} ->" for text in ("N/A", "[MASK]", "")]
        prior = np.mean([softmax(direct(fit_data, one, choices)) for one in blank], axis=0)
        np.testing.assert_allclose(found[0], direct(fit_data, prompt, choices) - np.log(prior), atol=1e-5)


def test_the_chat_template_is_respected(fit_data):
    fit_data.loaded.tokenizer.chat_template = CHAT
    try:
        fitted = calibrated(spec_of("{{ text }} ?", chat_template=True))(fit_data)
        row = encode(fit_data.loaded.tokenizer, "warm ?", [" no", " yes"], 512, chat=True)
        with fitted.applied() as answer:
            found = answer([row]).logprobs[0][0]
    finally:
        fit_data.loaded.tokenizer.chat_template = None
    blank = [f"<u>{text} ?</u><a>" for text in ("N/A", "[MASK]", "")]
    prior = np.mean([softmax(direct(fit_data, prompt, ["no", "yes"])) for prompt in blank], axis=0)
    np.testing.assert_allclose(found, direct(fit_data, "<u>warm ?</u><a>", ["no", "yes"]) - np.log(prior), atol=1e-5)


def test_the_model_stays_as_it_is(fit_data):
    before = {name: value.clone() for name, value in fit_data.loaded.model.state_dict().items()}
    answers_of(fit_data, spec_of("{{ text }}"), ["warm"], [[" no", " yes"]])
    assert all(torch.equal(before[name], value) for name, value in fit_data.loaded.model.state_dict().items())


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ text }}:", ["N/A:", "[MASK]:", ":"]),
        ("A. {{ choices[0] }} B. {{ choices[-1].text }}", ["A. N/A B. N/A", "A. [MASK] B. [MASK]", "A.  B. "]),
        ("{{ text.strip()[:-1] | lower }}!", ["N/A!", "[MASK]!", "!"]),
        ("{% for c in choices %}({{ c.text }}){% endfor %}", ["(N/A)", "([MASK])", "()"]),
        ('{{ a | replace("_", " ") }} {{ b + "." }}', ["N/A N/A.", "[MASK] [MASK].", " ."]),
        ("no name", ["no name"] * 3),
    ],
)
def test_templates_without_content(template, expected):
    assert content_free(spec_of(template)) == expected


@pytest.mark.parametrize("template", ['{{ {"cause": "because"}[question] }}', "{{ 1 // number }}", "{{ text() }}"])
def test_a_template_without_such_a_form_is_refused(template):
    with pytest.raises(InputError, match="content-free form") as caught:
        content_free(spec_of(template))
    assert "\n" not in str(caught.value)
