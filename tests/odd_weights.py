"""Weight files that are none, or none as ours: for tests of who reads them."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

State = dict[str, torch.Tensor]
CLASSES = "roi_head.bbox_head.fc_cls.weight"


def with_classes(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    """A state dict with the layer that tells classes apart changed."""
    return lambda state: {**state, CLASSES: change(state[CLASSES].float())}


#: Changes that make a state dict worthless, and what is said of each; all but the last ones are seen by any reader.
ODD_TENSORS: Mapping[str, tuple[Callable[[State], State], str]] = {
    "sparse": (with_classes(lambda weight: weight.to_sparse()), "is sparse"),
    "csr": (with_classes(lambda weight: weight.to_sparse_csr()), "is sparse"),
    "nested": (with_classes(lambda weight: torch.nested.nested_tensor([weight])), "nested"),
    "quantised": (with_classes(lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)), "qint8"),
    "meta": (with_classes(lambda weight: weight.to("meta")), "without data"),
    "float8": (with_classes(lambda weight: weight.to(torch.float8_e4m3fn)), "float8_e4m3fn"),
    "complex": (with_classes(lambda weight: weight.to(torch.complex64)), "complex64"),
    "int32": (with_classes(lambda weight: weight.to(torch.int32)), "int32"),
    "expanded": (with_classes(lambda weight: weight[:1].expand(10**9, -1)), "fewer stored numbers"),
    "zero": (lambda state: {key: torch.zeros_like(value) for key, value in state.items()}, "all zero"),
    "nan": (with_classes(lambda weight: weight * torch.nan), "not finite"),
    "float64": (with_classes(lambda weight: weight.double() * 1e300), "not finite"),
}


def write_strays(folder: Path) -> None:
    """Files that are no weights under the names of such, as they lie about."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.pt").write_bytes(b"")
    (folder / "notes.bin").write_text('{"a": 1}', encoding="utf-8", newline="\n")
    (folder / "deep.safetensors").write_bytes((50_000).to_bytes(8, "little") + b"[" * 50_000)
    (folder / "deep.pt").write_bytes(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    torch.save({"epoch": 3, "lr": 0.1}, folder / "state.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(folder / "script.pt"))


def save_with_class(content: Mapping[str, Any], path: Path) -> None:
    """Save with an object of a class that is not installed where the file is read: mmengine's message hub."""
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    modules = {name: types.ModuleType(name) for name in names}
    buffer = type("HistoryBuffer", (), {"__module__": names[-1]})
    modules[names[-1]].HistoryBuffer = buffer  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        torch.save({**content, "message_hub": {"loss": buffer()}}, path)
    finally:
        for name in names:
            del sys.modules[name]


def load_demo(path: Path) -> State:
    """A demo member's weights, in float32."""
    state = safetensors.torch.load_file(path)
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
