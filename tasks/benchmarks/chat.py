"""The chat template of a tokenizer, rendered to the same text on every day."""

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
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")  # how Python prints an object that has no text


def chat_text(tokenizer: Any, prompt: str, date: str = DATE) -> str:
    """The prompt as the one turn of the user, up to where the model's turn begins.

    As `tokenizer.apply_chat_template` has it, but the template is told a fixed date where it asks for today's: by
    `strftime_now` (midnight of that date) and as `date_string` (`26 Jul 2024`, the form of the Llama models).

    Args:
        date: year, month and day, as in `2024-07-26`.

    Raises:
        InputError: the tokenizer has no chat template, or one that fails, that draws at random, or whose text does not
            depend on the prompt.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(FIELD, "is true, but this model's tokenizer has no chat template")
    text = _rendered(tokenizer, prompt, date)
    if not text.strip():
        raise InputError(FIELD, f"the tokenizer's chat template writes nothing for the prompt {prompt[:60]!r}")
    if text == _rendered(tokenizer, prompt + "x", date):
        raise InputError(FIELD, "the tokenizer's chat template leaves the user's turn out")
    if (found := _ADDRESS.search(text)) and found[0] not in prompt:
        raise InputError(FIELD, f"the tokenizer's chat template writes a place in memory, {found[0]}, into the prompt")
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
    except Exception as error:  # a template may call any method of its values, so it may raise anything
        problem = str(error) or type(error).__name__
        raise InputError(FIELD, f"the tokenizer's chat template fails: {problem}") from None


@functools.lru_cache(maxsize=8)
def _compiled(template: str, date: str) -> jinja2.Template:
    """The template in the environment of transformers, without its clock and without what draws at random.

    Variables would not do: transformers lets no function through to a template.
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
        raise jinja2.TemplateRuntimeError(f"it uses `{name}`, which gives another prompt every time")

    return refuse
