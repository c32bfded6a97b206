"""Steering: activations are read, and changed while the model answers. The weights do not change.

A site is one tensor of every decoder layer. It is read and changed in packed runs (`tasks.models.packing`) by hooks on
the model's modules, which exist only while a pack runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.benchmarks.encoding import Encoded
from tasks.benchmarks.scoring import Answers, in_order, read_options, unit
from tasks.benchmarks.table import Rows
from tasks.comparison.system import Answer
from tasks.models.packing import Pack
from tasks.models.stack import DecoderStack
from tasks.runtime.errors import InputError

# Changes a site's values row by row, [n, width] -> [n, width].
Edit = Callable[[Tensor], Tensor]
# The steered reads of a pack: int64, indices into `Pack.reads`.
Nodes = Callable[[Pack, Sequence[Encoded]], Tensor]


@dataclass(frozen=True)
class Site:
    """A tensor [1, tokens, width] of every decoder layer.

    Attributes:
        modules: for each layer, the module with the tensor as its output.
        enters: the tensor is the module's input instead.
    """

    modules: list[nn.Module]
    enters: bool = False

    def hook(self, layer: int, through: Callable[[Tensor], Tensor]) -> Any:
        """Applies a function to the tensor of a layer in all later calls; returns the handle of the hook."""

        def entering(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return through(inputs[0]), *inputs[1:]

        def leaving(_: Any, __: Any, output: Any) -> Any:
            return (through(output[0]), *output[1:]) if isinstance(output, tuple) else through(output)

        module = self.modules[layer]
        return module.register_forward_pre_hook(entering) if self.enters else module.register_forward_hook(leaving)


@dataclass(frozen=True)
class Steering:
    """Changes of one site: the edit of each changed layer, and the tokens, which are the same for all layers."""

    site: Site
    edits: Mapping[int, Edit]
    nodes: Nodes


# -- sites ------------------------------------------------------------------------------------------------------------


def head_outputs(stack: DecoderStack) -> Site:
    """The input of o_proj: the concatenated outputs of all heads.

    Raises:
        InputError: the attention has no o_proj.
    """
    modules: list[Any] = [getattr(getattr(layer, "self_attn", None), "o_proj", None) for layer in stack.layers]
    if not all(isinstance(module, nn.Linear) for module in modules):
        raise InputError(
            "model", f"{type(stack.model).__name__}: its layers have no self_attn.o_proj to steer heads at"
        )
    return Site(modules, enters=True)


def by_head(stack: DecoderStack, values: Tensor) -> Tensor:
    """Values of `head_outputs` [.., width] as [.., heads, head_dim]."""
    return values.reshape(*values.shape[:-1], stack.config.num_attention_heads, -1)


def mlp_activations(stack: DecoderStack) -> Site:
    """act(W_gate x), before it is multiplied by W_up x; h itself without a gate.

    Raises:
        InputError: the MLPs have no separate activation modules.
    """
    _check_modules(stack)
    if stack.each is not None:
        raise InputError("model", f"{type(stack.model).__name__}: neurons of experts cannot be steered, heads can")
    modules: list[Any] = [mlp.activation for mlp in stack.mlps]
    if not all(isinstance(module, nn.Module) for module in modules) or len(set(modules)) < len(modules):
        raise InputError("model", f"{type(stack.model).__name__}: its MLPs have no separate act_fn modules to steer")
    return Site(modules)


def mlp_outputs(stack: DecoderStack) -> Site:
    """The output of the MLP, before a norm that may follow it.

    Raises:
        InputError: the MLPs have no modules of their own.
    """
    _check_modules(stack)
    return Site([mlp.module for mlp in stack.mlps])


def _check_modules(stack: DecoderStack) -> None:
    """Refuses MLPs whose linear layers are direct children of the decoder layer (OPT) and take [tokens, width]."""
    if any(mlp.module is layer for mlp, layer in zip(stack.mlps, stack.layers, strict=True)):
        raise InputError(
            "model", f"{type(stack.model).__name__}: its MLPs are not separate modules and cannot be steered"
        )


def layer_outputs(stack: DecoderStack) -> Site:
    """The output of the layer, the residual."""
    return Site(stack.layers)


# -- reading ----------------------------------------------------------------------------------------------------------


def option_activations(stack: DecoderStack, site: Site, rows: Sequence[Encoded]) -> list[Tensor]:
    """The site's values at the last token of each option after the prompt: for each row [options, layers, width]."""
    units = [[([*row.prompt, *option], [len(row.prompt) + len(option) - 1]) for option in row.options] for row in rows]
    by_row: dict[int, Tensor] = {}
    for packed in stack.pack(units):
        values = _values_at_reads(stack, site, packed)
        for index in packed.units:
            reads = [packed.read_of[index, number, positions[0]] for number, (_, positions) in enumerate(units[index])]
            by_row[index] = values[reads]
    return [by_row[index] for index in range(len(rows))]


