"""A model on which nothing can be measured is refused with the reason, and so is any exception of an unknown family."""

import pytest
import torch

from tasks.models.checks import as_input_error
from tasks.models.hashing import sha256_directory
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError
from tasks.steps import model as step
from tests.models.test_conversion import make_cell, path_source
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer


def saved(model, directory):
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name",
    ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"],
)
def test_weights_that_are_no_numbers_are_named(tmp_path, value, name):
    model = tiny_model("llama", torch.float32)
    model.get_parameter(name).view(-1)[-7] = value
    cell = make_cell(tmp_path, path_source(saved(model, tmp_path / "in")))
    held = "NaN" if value != value else "infinite values"
    with pytest.raises(InputError, match=rf"^model: LlamaForCausalLM: the weights of {name} hold {held} \(1 of \d+\)"):
        step.store(cell)
    assert list(cell.model_dir.parent.iterdir()) == []


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2"])
def test_a_model_of_zeros_is_refused(family):
    model = tiny_model(family, torch.float32)
    for parameter in model.parameters():
        parameter.zero_()
    with pytest.raises(InputError, match=r"gives every token the same logit, 0; only zeros are in model\.embed_tokens"):
        DecoderStack(model)


def test_an_output_embedding_of_zeros_is_refused():
    model = tiny_model("llama", torch.float32)
    model.lm_head.weight.zero_()
    with pytest.raises(InputError, match=r"gives every token the same logit, 0; only zeros are in lm_head\.weight"):
        DecoderStack(model)


def test_a_layer_of_zeros_is_no_fault():
    model = tiny_model("llama", torch.float32)
    for parameter in model.model.layers[1].parameters():
        parameter.zero_()
    assert len(DecoderStack(model)) == 3


@pytest.mark.parametrize("name", ["lm_head", "model.layers.2.self_attn.o_proj", "model.layers.0.mlp.up_proj"])
def test_weights_that_overflow_are_told_so(name):
    model = tiny_model("llama", torch.float32)
    model.get_submodule(name).weight.mul_(1e38)
    with pytest.raises(InputError, match=r"(infinite|overflows).* too large for float32"):
        DecoderStack(model)


ERRORS = [AttributeError, TypeError, RuntimeError, IndexError, KeyError, AssertionError, NotImplementedError, OSError]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("place", ["self_attn", "mlp"])
def test_whatever_a_family_raises_is_told_in_one_line(error, place):
    model = tiny_model("llama", torch.float32)

    def fail(*_, **__):
        raise error("first line\nsecond line")

    getattr(model.model.layers[1], place).forward = fail
    reason = rf"^model: LlamaForCausalLM: its layers cannot be re-run one by one: {error.__name__}: .*first line"
    with pytest.raises(InputError, match=reason) as caught:
        DecoderStack(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        KeyboardInterrupt(),
        SystemExit(143),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_memory_and_an_end_from_outside_are_not_masked(error):
    model = tiny_model("llama", torch.float32)

    def fail(*_, **__):
        raise error

    model.model.layers[1].mlp.forward = fail
    with pytest.raises(type(error)) as caught:
        DecoderStack(model)
    assert caught.value is error


def test_what_was_told_already_is_not_told_again():
    with pytest.raises(InputError, match=r"^a: b$"), as_input_error("model", "cannot"):
        raise InputError("a", "b")


def test_no_hash_depends_on_the_checks(tmp_path):
    directory = save_tiny(tmp_path / "in")
    cell = make_cell(tmp_path, path_source(directory))
    step.store(cell)
    assert sha256_directory(cell.model_dir) == sha256_directory(directory)
