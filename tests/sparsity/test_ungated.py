"""Weight pruning and perplexity of families without a gated MLP, or with parallel residuals, by naive computations."""

import math

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.models.hashing import sha256_directory
from tasks.models.loading import Loaded, load
from tasks.models.model_spec import ModelSpec
from tasks.models.stack import DecoderStack
from tasks.models.structure import weight_of
from tasks.pipeline.model_size import model_size
from tasks.runtime.errors import InputError
from tasks.sparsity import metrics
from tasks.sparsity.calibration import Calibration
from tasks.sparsity.layers import Layers
from tasks.sparsity.metrics import NOfM
from tasks.sparsity.perplexity import perplexity
from tasks.sparsity.sparse_recipe import apply_recipe, write_recipe
from tasks.sparsity.weight_pruning import METHODS, prune_weights, sparse
from tests import tiny as tiny_families
from tests.sparsity.test_layers import SEQUENCES, bits
from tests.tiny import GPT2, NEOX, OPT, SIZES, tiny_tokenizer

FALCON = {
    "vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "bos_token_id": 256,
    "eos_token_id": 256, "initializer_range": 0.4, "max_position_embeddings": 512,
}  # fmt: skip
UNGATED = {
    **tiny_families.UNGATED,
    # OPT-350m: norms after the sublayers, and a projection of the embeddings outside the layers.
    "opt_350m": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(**OPT, word_embed_proj_dim=16, do_layer_norm_before=False)
    ),
    "opt_post_norm": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(**OPT, word_embed_proj_dim=32, do_layer_norm_before=False)
    ),
    "gptj": lambda: transformers.GPTJForCausalLM(transformers.GPTJConfig(**GPT2, rotary_dim=4)),
    "pythia": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**NEOX)),
    "falcon": lambda: transformers.FalconForCausalLM(transformers.FalconConfig(**FALCON)),
    "falcon_alibi": lambda: transformers.FalconForCausalLM(
        transformers.FalconConfig(**FALCON, alibi=True, bias=True, parallel_attn=False, multi_query=False)
    ),
    "phi2": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**NEOX)),
    "cohere": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(**SIZES)),
}


def tiny(family, dtype=torch.float32):
    torch.manual_seed(0)
    model = UNGATED[family]().to(dtype).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "bias" in name:  # transformers initialises biases with zero, which would hide a mistake
            parameter.normal_(std=0.1)
    return model


def linears(model):
    """The linear layers of the decoder layers, by name: all modules with a matrix inside the only list of modules."""
    [layers] = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inside = {id(module) for module in layers.modules()}
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and id(m) in inside}