def mean_difference(activations: Sequence[Tensor], gold: Sequence[int]) -> Tensor:
    """Mean over rows of the right option's values minus the mean of the wrong ones', [layers, width].

    Args:
        activations: for each row [options, layers, width].
    """
    return torch.stack(
        [values[g] - values[wrong(len(values), g)].mean(0) for values, g in zip(activations, gold, strict=True)]
    ).mean(0)


def wrong(options: int, gold: int) -> list[int]:
    """The options that are not the gold one."""
    return [number for number in range(options) if number != gold]


def check_contrasts(examples: Rows) -> None:
    """Checks that every example has a wrong option.

    Raises:
        InputError: there is no example, or one has a single option.
    """
    if not examples.encoded:
        raise InputError("examples", "steering needs at least one")
    for name, row in zip(examples.table["id"], examples.encoded, strict=True):
        if len(row.options) < 2:
            raise InputError(f"row {name}: options", "steering needs at least two")


def _values_at_reads(stack: DecoderStack, site: Site, packed: Pack) -> Tensor:
    """The site's values at the pack's reads, [R, layers, width]."""
    by_layer: dict[int, Tensor] = {}

    def keep(layer: int, values: Tensor) -> Tensor:
        by_layer[layer] = values[0] if layer == len(stack) - 1 else values[0, packed.reads.to(values.device)]
        return values

    with _hooks(site, {layer: partial(keep, layer) for layer in range(len(stack))}):
        stack.clean(packed)
    return torch.stack([by_layer[layer].to(packed.reads.device) for layer in range(len(stack))], dim=1)


# -- answering --------------------------------------------------------------------------------------------------------


def last_prompt_tokens(packed: Pack, rows: Sequence[Encoded]) -> Tensor:
    """The last token of each row's prompt."""
    reads = {packed.read_of[index, 0, len(rows[index].prompt) - 1] for index in packed.units}
    return torch.tensor(sorted(reads), device=packed.reads.device)


def tokens_read(packed: Pack, _: Sequence[Encoded]) -> Tensor:
    """The last token of each row's prompt and the tokens of its options: all tokens that predict the next one."""
    return torch.arange(len(packed.reads), device=packed.reads.device)


@contextmanager
def steered(stack: DecoderStack, steering: Steering) -> Iterator[Answer]:
    """A context in which rows are answered with the steering."""
    yield partial(answers_steered, stack, steering)


def answers_steered(stack: DecoderStack, steering: Steering, rows: Sequence[Encoded]) -> Answers:
    """Answers to all rows with the steering; C is 1.

    Raises:
        InputError: a logit is NaN or infinite.
    """
    by_row: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for group in _groups(rows):
        members = [rows[index] for index in group]
        for packed in stack.pack([unit(row) for row in members]):
            part = read_options(packed, members, _logits(stack, steering, packed, members)[None])
            indices = [group[number] for number in packed.units]
            by_row |= dict(zip(indices, zip(part.logprobs, part.greedy, strict=True), strict=True))
    return in_order(by_row)


def _logits(stack: DecoderStack, steering: Steering, packed: Pack, rows: Sequence[Encoded]) -> Tensor:
    """Logits at the pack's reads, [R, vocabulary]."""
    at = steering.nodes(packed, rows)

    def change(edit: Edit, where: Tensor, values: Tensor) -> Tensor:
        changed, where = values.clone(), where.to(values.device)
        changed[:, where] = edit(values[0, where].to(packed.reads.device)).to(values.device)
        return changed

    # The last layer runs on the reads only.
    where = {layer: at if layer == len(stack) - 1 else packed.reads[at] for layer in steering.edits}
    with _hooks(steering.site, {layer: partial(change, edit, where[layer]) for layer, edit in steering.edits.items()}):
        return stack.clean(packed).logits


@contextmanager
def _hooks(site: Site, through: Mapping[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    handles = [site.hook(layer, function) for layer, function in through.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _groups(rows: Sequence[Encoded]) -> list[list[int]]:
    """The rows' indices, in groups in which no prompt is a prefix of another.

    In one pack the last token of the shorter prompt, which is steered, would also be a token of the longer prompt.
    """
    groups: list[list[int]] = []
    prefixes: list[list[int]] = []  # of the current prompt, each a prefix of the next; in sorted order they nest
    for index in sorted(range(len(rows)), key=lambda index: rows[index].prompt):
        prompt = rows[index].prompt
        while prefixes and prompt[: len(prefixes[-1])] != prefixes[-1]:
            prefixes.pop()
        if not prefixes or prefixes[-1] != prompt:
            prefixes.append(prompt)
        if len(groups) < len(prefixes):
            groups.append([])
        groups[len(prefixes) - 1].append(index)
    return groups
