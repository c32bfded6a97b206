"""Every family through model step and exporter: the pruned directory, loaded by transformers, is the edited model."""

import json

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from tasks.benchmarks.encoding import encode
from tasks.benchmarks.scoring import answers_without
from tasks.models.hashing import sha256_directory
from tasks.models.loading import load
from tasks.models.stack import DecoderStack
from tasks.models.sweep import logits_without
from tasks.models.weights import model_files
from tasks.pipeline.cell import open_cell
from tasks.runtime.errors import InputError
from tasks.runtime.files import read_json, write_json
from tasks.steps.model import store
from tasks.tracking import export as exporter
from tasks.tracking.export import apply, export
from tests.cells import settings, write_cell
from tests.tiny import ALL, MIXTURES, SIZES, save_tiny, tiny_model, tiny_tokenizer, zero_rows

TIED = {"llama3", "qwen3", "gemma2", "gemma3", "opt", "gpt2", "starcoder2"}
SILENT = list(range(0, SIZES["intermediate_size"], 3))
RECIPE = {
    "format": 1, "model": "tiny", "benchmark": "reviews", "projection": "gate_proj", "layer": 1,
    "fraction": 1 / 3, "layers": SIZES["num_hidden_layers"], "d_ff": SIZES["intermediate_size"], "neurons": SILENT,
    "adaptation": {"n": 10, "accuracy": 0.9, "margin": 0.1, "base_accuracy": 0.5, "base_margin": 0.0},
    "trail": [{"rule": "accuracy", "best": 0.9, "tied": 1}],
}  # fmt: skip
TOKENS = torch.arange(2, 14)[None]


def stored(root, source):
    """The cell of a project in `root` after the model step."""
    cell = write_cell(root, layers=RECIPE["layers"], d_ff=RECIPE["d_ff"], n=20)
    params = settings()
    pin = {"kind": "path", "path": str(source), "sha256": sha256_directory(source)}
    params["models"]["tiny"]["source"] = pin
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    cell = open_cell(root=root)
    store(cell)
    write_json(cell.pruned, RECIPE | {"base_sha256": sha256_directory(cell.model_dir)})
    return cell


def plain(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval().requires_grad_(False)


@pytest.mark.parametrize("family", [*ALL, *MIXTURES])
def test_a_pruned_directory_is_the_edited_model(family, tmp_path):
    source = save_tiny(tmp_path / "source", family)
    cell = stored(tmp_path / "project", source)
    export(cell, tmp_path / "exported")
    apply(cell.pruned, source, tmp_path / "applied")

    edited = plain(source)
    zero_rows(edited, 1, SILENT)
    for name in ("exported", "applied"):
        model = plain(tmp_path / name)
        for (key, value), expected in zip(model.state_dict().items(), edited.state_dict().values(), strict=True):
            assert torch.equal(value, expected), key
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        apart = {"lm_head.weight", "embed_out.weight"} & stored_names(tmp_path / name)
        assert tied == (family in TIED) == (not apart)

    loaded = load(cell.model_dir)
    row = encode(loaded.tokenizer, "a warm film :", [" good", " bad"], 100)
    [found] = answers_without(DecoderStack(loaded.model), [row], 1, [np.array(SILENT)]).logprobs
    for option, value in zip(row.options, found[0], strict=True):
        logprobs = edited(torch.tensor([[*row.prompt, *option]])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[len(row.prompt) - 1 + i, token]) for i, token in enumerate(option))
        assert value == pytest.approx(expected, abs=2e-3)


def stored_names(directory):
    from tasks.models.weights import tensors, weight_files

    return {tensor.name for path in weight_files(directory) for tensor in tensors(path)}


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", *MIXTURES])
def test_shards_are_pruned_and_no_copy_of_the_weights_is_taken_along(family, tmp_path):
    source = tmp_path / "source"
    tiny_model(family, torch.float32).save_pretrained(source, max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(source)
    [first, *_] = shards = sorted(path.name for path in source.glob("model-*.safetensors"))
    assert len(shards) > 2
    (source / "consolidated.safetensors").write_bytes((source / first).read_bytes())
    cell = stored(tmp_path / "project", source)
    export(cell, tmp_path / "exported")
    apply(cell.pruned, source, tmp_path / "applied")
    edited = plain(source)
    zero_rows(edited, 1, SILENT)
    for directory in (cell.model_dir, tmp_path / "exported", tmp_path / "applied"):
        assert sorted(path.name for path in directory.glob("*.safetensors")) == shards
        if directory != cell.model_dir:
            assert torch.equal(plain(directory)(TOKENS).logits, edited(TOKENS).logits)
    assert len(model_files(tmp_path / "exported")) == len(model_files(source)) + 1  # pruned.json


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("projection", ["gate_proj", "up_proj"])
def test_experts_that_are_stored_together_are_pruned(family, projection, tmp_path):
    """In one tensor of a layer; `save_pretrained` writes one for each expert by default."""
    source = tmp_path / "source"
    tiny_model(family, torch.float32).save_pretrained(source, save_original_format=False)
    tiny_tokenizer().save_pretrained(source)
    assert "model.layers.1.mlp.experts.gate_up_proj" in stored_names(source)
    cell = stored(tmp_path / "project", source)
    write_json(cell.pruned, read_json(cell.pruned) | {"projection": projection})
    apply(cell.pruned, source, tmp_path / "applied")
    edited = plain(source)
    zero_rows(edited, 1, SILENT, projection)
    assert stored_names(tmp_path / "applied") == stored_names(source)
    assert all(
        torch.equal(value, edited.state_dict()[name])
        for name, value in plain(tmp_path / "applied").state_dict().items()
    )


def test_the_same_weights_saved_by_another_version_are_the_same_base(tmp_path):
    source = save_tiny(tmp_path / "source")
    cell = stored(tmp_path / "project", source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"transformers_version": "4.57.1"}, indent=4))
    apply(cell.pruned, source, tmp_path / "applied")
    assert (tmp_path / "applied" / "pruned.json").is_file()


def test_a_tensor_that_is_not_there_or_has_other_rows(tmp_path):
    cell = stored(tmp_path / "project", save_tiny(tmp_path / "source"))
    digest = sha256_directory(cell.model_dir)
    for change, message in (
        ({"layer": 5, "layers": 6}, "recipe: is for another model: layer 5 of one with 3 layers"),
        ({"d_ff": 60}, "has 48 rows, but the recipe is for 1 x 60"),
    ):
        write_json(cell.pruned, RECIPE | {"base_sha256": digest} | change)
        with pytest.raises(InputError, match=message):
            apply(cell.pruned, cell.model_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    cell = stored(tmp_path / "project", save_tiny(tmp_path / "source"))

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(exporter, "save_file", full)
    with pytest.raises(InputError, match=r"^model: its weights cannot be read or written: .*No space left"):
        apply(cell.pruned, cell.model_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Families whose layers the view does not re-run: parallel residuals, state spaces, own kinds of attention.
REFUSED = {
    "cohere": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(**SIZES)),
    "cohere2": lambda: transformers.Cohere2ForCausalLM(transformers.Cohere2Config(**SIZES)),
    "falcon_h1": lambda: transformers.FalconH1ForCausalLM(
        transformers.FalconH1Config(**SIZES, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8)
    ),
    "qwen3_5": lambda: transformers.Qwen3_5ForCausalLM(
        transformers.Qwen3_5TextConfig(
            **SIZES, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
            linear_value_head_dim=8,
        )
    ),
    "gemma3n": lambda: transformers.Gemma3nForCausalLM(
        transformers.Gemma3nTextConfig(
            **SIZES, head_dim=8, vocab_size_per_layer_input=257, hidden_size_per_layer_input=8, laurel_rank=4,
            activation_sparsity_pattern=[0.0] * 3, num_kv_shared_layers=0,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        )
    ),
    "doge": lambda: transformers.DogeForCausalLM(transformers.DogeConfig(**SIZES)),
    "deepseek_v3": lambda: transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(**SIZES, first_k_dense_replace=3)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_re_run_is_refused_by_its_class_and_the_reason(family):
    torch.manual_seed(0)
    model = REFUSED[family]().eval().requires_grad_(False)
    reason = r"(cannot be re-run one by one: |\(parallel residuals\)|re-running its layers does not give)"
    with pytest.raises(InputError, match=rf"^model: {type(model).__name__}: .*{reason}.* is not supported$") as caught:
        DecoderStack(model)
    assert "\n" not in str(caught.value)


# VaultGemma: a norm before the MLP and no norm after it. GLM-4: a norm after it, with another name.
NORMS = {
    "vaultgemma": lambda: transformers.VaultGemmaForCausalLM(
        transformers.VaultGemmaConfig(**SIZES, head_dim=8, sliding_window=4)
    ),
    "glm4": lambda: transformers.Glm4ForCausalLM(transformers.Glm4Config(**SIZES, head_dim=8)),
}


@pytest.mark.parametrize("family", NORMS)
def test_norms_around_the_mlp_are_known_by_what_they_give_and_take(family):
    torch.manual_seed(0)
    model = NORMS[family]().eval().requires_grad_(False)
    stack = DecoderStack(model)
    sequence = list(range(3, 12))
    [packed] = stack.pack([[(sequence, [len(sequence) - 1])]])
    [logits] = torch.cat(list(logits_without(stack, stack.clean(packed), 1, [np.array(SILENT)])))
    zero_rows(model, 1, SILENT)
    torch.testing.assert_close(logits[0], model(torch.tensor([sequence])).logits[0, -1], atol=1e-4, rtol=1e-4)
