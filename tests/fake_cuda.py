"""A CUDA device that needs no GPU: tensors that say they are there, compute on the CPU, and keep apart what CUDA does.

Under `fake_cuda()`, `tensor.to("cuda")` and whatever is made there are `CudaTensor`s. As on a real device, an operator
whose tensors lie on both sides fails, unless the one on the host is a number without dimensions or indexes the others;
numpy and plain Python see a tensor's values only by copies, which are counted. What it cannot show: kernels, streams,
memory, short dtypes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
#: Operators that take indices from the host.
INDEXING = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
#: Operators that copy from one side to the other.
COPIES = ("aten::copy_", "aten::_to_copy", "aten::to")
#: ... and those by which the host sees values.
TO_HOST = ("aten::_to_copy", "aten::to", "aten::_local_scalar_dense", "aten::item")


class CudaTensor(torch.Tensor):
    """Says that it lies on the first GPU; `held` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> CudaTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=CUDA
        )
        self.held = held
        return self

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_there(function, args, kwargs or {})


class FakeCuda(TorchDispatchMode):
    """Sees what has no tensor among its arguments as well: `torch.zeros(..., device="cuda")`."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_to_host: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        moved = run_there(function, args, kwargs or {})
        is_read = function._schema.name in TO_HOST and isinstance(args[0], CudaTensor)
        if is_read and not isinstance(moved, CudaTensor):
            self.bytes_to_host.append(args[0].held.nbytes)
        return moved


def run_there(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the values held; what comes out lies where its arguments did, or where it was told to."""
    name, leaves = function._schema.name, tree_flatten((args, kwargs))[0]
    tensors = [value for value in leaves if isinstance(value, torch.Tensor)]
    there = [value for value in tensors if isinstance(value, CudaTensor)]
    if there and name not in COPIES:
        for value in tensors[:1] if name in INDEXING else tensors:
            if value.ndim and not isinstance(value, CudaTensor):
                raise RuntimeError(
                    f"{name}: expected all tensors to be on the same device, one of {value.shape} is not"
                )
    told = next((value for value in leaves if isinstance(value, torch.device)), None)
    goes_there = bool(there) if told is None else told.type == "cuda"
    if name == "aten::copy_":
        goes_there = isinstance(args[0], CudaTensor)

    def on_host(value: Any) -> Any:
        if isinstance(value, CudaTensor):
            return value.held
        return torch.device("cpu") if isinstance(value, torch.device) else value

    values = function(*tree_map(on_host, args), **tree_map(on_host, kwargs))
    known = {id(value.held): value for value in there}  # operators in place give back what they were given

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else CudaTensor(value)

    return tree_map(wrap, values) if goes_there else values


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Within, `cuda` is a device. Skips the test under a torch that cannot do without a driver (2.8)."""
    if not hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        pytest.skip(f"torch {torch.__version__} cannot fake a GPU where there is none")
    # As torch's own fake tensors do where there is no driver.
    torch._C._ensureCUDADeviceGuardSet()
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a plain parameter cannot become one there
    try:
        with patch.object(torch.cuda, "_lazy_init", lambda: None), FakeCuda() as mode:
            yield mode
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        torch._C._set_only_lift_cpu_tensors(before)
