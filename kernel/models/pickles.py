"""PyTorch files read without running any code in them: whatever is no tensor or plain container is a stand-in.

torch's own `weights_only` refuses a file with one object more. Here such objects become `StandIn`s, which do nothing,
and their classes are noted: so that a message can name them, and so that `python -m kernel convert` can go round them.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

from kernel.errors import InputError
from kernel.text import first_line

#: What reading a PyTorch file raises for bytes that are none: torch does not check them, and fails wherever it gets to.
DAMAGED_FILE_ERRORS = (
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, OverflowError,
    MemoryError, ImportError, OSError, struct.error, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip

#: Functions and classes of a pickle that only put tensors together; none takes a name of code to run.
HARMLESS_GLOBALS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
} | {
    ("torch", str(dtype).removeprefix("torch.")): dtype for dtype in vars(torch).values() if type(dtype) is torch.dtype
}


class StandIn:
    """Stands for an object of any class: takes whatever a pickle does to it, and keeps its attributes as data."""

    def __new__(cls, *_args: Any, **_named: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_named: Any) -> None:
        self.held: Any = None

    def __call__(self, *_args: Any, **_named: Any) -> StandIn:
        return StandIn()

    def __setstate__(self, held: Any) -> None:
        self.held = held

    def __setitem__(self, _key: Any, _value: Any) -> None:
        """As of a class derived from dict."""

    def append(self, _value: Any) -> None:
        """As of a class derived from list."""

    def extend(self, _values: Any) -> None:
        """As of a class derived from list."""

    def add(self, _value: Any) -> None:
        """As of a class derived from set."""


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
    def unpickler(self) -> type[pickle.Unpickler]:
        """Finds what is harmless and nothing else; torch derives from it."""
        strangers = self.strangers

        class CodeFreeUnpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str, /) -> Any:
                known = HARMLESS_GLOBALS.get((module, name))
                if known is None:
                    strangers[f"{module}.{name}"] = None
                    return StandIn
                return known

        return CodeFreeUnpickler

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
    """Raise InputError for a program saved by torch.jit, and for the archives of torch before 0.1.10."""
    with path.open("rb") as stream:
        if stream.read(262)[257:] == b"ustar":
            raise InputError(f"{path}: an archive that torch wrote before 2017; save its state dict anew")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
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
