"""The chat template of a tokenizer, rendered to the same text every day."""

import functools
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

from tasks.benchmarks.benchmark_spec import DATE
from tasks.runtime.errors import InputError

FIELD = "chat_template"
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")  # how Python prints an object without its own text


def chat_text(tokenizer: Any, prompt: str, date: str = DATE) -> str:
    """The prompt as a single user turn, up to the beginning of the model's turn.

    The same as `tokenizer.apply_chat_template`, except that today's date is fixed: for `strftime_now` (midnight of that
    date) and as `date_string` (`26 Jul 2024`, the form of the Llama models).

    Args:
        date: year, month and day, as in `2024-07-26`.

    Raises:
        InputError: the tokenizer has no chat template, or its template fails, uses random numbers or ignores the
            prompt.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(FIELD, "is true, but this model's tokenizer has no chat template")
    text = _rendered(tokenizer, prompt, date)
    if not text.strip():
        raise InputError(FIELD, f"the tokenizer's chat template gives an empty text for the prompt {prompt[:60]!r}")
    if text == _rendered(tokenizer, prompt + "x", date):
        raise InputError(FIELD, "the tokenizer's chat template omits the user's turn")
    if (address := _ADDRESS.search(text)) and address[0] not in prompt:
        raise InputError(FIELD, f"the tokenizer's chat template writes a memory address, {address[0]}, into the prompt")
    return text


def _rendered(tokenizer: Any, prompt: str, date: str) -> str:
    try:
        return _compiled(tokenizer.get_chat_template(), date).render(
            messages=[{"role": "user", "content": prompt}],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            date_string=datetime.fromisoformat(date).strftime("%d %b %Y"),
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # a template may call any method, so it may raise anything
        problem = str(error) or type(error).__name__
        raise InputError(FIELD, f"the tokenizer's chat template fails: {problem}") from None


@functools.lru_cache(maxsize=8)
def _compiled(template: str, date: str) -> jinja2.Template:
    """The template in the environment of transformers, with a fixed clock and without random numbers.

    Variables cannot replace the functions: transformers passes no function to a template.
    """
    environment = _compile_jinja_template("").environment.overlay()
    environment.filters = environment.filters | {"random": _refuses("random")}
    environment.globals = environment.globals | {
        "lipsum": _refuses("lipsum"),
        "strftime_now": lambda format: datetime.fromisoformat(date).strftime(format),
    }
    compiled: jinja2.Template = environment.from_string(template)
    return compiled


def _refuses(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise jinja2.TemplateRuntimeError(f"it uses `{name}`, which gives a different prompt every time")

    return refuse
