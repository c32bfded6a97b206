"""Tiny random models of every family, and a tiny tokenizer: seconds, not minutes, and the same every time."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

# Random examples of a test that runs for every family: sixteen families make 400 of them in `make test-slow`.
PER_FAMILY = max(5, hypothesis.settings.default.max_examples // 8)
VOCABULARY = 256 + 1
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 256,
    "eos_token_id": 256,
    # Large weights make the random networks nonlinear, so that a rule with few nodes is visibly wrong.
    "initializer_range": 0.4,
}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
# Up to 256 tokens the short factors are used; they rotate half of each head.
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0, 1.5], "long_factor": [4.0, 9.0],
    "original_max_position_embeddings": 256, "partial_rotary_factor": 0.5,
}  # fmt: skip
# Windows of 4 tokens, so that the short prompts of the tests are longer than them.
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama3": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, attention_bias=True, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, sliding_window=4)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**SIZES)),
    "phi3": lambda: Phi3ForCausalLM(
        Phi3Config(
            **SIZES,
            resid_pdrop=0.1,
            embd_pdrop=0.1,
            sliding_window=4,
            rope_parameters=LONGROPE,
            original_max_position_embeddings=256,
        )
    ),
}
OPT = {
    "ffn_dim": SIZES["intermediate_size"], "init_std": SIZES["initializer_range"],
    **{name: SIZES[name] for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
        "bos_token_id", "eos_token_id", "pad_token_id",
    )},
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "n_inner": 48,
    "bos_token_id": 256, "eos_token_id": 256, "initializer_range": 0.4,
}  # fmt: skip
NEOX = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
UNGATED: dict[str, Callable[[], Any]] = {
    "opt": lambda: OPTForCausalLM(OPTConfig(**OPT, word_embed_proj_dim=32)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "starcoder2": lambda: Starcoder2ForCausalLM(Starcoder2Config(**SIZES, sliding_window=4)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**NEOX, use_parallel_residual=False)),
}
# The first and the last linear layer of the MLP, by their names in layer {} of a family.
LINEAR = {
    "opt": ("model.decoder.layers.{}.fc1", "model.decoder.layers.{}.fc2"),
    "gpt2": ("transformer.h.{}.mlp.c_fc", "transformer.h.{}.mlp.c_proj"),
    "starcoder2": ("model.layers.{}.mlp.c_fc", "model.layers.{}.mlp.c_proj"),
    "gpt_neox": ("gpt_neox.layers.{}.mlp.dense_h_to_4h", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
}
ALL = FAMILIES | UNGATED
# Mixtures of 4 experts of 12 neurons; each token uses 2. Routers are in float32, even in a float64 model.
EACH = 12
MIXTURES: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SIZES | {"intermediate_size": EACH}, num_local_experts=4, num_experts_per_tok=2)
    ),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SIZES, head_dim=8, moe_intermediate_size=EACH, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True
        )
    ),
    "olmoe": lambda: OlmoeForCausalLM(
        OlmoeConfig(**SIZES | {"intermediate_size": EACH}, num_experts=4, num_experts_per_tok=2)
    ),
}


def tiny_model(family: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A random model in eval mode whose parameters take no gradient."""
    torch.manual_seed(seed)
    model = (ALL | MIXTURES)[family]().to(dtype).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "bias" in name:  # transformers initialises biases with zero, which would hide a mistake
            parameter.normal_(std=0.1)
    if dtype == torch.float64:
        if family in MIXTURES:  # the default has no products in float64
            model.set_experts_implementation("eager")
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = functools.partial(_double_norm, module)
    return model


def gated(model: Any) -> bool:
    return model.config.model_type not in LINEAR


def linear(model: Any, layer: int, projection: str = "gate_proj") -> Any:
    """The linear layer with the rows of a projection; without a gate gate_proj is the first one."""
    if gated(model):
        mlp = model.model.layers[layer].mlp
        both = hasattr(mlp, "gate_up_proj") and projection != "down_proj"
        return mlp.gate_up_proj if both else getattr(mlp, projection)
    return model.get_submodule(LINEAR[model.config.model_type][projection == "down_proj"].format(layer))


def row_tensors(model: Any, layer: int, projection: str = "gate_proj") -> list[torch.Tensor]:
    """The weight rows of a projection and, if it has one, its bias: views that can be written to."""
    found = linear(model, layer, projection)
    if model.config.model_type == "phi3" and projection != "down_proj":
        return [found.weight.chunk(2)[projection == "up_proj"]]
    weight = found.weight.T if model.config.model_type == "gpt2" else found.weight
    return [weight] if found.bias is None else [weight, found.bias]


def rows(model: Any, layer: int, projection: str = "gate_proj") -> torch.Tensor:
    """The weight rows of a projection, a view that can be written to."""
    return row_tensors(model, layer, projection)[0]


def zero_rows(model: Any, layer: int, neurons: Any, projection: str = "gate_proj") -> None:
    """Sets rows of a projection and their biases to zero."""
    if model.config.model_type in MIXTURES:
        for neuron in neurons:
            expert, row = divmod(int(neuron), EACH)
            model.model.layers[layer].mlp.experts.gate_up_proj[expert, row + EACH * (projection == "up_proj")] = 0
        return
    for tensor in row_tensors(model, layer, projection):
        tensor[torch.as_tensor(neurons, dtype=torch.long)] = 0


def _double_norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm as it is defined; transformers computes it in float32, which would hide errors below 1e-7."""
    weight = 1 + norm.weight if type(norm).__name__.startswith("Gemma") else norm.weight
    epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
    return weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + epsilon)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and an end-of-text token that is not added by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def save_tiny(directory: Path, family: str = "llama", seed: int = 0) -> Path:
    """A tiny model directory in float32, as the `model` step writes one."""
    tiny_model(family, torch.float32, seed).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory
