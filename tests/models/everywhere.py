"""All layers edited in one pass over the whole model: the reference for a sweep with `layer=None`."""

from collections.abc import Sequence

from torch import Tensor

from tasks.models.products import Products
from tasks.models.projections import Projection
from tasks.models.stack import DecoderStack, Residuals


def scaled_everywhere(
    stack: DecoderStack,
    residuals: Residuals,
    scale: Tensor,
    projection: Projection = "gate_proj",
    added: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Logits at the pack's reads, [C, R, vocabulary], with the rows of every layer l multiplied by scale[:, l].

    Differentiable in `scale`, [C, layers, width], and in `added`: for each layer what `DecoderStack.scaled` takes.
    """
    edits = zip(stack.mlps, scale.unbind(1), added or [None] * len(stack), strict=True)
    handles = [mlp.edit_rows(projection, by, more) for mlp, by, more in edits]
    try:
        with Products():
            hidden = residuals.inputs[0].expand(len(scale), -1, -1)
            for index in range(len(stack)):
                hidden = stack.run_layer(index, hidden, residuals)
            return stack.head(hidden)
    finally:
        for handle in handles:
            handle.remove()
