"""Fine-tuning on the same examples: all weights (`sft`), or a low-rank change of them (`lora`, Hu et al. 2021).

2507.09185 compares with fine-tuning on its ten samples and gives no settings. The settings below are ours and fixed in
advance: nothing is selected on the examples.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.benchmarks.encoding import Encoded
from tasks.comparison.system import Answer, FitData, Fitted, unedited
from tasks.runtime.errors import InputError

EPOCHS = 5
LEARNING_RATE = {"sft": 1e-5, "lora": 2e-4}
RANK = 8  # of lora; alpha is twice that, on every linear layer of the decoder


def sft(fit_data: FitData) -> Fitted:
    """Trains all weights with AdamW, one example per step, on the tokens of the right option.

    The fitted system holds two more copies of the weights.
    """
    return _fitted(fit_data, lambda model: _train(model, fit_data, "sft"), {"learning rate": LEARNING_RATE["sft"]})


def lora(fit_data: FitData) -> Fitted:
    """Trains a rank-8 change of every linear layer of the decoder with peft, like `sft`, and adds it to the weights.

    Raises:
        InputError: the model has experts: their matrices are not linear layers.
    """
    if fit_data.stack.each is not None:
        kind = type(fit_data.stack.model).__name__
        raise InputError("model", f"{kind}: lora of a mixture of experts is not supported; sft is")
    from peft import LoraConfig, get_peft_model

    def train(model: Any) -> None:
        torch.manual_seed(fit_data.seed)  # A is initialised at random
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear")
        adapted: Any = get_peft_model(model, config)
        try:
            _train(adapted, fit_data, "lora")
        finally:
            adapted.merge_and_unload()

    return _fitted(fit_data, train, {"learning rate": LEARNING_RATE["lora"], "rank": RANK})


def _train(model: Any, fit_data: FitData, name: str) -> None:
    """Trains the parameters that require a gradient; for `sft` all parameters."""
    if name == "sft":
        model.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE[name], weight_decay=0.0)
    generator = np.random.default_rng(fit_data.seed)
    examples = list(zip(fit_data.examples.encoded, fit_data.examples.gold, strict=True))
    for _ in range(EPOCHS):
        for index in generator.permutation(len(examples)):
            loss = answer_loss(model, *examples[index])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()


def answer_loss(model: Any, row: Encoded, gold: int) -> Tensor:
    """Mean negative log-probability of the right option's tokens, given the prompt: a scalar with its graph."""
    option = row.options[gold]
    device = next(model.parameters()).device
    tokens = torch.tensor([[*row.prompt, *option[:-1]]], device=device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, -len(option) :]
    return torch.nn.functional.cross_entropy(logits.float(), torch.tensor(option, device=device))


def _fitted(fit_data: FitData, train: Callable[[Any], None], settings: dict[str, Any]) -> Fitted:
    model = fit_data.loaded.model
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.enable_grad():
        try:
            train(model)
            after = [parameter.detach().clone() for parameter in parameters]
        finally:
            model.requires_grad_(False)
            _put(parameters, before)
            for parameter in parameters:
                parameter.grad = None
    number = len(fit_data.examples.encoded)
    return Fitted(partial(_applied, fit_data, parameters, before, after), number, number, {"epochs": EPOCHS} | settings)


@contextmanager
def _applied(
    fit_data: FitData, parameters: list[Tensor], before: list[Tensor], after: list[Tensor]
) -> Iterator[Answer]:
    _put(parameters, after)
    try:
        with unedited(fit_data.stack) as answer:
            yield answer
    finally:
        _put(parameters, before)


@torch.no_grad()
def _put(parameters: list[Tensor], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
