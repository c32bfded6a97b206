"""The MLP is found by its structure, in every family; other modules and MLPs that cannot be silenced are refused."""

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
)

from tasks.models.projections import PROJECTIONS
from tasks.models.stack import DecoderStack
from tasks.models.sweep import logits_without
from tasks.runtime.errors import InputError
from tests.models.everywhere import scaled_everywhere
from tests.tiny import ALL, MIXTURES, SIZES, UNGATED, tiny_model, zero_rows

SEQUENCES = [[3, 1, 4, 1, 5, 9], [3, 1, 4, 2, 6]]
# Gemma 2 attends in eager mode, whose softmax transformers computes in float32, as it does that of routers.
TOLERANCE = {"gemma2": 1e-4} | dict.fromkeys(MIXTURES, 1e-5)


def plain(model):
    return torch.stack([model(torch.tensor([s]), use_cache=False).logits[0, -1] for s in SEQUENCES])


@pytest.mark.parametrize(
    ("family", "projection"),
    [(family, p) for family in [*ALL, *MIXTURES] for p in PROJECTIONS if p != "down_proj" or family in ALL],
)
def test_every_edit_of_every_projection_equals_edited_weights(family, projection):
    model = tiny_model(family)
    stack = DecoderStack(model)
    [packed] = stack.pack([[(s, [len(s) - 1])] for s in SEQUENCES])
    residuals = stack.clean(packed)
    width = stack.width(projection)
    silent = np.arange(0, width, 3)
    scale = torch.ones(1, len(stack), width, dtype=torch.float64)
    scale[0, 1, silent] = 0
    everywhere = scaled_everywhere(stack, residuals, scale, projection)[0]
    one = stack.scaled(residuals, 1, scale[:, 1], projection)[0]
    [silenced] = next(logits_without(stack, residuals, 1, [silent], projection))
    # Without a gate u is 1: zero rows of it silence the neurons, as zero rows of the first linear layer do.
    zero_rows(model, 1, silent, "gate_proj" if family in UNGATED and projection == "up_proj" else projection)
    order = [packed.read_of[unit, 0, len(s) - 1] for unit, s in enumerate(SEQUENCES)]
    for logits in (everywhere, one, silenced):
        torch.testing.assert_close(logits[order], plain(model), atol=TOLERANCE.get(family, 1e-10), rtol=1e-5)


def test_factors_that_the_view_does_not_know_are_refused():
    model = GraniteForCausalLM(GraniteConfig(**SIZES, residual_multiplier=0.5)).eval()
    with pytest.raises(InputError, match="GraniteForCausalLM: re-running its layers does not give its logits"):
        DecoderStack(model)


def test_an_mlp_that_does_more_than_the_formula_is_refused(monkeypatch):
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    mlp = model.model.layers[2].mlp
    monkeypatch.setattr(
        mlp, "forward", lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x).clamp(max=0.1))
    )
    with pytest.raises(InputError, match=r"does not compute down_proj\(act\(gate\) \* up\)"):
        DecoderStack(model)


def test_gate_and_up_in_the_other_order_are_refused(monkeypatch):
    model = tiny_model("phi3")
    mlp = model.model.layers[0].mlp

    def forward(x):
        up, gate = mlp.gate_up_proj(x).chunk(2, dim=-1)
        return mlp.down_proj(mlp.activation_fn(gate) * up)

    monkeypatch.setattr(mlp, "forward", forward)
    with pytest.raises(InputError, match="this family is not supported"):
        DecoderStack(model)


def test_a_longrope_model_is_used_up_to_the_length_of_its_pretraining():
    """Beyond it all positions are rotated by other angles, for the whole sequence: it could not share a pack."""
    model = tiny_model("phi3")
    stack = DecoderStack(model)
    assert (stack.context, model.config.max_position_embeddings) == (256, 512)
    long = [i % 200 for i in range(stack.context)]
    units = [[(long, [len(long) - 1])], [(long[:20], [19])]]
    for packed in stack.pack(units):
        logits = stack.clean(packed).logits
        for (unit, _, position), read in packed.read_of.items():
            expected = model(torch.tensor([units[unit][0][0]]), use_cache=False).logits[0, position]
            torch.testing.assert_close(logits[read], expected, atol=1e-8, rtol=1e-5)


def test_of_a_model_that_takes_images_too_the_part_that_reads_text_is_used():
    text = Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=4)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    ).eval()
    model.requires_grad_(False)
    stack = DecoderStack(model)
    [packed] = stack.pack([[(s, [len(s) - 1])] for s in SEQUENCES])
    order = [packed.read_of[unit, 0, len(s) - 1] for unit, s in enumerate(SEQUENCES)]
    torch.testing.assert_close(stack.clean(packed).logits[order], plain(model), atol=1e-4, rtol=1e-4)
