"""PyTorch files read without running any code in them: whatever is no tensor or plain container is a stand-in.

torch's own `weights_only` refuses a file with one object more. Here such objects become `StandIn`s, which do nothing,
and their classes are noted: so that a message can name them, and so that `python -m kernel convert` can go round them.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar

import torch
from torch._utils import _rebuild_tensor_v2

from kernel.errors import InputError
from kernel.text import first_line
from kernel.unpickling import CodeFreeUnpickler, Maker, StandIn, make_dict

#: What reading a PyTorch file raises for bytes that are none: torch does not check them, and fails wherever it gets to.
DAMAGED_FILE_ERRORS = (
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, OverflowError,
    MemoryError, ImportError, OSError, struct.error, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip

#: The first bytes by which torch takes a file for an archive.
ZIP_BEGIN = b"PK\x03\x04"


class TorchUnpickler(CodeFreeUnpickler):
    """Makes tensors of what torch reads for it, which it calls by persistent ids."""

    def load_binpersid(self) -> None:
        """Have torch read numbers. Of a module, whose source it would compare with ours, the class alone is taken."""
        saved = self.stack.pop()
        kind = saved[0] if type(saved) is tuple and saved and type(saved[0]) is str else None
        if kind == "module" and len(saved) > 1:
            self.append(saved[1])
        elif kind == "storage":
            self.append(self.persistent_load(saved))
        else:
            raise pickle.UnpicklingError("it names neither numbers nor a module outside of itself")

    dispatch: ClassVar[dict[int, Any]] = CodeFreeUnpickler.dispatch | {pickle.BINPERSID[0]: load_binpersid}


def rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _requires_grad: Any, _hooks: Any, metadata: Any = None
) -> torch.Tensor:
    """As torch's `_rebuild_tensor_v2`, without what only training uses; it checks that the numbers are there.

    Raises:
        pickle.UnpicklingError: `storage` is none.
    """
    if type(storage) is not torch.TypedStorage:
        raise pickle.UnpicklingError(f"it makes a tensor of {type(storage).__name__}")
    return _rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict(), metadata)


def plain_parameter(data: Any, *_training: Any) -> Any:
    """The tensor of a parameter."""
    return data


def make_size(sides: Any = ()) -> tuple[Any, ...]:
    """A torch.Size as a tuple.

    Raises:
        pickle.UnpicklingError: `sides` is none.
    """
    if type(sides) is not tuple:
        raise pickle.UnpicklingError(f"it makes a size of {type(sides).__name__}")
    return sides


#: Classes and functions of a pickle that only put tensors together. Of dtypes none can be changed or called.
TENSOR_PARTS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Maker(make_dict),
    ("torch", "Size"): Maker(make_size),
    ("torch._utils", "_rebuild_parameter"): Maker(plain_parameter),
    ("torch._utils", "_rebuild_tensor_v2"): Maker(rebuild_tensor),
    ("torch.storage", "UntypedStorage"): SimpleNamespace(dtype=torch.uint8),  # of which torch takes the dtype alone
} | {
    ("torch", str(dtype).removeprefix("torch.")): dtype for dtype in vars(torch).values() if type(dtype) is torch.dtype
}


class CodeFreeReader:
    """Reads PyTorch files, and notes the classes and functions that were stood in for, by their full names."""

    def __init__(self) -> None:
        self.strangers: dict[str, None] = {}

    def read(self, path: Path) -> Any:
        """What a file holds, tensors on the CPU.

        Raises:
            InputError: the file cannot be read, or is a TorchScript archive, whose reading builds code.
        """
        pickling = SimpleNamespace(__name__="without_code", Unpickler=self.unpickler, load=self.load)
        try:
            refuse_torchscript(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickles in which torch finds what it has renamed
                return torch.load(path, map_location="cpu", weights_only=False, pickle_module=pickling)
        except DAMAGED_FILE_ERRORS as error:
            raise InputError(f"{path}: not a readable PyTorch file ({first_line(error)}); fetch it again") from error

    @property
    def unpickler(self) -> type[TorchUnpickler]:
        """Notes the strangers; torch derives from it, and finds its storages of numbers by itself."""
        strangers = self.strangers

        class NotingUnpickler(TorchUnpickler):
            known = TENSOR_PARTS

            def find_class(self, module: str, name: str, /) -> Any:
                if (module, name) not in self.known:
                    strangers[f"{module}.{name}"] = None
                return super().find_class(module, name)

        return NotingUnpickler

    def load(self, stream: IO[bytes], **options: Any) -> Any:
        """As `pickle.load`."""
        return self.unpickler(stream, **options).load()


def foreign_classes(path: Path) -> tuple[str, ...]:
    """The classes and functions that a PyTorch file, be it damaged, asks for beside those of tensors."""
    reader = CodeFreeReader()
    with contextlib.suppress(InputError):
        reader.read(path)
    return tuple(reader.strangers)


def refuse_torchscript(path: Path) -> None:
    """Raise InputError for a program saved by torch.jit, and for the archives of torch before 0.1.10.

    Torch builds code of the one, and unpacks links of the other. Whether a file is one is found as torch finds it.
    """
    if tarfile.is_tarfile(path):
        raise InputError(f"{path}: an archive that torch wrote before 2017; save its state dict anew")
    with path.open("rb") as stream:
        if stream.read(4) != ZIP_BEGIN:
            return
        stream.seek(0)
        if "constants.pkl" in torch._C.PyTorchFileReader(stream).get_all_records():
            raise InputError(
                f"{path}: a TorchScript program (torch.jit.save), not weights; save the module's state dict instead"
            )


def module_tensors(held: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """The state dict of a module (`torch.save(model)`) that was read as a `StandIn`; empty for anything else."""
    tensors: dict[str, torch.Tensor] = {}
    waiting = [(prefix, held)]
    seen: set[int] = set()
    while waiting:
        name, module = waiting.pop()
        if not isinstance(module, StandIn) or not isinstance(module.held, dict) or id(module) in seen:
            continue
        seen.add(id(module))
        for part in ("_parameters", "_buffers"):
            own = module.held.get(part)
            if isinstance(own, dict):
                tensors |= {f"{name}{key}": value for key, value in own.items() if isinstance(value, torch.Tensor)}
        children = module.held.get("_modules")
        if isinstance(children, dict):
            waiting.extend((f"{name}{key}.", child) for key, child in children.items())
    return tensors
