"""try_row: the answers of a cell's base and pruned model to a typed row, for `dsm try`; not a stage of DVC."""

import argparse
import json
import sys
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from tasks.benchmarks.asking import ask, fields_asked, read_row, read_value
from tasks.benchmarks.encoding import encode
from tasks.benchmarks.scoring import answers_without
from tasks.method.recipe import Recipe, read_recipe
from tasks.method.silence import silenced
from tasks.models.hashing import sha256_directory
from tasks.models.loading import Loaded, load
from tasks.models.stack import DecoderStack
from tasks.pipeline.cell import Cell, open_cell
from tasks.pipeline.step import run_main
from tasks.runtime.errors import InputError

WORDS = 8  # maximum number of tokens of the free answer
SYSTEMS = ("base", "pruned")


class Pair:
    """The two models of a finished cell, which share the weights of the base.

    Raises:
        InputError: the cell is not finished, or its recipe is for a model other than the stored one.
    """

    def __init__(self, cell: Cell):
        if not cell.pruned.is_file():
            raise InputError("cell", f"{cell.name} has no pruned.json yet; run `dsm run` for it first")
        self.spec = cell.benchmark_spec
        self.fields = fields_asked(self.spec)
        self.recipe: Recipe = read_recipe(cell.pruned)
        if (actual := sha256_directory(cell.model_dir)) != self.recipe.base_sha256:
            raise InputError("model", f"{cell.model_dir} has hash {actual}, but the recipe is for another")
        self.loaded: Loaded = load(cell.model_dir)
        self.stack = DecoderStack(self.loaded.model)

    def answer(self, row: dict[str, Any]) -> dict[str, Any]:
        """The probability of each option among the options, and the continuation, for each model."""
        prompt, options = ask(self.spec, row)
        encoded = encode(self.loaded.tokenizer, prompt, options, self.stack.context, chat=self.spec.chat)
        sets = [np.array([], dtype=np.int64), np.array(self.recipe.neurons, dtype=np.int64)]
        answers = answers_without(self.stack, [encoded], self.recipe.layer, sets, projection=self.recipe.projection)
        logprobs = answers.logprobs[0].astype(np.float64)
        probabilities = softmax(logprobs, axis=-1)
        said = [self._says(encoded.prompt)]
        with silenced(self.loaded.model, self.recipe):
            said.append(self._says(encoded.prompt))
        answer: dict[str, Any] = {"prompt": prompt, "options": options}
        for i, name in enumerate(SYSTEMS):
            best = options[int(logprobs[i].argmax())]
            answer[name] = {"option": best, "probabilities": probabilities[i].tolist(), "says": said[i]}
        return answer

    def _says(self, prompt: list[int]) -> str:
        ids = torch.tensor([prompt], device=self.stack.device)
        mask = torch.ones_like(ids)
        made = self.loaded.model.generate(ids, attention_mask=mask, max_new_tokens=WORDS, do_sample=False)
        return str(self.loaded.tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True))


def as_lines(answer: dict[str, Any]) -> list[str]:
    """The answers as a small table; a star marks the most probable option of a model."""
    width = max(len(repr(option)) for option in ["option", *answer["options"]])
    lines = [f"{'option':<{width}}  {'base':>7}    {'pruned':>7}"]
    for i, option in enumerate(answer["options"]):
        cells = [
            f"{answer[name]['probabilities'][i]:7.3f} {'*' if answer[name]['option'] == option else ' '}"
            for name in SYSTEMS
        ]
        lines.append(f"{option!r:<{width}}  {cells[0]}  {cells[1]}".rstrip())
    return lines + [f"{name} continues: {answer[name]['says']!r}" for name in SYSTEMS]


def main(arguments: argparse.Namespace) -> None:
    pair = Pair(open_cell(arguments.model, arguments.benchmark))
    if arguments.row is not None:
        _show(pair, read_row(arguments.row, pair.fields), as_json=arguments.json)
        return
    print(f"a row has {', '.join(pair.fields)}; an empty line quits", flush=True)
    while (row := _typed(pair.fields)) is not None:
        try:
            _show(pair, row, as_json=arguments.json)
        except InputError as error:  # the next row may be valid
            print(f"error: {error}", file=sys.stderr, flush=True)


def _typed(fields: list[str]) -> dict[str, Any] | None:
    """A row, field by field; None at an empty line or the end of the input."""
    row: dict[str, Any] = {}
    for name in fields:
        try:
            text = input(f"{name}> ")
        except EOFError:
            return None
        if not text.strip():
            return None
        row[name] = read_value(text)
    return row


def _show(pair: Pair, row: dict[str, Any], *, as_json: bool) -> None:
    answer = pair.answer(row)
    print(json.dumps(answer, ensure_ascii=False) if as_json else "\n".join(as_lines(answer)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tasks.steps.try_row", description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--benchmark")
    parser.add_argument("--row")
    parser.add_argument("--json", action="store_true")
    run_main("try_row", lambda: main(parser.parse_args()))
