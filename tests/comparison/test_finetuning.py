"""Fine-tuning against an explicit loop; and it leaves no changes in the model."""

import copy

import numpy as np
import pytest
import torch

from tasks.comparison.finetuning import EPOCHS, LEARNING_RATE, RANK, answer_loss, lora, sft
from tasks.runtime.errors import InputError
from tests.comparison.fit_data import assert_untouched, fit_data, state
from tests.method.test_grid import naive
from tests.tiny import MIXTURES


def test_the_loss_is_the_mean_of_the_right_options_tokens():
    given, _ = fit_data()
    row, model = given.examples.encoded[0], given.loaded.model
    for gold in (0, 1):
        expected = -naive(model, row)[gold] / len(row.options[gold])
        assert float(answer_loss(model, row, gold)) == pytest.approx(expected, abs=1e-5)


def test_sft_is_adamw_on_one_example_at_a_time():
    given, test = fit_data()
    before = state(given.loaded.model)
    fitted = sft(given)
    assert_untouched(given.loaded.model, before)

    model = copy.deepcopy(given.loaded.model).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE["sft"], weight_decay=0.0)
    order = np.random.default_rng(given.seed)
    for _ in range(EPOCHS):
        for i in order.permutation(len(given.examples.gold)):
            row, gold = given.examples.encoded[i], given.examples.gold[i]
            ids = [*row.prompt, *row.options[gold]]
            logprobs = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
            loss = -torch.stack([logprobs[t - 1, ids[t]] for t in range(len(row.prompt), len(ids))]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.requires_grad_(False)
    with fitted.applied() as answer:
        answers = answer(test.encoded)
    assert_untouched(given.loaded.model, before)
    for row, found in zip(test.encoded, answers.logprobs, strict=True):
        assert found[0] == pytest.approx(naive(model, row), abs=1e-4)
    assert (fitted.examples, fitted.labels) == (6, 6)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3"])
def test_lora_changes_every_linear_layer_of_the_decoder_by_its_rank_and_the_head_not_at_all(family):
    given, _ = fit_data(family)
    model = given.loaded.model
    before = state(model)
    fitted = lora(given)
    assert_untouched(model, before)
    assert not hasattr(model, "peft_config")
    with fitted.applied():
        inside = state(model)
    assert_untouched(model, before)
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head.weight"}
    assert linear
    for name, value in before.items():
        change = inside[name] - value
        assert bool(change.any()) == (name in linear), name
        if name in linear and min(change.shape) > RANK:
            assert torch.linalg.matrix_rank(change, rtol=1e-3) <= RANK


@pytest.mark.parametrize(
    ("family", "system"), [("llama", sft), ("llama", lora), *((family, sft) for family in MIXTURES)]
)
def test_training_makes_the_right_answers_more_probable(family, system):
    given, _ = fit_data(family)
    rows, gold = given.examples.encoded, given.examples.gold
    with system(given).applied() as answer:
        after = answer(rows).logprobs
    before = [naive(given.loaded.model, row) for row in rows]
    assert sum(a[0][g] - b[g] for a, b, g in zip(after, before, gold, strict=True)) > 0


def test_lora_of_experts_is_refused():
    given, _ = fit_data("mixtral")
    before = state(given.loaded.model)
    with pytest.raises(InputError, match=r"^model: MixtralForCausalLM: lora of a mixture of experts is not supported"):
        lora(given)
    assert_untouched(given.loaded.model, before)


def test_a_failed_training_leaves_the_model_as_it_was(monkeypatch):
    given, _ = fit_data()
    before = state(given.loaded.model)

    def fail(*_):
        raise RuntimeError("no")

    for system in (sft, lora):
        monkeypatch.setattr("tasks.comparison.finetuning.answer_loss", fail)
        with pytest.raises(RuntimeError, match="no"):
            system(given)
        assert_untouched(given.loaded.model, before)
