"""The norms around the MLP of a decoder layer, recognised by their inputs and outputs."""

from typing import Any

import torch
from torch import Tensor

from tasks.models.calls import Stop
from tasks.models.experts import Experts
from tasks.models.mlp import Mlp
from tasks.models.structure import is_norm
from tasks.runtime.errors import InputError


@torch.no_grad()
def norms_of_mlp(
    body: Any, layer: Any, mlp: Mlp | Experts, device: torch.device, kind: str
) -> tuple[str | None, str | None]:
    """The names of the norms before and after the MLP of a model's first decoder layer, None where there is none.

    They are recognised in a run of two tokens: the output of the norm before the MLP is the input of the MLP, and the
    input of the norm after it is the output of the MLP.

    Args:
        body: the model without its output embedding.
        kind: the class of the model, for messages.

    Raises:
        InputError: the input of the MLP is not the residual after attention, as with parallel residuals.
    """
    norms = [(name, child) for name, child in layer.named_children() if is_norm(child)]
    seen: dict[Any, tuple[Tensor, Tensor]] = {}
    given: list[Tensor] = []

    def keep(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[module] = inputs[0], output

    def stop(*_: Any) -> None:
        raise Stop

    modules = {child for _, child in norms} | {mlp.entrance, mlp.exit}
    handles = [module.register_forward_hook(keep) for module in modules]
    handles += [layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))]
    handles += [layer.register_forward_hook(stop)]
    try:
        body(input_ids=torch.zeros((1, 2), dtype=torch.long, device=device), use_cache=False)
    except Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    entering, leaving = seen[mlp.entrance][0], seen[mlp.exit][1]
    before = next((name for name, norm in norms if norm in seen and _same(seen[norm][1], entering)), None)
    after = next((name for name, norm in norms if norm in seen and _same(seen[norm][0], leaving)), None)
    if _same(given[0], seen[getattr(layer, before)][0] if before else entering):
        raise InputError(
            "model",
            f"{kind}: the MLP of a {type(layer).__name__} takes the layer's input (parallel residuals) and not "
            "attention's output; this family is not supported",
        )
    return before, after


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same; a view of another shape (OPT) is recognised by its address, if it has one."""
    return a is b or a.data_ptr() == b.data_ptr() != 0
