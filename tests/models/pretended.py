"""A pretended device: real CPU data in a wrapper that refuses every operation on tensors of different devices.

A GPU would refuse the same mixes. To be imported in a process of its own: PyTorch has one such backend for good.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
_setup_privateuseone_for_python_backend(NAME)

aten = torch.ops.aten
MOVING = {aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}  # CPU indices are allowed


class Placed(torch.Tensor):
    """A tensor that says it is on a pretended device; `held` is its data."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> "Placed":
        self = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), dtype=held.dtype, storage_offset=held.storage_offset(),
            device=device,
        )  # fmt: skip
        self.held = held
        return self

    def tolist(self) -> Any:
        return self.held.tolist()

    def new_tensor(self, data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation on the data, on the device of its arguments.

    Raises:
        RuntimeError: they are on several.
    """
    found = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    places = {t.device for t in found if t.dim() or t.device.type != "cpu"}
    if func in INDEXING:
        places = {args[0].device} | {p for p in places if p.type != "cpu"}
    if func not in MOVING and len(places) > 1 and any(p.type == NAME for p in places):
        raise RuntimeError(f"{func} on {sorted(map(str, places))}")
    wanted = kwargs.get("device")
    where = torch.device(wanted or next(iter(places), "cpu")) if func is not aten.copy_.default else args[0].device
    if where.type == NAME and where.index is None:
        where = torch.device(f"{NAME}:0")
    args_, kwargs_ = tree_map_only(Placed, lambda t: t.held, (args, kwargs))
    out = func(*args_, **(kwargs_ | {"device": "cpu"} if wanted is not None else kwargs_))
    if args_ and out is args_[0]:
        return args[0]  # in place
    return tree_map_only(torch.Tensor, lambda t: Placed(t, where), out) if where.type == NAME else out


class Pretending(TorchDispatchMode):
    """The context in which the pretended devices are there."""

    def __enter__(self) -> Any:
        torch._C._set_only_lift_cpu_tensors(True)
        torch._C._set_multithreading_enabled(False)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        torch._C._set_multithreading_enabled(True)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})
