"""Models kept in their stored type, against the same weights in float32 and in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM
from transformers.models.opt.modeling_opt import OPTLearnedPositionalEmbedding

from tasks.benchmarks.encoding import Encoded
from tasks.method.grid import Grid, Part, assemble
from tasks.method.integrated_gradients import LayerPath, layer_scores
from tasks.method.options import Attribution
from tasks.method.recipe import choose
from tasks.models import loading, stored
from tasks.models.loading import load
from tasks.models.products import in_pieces
from tasks.models.stack import DecoderStack
from tasks.models.stored import Unit, is_copy
from tasks.models.sweep import logits_without
from tasks.runtime.errors import InputError
from tests.tiny import ALL, MIXTURES, save_tiny, tiny_model, tiny_tokenizer

PROMPTS = [[1, 2, 3, 9, 9], [1, 2, 3, 4], [1, 2, 7, 7, 7, 7], [1, 5, 5, 8]]
ROWS = [Encoded(prompt, [[10, 11], [12], [13]], 0) for prompt in PROMPTS]
GOLD = [0, 1, 2, 0]
FRACTIONS = (0.1, 0.2, 0.3)
NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def save_narrow(directory: Path, family: str, dtype: torch.dtype, **options: Any) -> Path:
    """A tiny model whose file holds its weights in `dtype`."""
    tiny_model(family, torch.float32).to(dtype).save_pretrained(directory, **options)
    tiny_tokenizer().save_pretrained(directory)
    return directory


# transformers reads and writes GPT-NeoX's output embedding by two names, so that it is loaded in float32 (`_renamed`).
AS_STORED = sorted(ALL.keys() - {"neox"})


def numbers(stack: DecoderStack) -> tuple[np.ndarray, dict[Part, Any], list[torch.Tensor]]:
    """Scores [layers, width], the values of a grid, and logits of pruned runs."""
    path = LayerPath(stack, PROMPTS)
    one = path.at_one()
    scores = torch.stack([layer_scores(path, at, one, Attribution()).scores for at in range(len(stack))]).numpy()
    grid = Grid(stack, ROWS, GOLD, scores.astype(np.float32))
    parts = [Part(pack, at, FRACTIONS) for pack in range(len(grid.sizes)) for at in range(len(stack))]
    parts += [Part(pack, -1, (0.0,)) for pack in range(len(grid.sizes))]
    [packed] = stack.pack([[(prompt, [len(prompt) - 1])] for prompt in PROMPTS])
    residuals = stack.clean(packed)
    logits = [
        torch.cat(list(logits_without(stack, residuals, at, [np.arange(9)], projection)))
        for at in range(len(stack))
        for projection in ("gate_proj", "down_proj")
    ]
    return scores, {part: grid.compute(part) for part in parts}, logits


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("family", AS_STORED)
def test_on_a_cpu_they_give_the_bits_of_the_model_in_float32(family, dtype, tmp_path):
    directory = save_narrow(tmp_path / "model", family, NARROW[dtype])
    narrow, wide = load(directory).model, load(directory, wide=True).model
    matrices = [
        module.weight
        for module in narrow.modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding)
        and not isinstance(module, OPTLearnedPositionalEmbedding)  # not used by id lookups alone: in float32
    ]
    assert {weight.dtype for weight in matrices} == {NARROW[dtype]}
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}

    for first, second in zip(numbers(DecoderStack(narrow)), numbers(DecoderStack(wide)), strict=True):
        assert str(first) == str(second)
        if isinstance(first, np.ndarray):
            assert first.tobytes() == second.tobytes()
        elif isinstance(first, list):
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    tokens = torch.tensor([PROMPTS[0]])
    torch.testing.assert_close(narrow(tokens).logits, wide(tokens).logits, atol=1e-4, rtol=1e-4)
    assert {weight.dtype for weight in matrices} == {NARROW[dtype]}


@pytest.mark.parametrize("family", [*ALL, *MIXTURES])
def test_a_mapped_model_is_the_one_that_transformers_loads(family, tmp_path):
    directory = save_tiny(tmp_path, family)
    ours, theirs = load(directory).model, AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    for (name, tensor), (_, own) in zip(theirs.named_buffers(), ours.named_buffers(), strict=True):
        assert own.dtype == tensor.dtype, name
        assert torch.equal(own, tensor), name
    tokens = torch.tensor([PROMPTS[0]])
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert ours.config._attn_implementation == theirs.config._attn_implementation


def test_a_mapped_model_is_no_memory_of_the_process_and_a_write_to_it_stays_here(tmp_path):
    directory = save_tiny(tmp_path)
    before = (directory / "model.safetensors").read_bytes()
    model = load(directory).model
    weight = model.model.layers[0].mlp.gate_proj.weight
    maps = Path("/proc/self/maps")
    if maps.exists():
        ranges = [line.split()[0].split("-") for line in maps.read_text().splitlines() if "model.safetensors" in line]
        assert any(int(start, 16) <= weight.data_ptr() < int(end, 16) for start, end in ranges)
    weight.zero_()
    assert (directory / "model.safetensors").read_bytes() == before
    assert load(directory).model.model.layers[0].mlp.gate_proj.weight.any()


def test_shards_and_a_model_with_other_names_are_loaded(tmp_path, monkeypatch):
    shards = save_narrow(tmp_path / "shards", "llama", torch.bfloat16, max_shard_size="20KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    whole = load(save_narrow(tmp_path / "whole", "llama", torch.bfloat16)).model
    for (name, first), (_, second) in zip(whole.named_parameters(), load(shards).model.named_parameters(), strict=True):
        assert first.dtype == second.dtype, name
        assert torch.equal(first, second), name
    monkeypatch.setattr(loading, "_mapped", lambda directory, files: None)
    assert {parameter.dtype for parameter in load(shards).model.parameters()} == {torch.float32}


@pytest.mark.parametrize("onednn", [True, False])
def test_a_gradient_keeps_no_copy_of_the_weights(onednn, tmp_path, monkeypatch):
    if not onednn:
        monkeypatch.setattr("tasks.models.products._onednn", None)
    stack = DecoderStack(load(save_narrow(tmp_path, "llama", torch.bfloat16)).model)
    [packed] = stack.pack([[([1, 2, 3], [2])]])
    scale = torch.ones(1, stack.d_ff, requires_grad=True)
    logits = stack.scaled(stack.clean(packed), 0, scale)
    seen, todo = set(), [logits.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        assert not any(is_copy(tensor) for tensor in getattr(node, "saved_tensors", ()))
        todo += [parent for parent, _ in node.next_functions]
    assert any("_Linear" in type(node).__name__ for node in seen)
    wide = DecoderStack(load(tmp_path, wide=True).model)
    factors = torch.ones(1, stack.d_ff, requires_grad=True)
    again = wide.scaled(wide.clean(packed), 0, factors)
    expected = torch.autograd.grad(again.max(), factors)[0]
    assert expected.any()
    assert torch.equal(torch.autograd.grad(logits.max(), scale)[0], expected)


@settings(max_examples=settings.default.max_examples // 2)
@given(data=st.data())
def test_pieces_hold_the_bits_of_the_activations(data):
    """Two pieces lose 2^-17 of a number, three lose nothing of a float32."""
    seed, number = data.draw(st.integers(0, 1000)), data.draw(st.sampled_from([2, 3]))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 5, 16, generator=generator) * 10 ** data.draw(st.integers(-3, 3))
    matrix = torch.randn(16, 7, generator=generator).bfloat16()
    bound = (x.double().abs() @ matrix.double().abs()) * {2: 2.0**-16, 3: 2.0**-21}[number]
    assert ((in_pieces(x, matrix, number).double() - x.double() @ matrix.double()).abs() <= bound).all()


@pytest.mark.parametrize("pieces", ["2", "3"])
@pytest.mark.parametrize("family", AS_STORED)
def test_products_by_pieces_agree_with_float64(family, pieces, tmp_path, monkeypatch):
    """The contract of `docs/scale.md`: the computation of a GPU, here with the same numbers on a CPU."""
    directory = save_narrow(tmp_path, family, torch.bfloat16)
    monkeypatch.setenv("DSM_PIECES", pieces)
    exact = DecoderStack(_double(family))
    stack = DecoderStack(load(directory).model)
    stack._in_pieces = True
    assert f"{pieces} bfloat16 pieces" in stack.products
    found, expected = numbers(stack), numbers(exact)
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert spearmanr(ours, theirs).statistic >= 0.9999
        assert np.linalg.norm(ours - theirs) <= 1e-3 * np.linalg.norm(theirs)
    predictions = [np.concatenate([value["predicted"] for value in values[1].values()]) for values in (found, expected)]
    assert (predictions[0] == predictions[1]).mean() >= 0.999
    pairs = [choose(assemble(values[1], len(ROWS), 48))[0] for values in (found, expected)]
    assert [pairs[0][name] for name in ("layer", "fraction")] == [pairs[1][name] for name in ("layer", "fraction")]


@pytest.mark.parametrize("pieces", [True, False])
def test_copies_of_host_weights_give_the_bits_of_weights_that_stay(pieces, tmp_path, monkeypatch):
    """A GPU that holds one layer at a time, here with copies on the CPU, also of matrices that are used as stored."""
    directory = save_narrow(tmp_path, "llama", torch.bfloat16)

    def found() -> tuple[Any, ...]:
        stack = DecoderStack(load(directory).model)
        stack._in_pieces = pieces
        stack.at_hand = False
        return numbers(stack)

    expected = found()
    copied = []

    def always(unit: Unit, module: torch.nn.Linear, as_stored: bool) -> stored._Kind:
        copied.append(module)
        kind = stored._kind(module.weight)
        return kind if as_stored else kind._replace(dtype=torch.float32)

    monkeypatch.setattr(Unit, "_kind_of_copy", always)
    assert str(found()) == str(expected)
    assert copied


ONE_LAYER = "one layer at a time"


@pytest.fixture
def placed(monkeypatch):
    """Places a model on a GPU with this share of its size free; returns what was done."""

    def place(there: float, whole: bool) -> list[str]:
        model = tiny_model("llama", torch.float32)
        needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        moved: list[str] = []
        monkeypatch.setattr(model, "to", lambda where: moved.append("all"))
        monkeypatch.setattr(loading, "free", lambda where: there * needed)
        monkeypatch.setattr(loading, "keep_as_stored", lambda model, where=None: where and moved.append(ONE_LAYER))
        loading._place(model, torch.device("cuda:0"), whole=whole)
        return moved

    return place


@pytest.mark.parametrize(("there", "whole", "done"), [(1.3, False, "all"), (1.0, True, "all"), (1.0, False, ONE_LAYER)])
def test_what_does_not_fit_into_a_gpu_stays_on_the_host(placed, there, whole, done):
    assert placed(there, whole) == [done]


@pytest.mark.parametrize(
    ("there", "whole", "what"), [(0.9, True, "the weights"), (0.1, False, "the embeddings and one layer")]
)
def test_what_must_be_on_the_gpu_and_does_not_fit_is_told(placed, there, whole, what):
    with pytest.raises(InputError, match=rf"^DSM_DEVICE: cuda:0 has .* GB left, but {what} need .* GB; use cpu"):
        placed(there, whole)


def _double(family: str) -> Any:
    """The weights of `save_narrow` in a float64 model."""
    model, source = tiny_model(family), tiny_model(family, torch.float32)
    with torch.no_grad():
        for parameter, own in zip(model.parameters(), source.parameters(), strict=True):
            parameter.copy_(own.bfloat16())
    return model


def test_the_number_of_pieces_is_two_or_three(monkeypatch):
    from tasks.models.products import pieces

    monkeypatch.delenv("DSM_PIECES", raising=False)
    assert pieces() == 2
    monkeypatch.setenv("DSM_PIECES", "4")
    with pytest.raises(InputError, match=r"^DSM_PIECES: must be 2 or 3, not '4'"):
        pieces()