def naive_inputs(model):
    """The inputs of these layers in a plain run of the model, by name: a list with [T, d_in] for each sequence."""
    seen = {name: [] for name in linears(model)}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].flatten(0, -2).clone()))
        for name, module in linears(model).items()
    ]
    for sequence in SEQUENCES:
        model(torch.tensor([sequence]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def naive_weight(module):
    return module.weight.T if isinstance(module, Conv1D) else module.weight


@pytest.mark.parametrize("family", UNGATED)
def test_statistics_are_those_of_plain_runs_of_the_partly_pruned_model(family):
    model = tiny(family, torch.float64)
    layers = Layers(model)
    assert layers.all_linears().keys() == linears(model).keys()
    for index, statistics in layers.walk(SEQUENCES, products=True):
        seen = naive_inputs(model)
        for name, linear in layers.linears[index].items():
            expected = sum(2 * x.T @ x for x in seen[name]) / len(SEQUENCES)
            torch.testing.assert_close(statistics.hessian(name), expected, rtol=1e-5, atol=1e-5)
            weight_of(linear)[:, ::3] = 0  # so that the next layers see other inputs
    assert index == 2


@pytest.mark.parametrize("family", UNGATED)
def test_wanda_removes_the_smallest_of_each_row_by_the_inputs_of_plain_runs(family):
    """Layer by layer, by a loop over the rows; a row is the weights of one output, also if it is stored as a column."""
    pruned, naive = tiny(family), tiny(family)
    prune_weights(Loaded(pruned, None), SEQUENCES, "wanda", 0.5)
    [layers] = [module for module in naive.modules() if isinstance(module, nn.ModuleList)]
    names = {id(module): name for name, module in naive.named_modules()}
    different = total = 0
    for layer in layers:
        seen = naive_inputs(naive)
        for module in layer.modules():
            if not isinstance(module, nn.Linear | Conv1D):
                continue
            name = names[id(module)]
            norms = torch.stack([x.double().square().sum(0) for x in seen[name]]).mean(0).sqrt()
            for row in naive_weight(module):
                row[(row.abs().double() * norms).argsort(stable=True)[: len(row) // 2]] = 0
            found = naive_weight(pruned.get_submodule(name))
            assert ((found == 0).sum(1) == found.shape[1] // 2).all()
            different += int((found != naive_weight(module)).sum())
            total += found.numel()
    assert different <= 2e-3 * total  # rounding decides between nearly equal scores


@pytest.mark.parametrize("family", UNGATED)
@pytest.mark.parametrize("method", METHODS)
def test_all_linear_layers_and_nothing_else_are_pruned_and_restored(family, method):
    model = tiny(family)
    before = bits(model)
    with sparse(Loaded(model, None), SEQUENCES, method, 0.5) as report:
        changed = {name for name, value in bits(model).items() if value != before[name]}
        assert changed == {f"{name}.weight" for name in linears(model)}
        for name, module in linears(model).items():
            matrix = report.matrices[name]
            assert matrix.shape == naive_weight(module).shape
            assert matrix.removed == int((module.weight == 0).sum()) == module.weight.numel() // 2
    assert bits(model) == before


@pytest.mark.parametrize("family", UNGATED)
def test_n_of_m_is_along_the_inputs(family):
    model = tiny(family)
    prune_weights(Loaded(model, None), SEQUENCES, "ria", NOfM(2, 4))
    for module in linears(model).values():
        weight = naive_weight(module)
        assert ((weight == 0).reshape(len(weight), -1, 4).sum(2) == 2).all()


@pytest.mark.parametrize("family", UNGATED)
def test_perplexity_is_that_of_the_probabilities_of_each_next_token(family):
    loaded = Loaded(tiny(family), None)
    tokens = [(11 * i + 5) % 250 for i in range(45)]
    found = perplexity(loaded, tokens, 20)
    expected = []
    for start in (0, 20):
        window = tokens[start : start + 20]
        losses = []
        for end in range(1, 20):
            logits = loaded.model(torch.tensor([window[:end]]), use_cache=False).logits[0, -1].double()
            losses.append(-float(logits.log_softmax(0)[window[end]]))
        expected.append(sum(losses) / 19)
    assert found.losses.tolist() == pytest.approx(expected, rel=1e-4)
    assert found.ppl == pytest.approx(math.exp(sum(expected) / 2), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", UNGATED)
def test_perplexity_of_weights_that_are_kept_in_two_bytes(family, dtype, tmp_path):
    tiny(family, dtype).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    tokens = list(range(40))
    kept, wide = (perplexity(load(tmp_path, wide=wide), tokens, 20).losses for wide in (False, True))
    assert kept.tolist() == pytest.approx(wide.tolist(), rel=1e-5)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("family", UNGATED)
def test_the_recipe_makes_the_same_weights(family, method, tmp_path):
    tiny(family).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    pruned = load(tmp_path / "base", wide=True)
    assert bits(pruned.model) == bits(tiny(family))
    report = prune_weights(pruned, SEQUENCES, method, 0.3)
    calibration, digest = Calibration("letters", SEQUENCES, 20, 3), sha256_directory(tmp_path / "base")
    write_recipe(tmp_path / "sparse", pruned, report, base_sha256=digest, calibration=calibration)
    again = load(tmp_path / "base", wide=True)
    apply_recipe(again, tmp_path / "base", tmp_path / "sparse")
    assert bits(again.model) == bits(pruned.model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted(UNGATED.keys() - tiny_families.UNGATED.keys()))
def test_neuron_pruning_refuses_parallel_residuals_and_attention_of_its_own_in_one_line(family):
    model = tiny(family)
    with pytest.raises(InputError, match=rf"^model: {type(model).__name__}.*not supported") as caught:
        DecoderStack(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=2)),
        lambda: transformers.Qwen3MoeForCausalLM(
            transformers.Qwen3MoeConfig(**SIZES, moe_intermediate_size=16, num_experts=2, num_experts_per_tok=1)
        ),
        lambda: transformers.OlmoeForCausalLM(
            transformers.OlmoeConfig(**SIZES, num_experts=2, num_experts_per_tok=1)
        ),
    ],
)  # fmt: skip
def test_mixtures_of_experts_are_refused_in_one_line_and_stay_as_they_are(make):
    model = make().eval().requires_grad_(False)
    before = bits(model)
    for method in ("magnitude", "wanda", "sparsegpt", "ria"):
        with pytest.raises(InputError, match=rf"^model: {type(model).__name__}.*not supported") as caught:
            prune_weights(Loaded(model, None), SEQUENCES, method, 0.5)
        assert "\n" not in str(caught.value)
    assert bits(model) == before


def test_a_score_of_a_transposed_weight_is_that_of_the_matrix():
    """GPT-2 stores [d_in, d_out]: RIA's sums over rows and columns would be exchanged otherwise."""
    model = tiny("gpt2")
    name, module = next(iter(linears(model).items()))
    _, statistics = next(Layers(model).walk(SEQUENCES, products=False))
    expected = metrics.by_matrix(metrics.ria(module.weight.T.clone(), statistics.squared_norms(name)), 0.5)
    prune_weights(Loaded(model, None), SEQUENCES, "ria", 0.5)
    assert torch.equal(module.weight.T == 0, expected)


@pytest.mark.parametrize("family", tiny_families.UNGATED)
def test_no_weight_of_a_spared_neuron_is_removed(family):
    """A row of the first linear layer and a column of the last one."""
    model = tiny(family)
    with sparse(Loaded(model, None), SEQUENCES, "magnitude", 0.5, {1: [3, 4]}):
        first, down = (tiny_families.rows(model, 1, name) for name in ("gate_proj", "down_proj"))
        assert first[[3, 4]].all()
        assert down[:, [3, 4]].all()
        assert float((first == 0).float().mean()) == pytest.approx(0.5, abs=1e-3)
        assert not tiny_families.rows(model, 0)[[3, 4]].all()


@pytest.mark.parametrize("family", tiny_families.UNGATED)
def test_the_plan_counts_the_weights_of_the_decoders_matrices(family, tmp_path):
    model = tiny(family)
    model.save_pretrained(tmp_path)
    spec = ModelSpec.model_validate({"source": {"kind": "path", "path": str(tmp_path), "sha256": "0" * 64}})
    size = model_size(spec, tmp_path, tmp_path, field="models.tiny")
    assert size.multiply_adds == sum(module.weight.numel() for module in linears(model).values())
