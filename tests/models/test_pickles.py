"""Hostile PyTorch files reach neither torch's classes nor the disk: its functions get parts of tensors alone."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from kernel.errors import InputError
from kernel.models.checkpoints import read_checkpoint
from kernel.models.pickles import TENSOR_PARTS, CodeFreeReader, module_tensors
from kernel.unpickling import Maker, StandIn

STORAGE = b"ctorch.storage\nUntypedStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def numbers(count: int = 4, kind: str = "storage") -> bytes:
    """Has torch read the numbers of an archive."""
    return b"(" + word(kind) + b"ctorch\nFloatStorage\n" + word("0") + word("cpu") + b"K" + bytes([count]) + b"tQ"


def save_archive(path: Path, content: bytes) -> Path:
    """A PyTorch file of this pickle, with four numbers."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    return path


def save_legacy(path: Path, content: bytes) -> Path:
    """A file of torch before 1.6 of this pickle, without numbers."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, facts))
    path.write_bytes(head + b"\x80\x02" + content + b"." + pickle.dumps([], 2))
    return path


@pytest.mark.parametrize(
    "call",
    [
        b"K\x08\x85R",
        b"K\x08\x85\x81",
        b"K\x08\x85}" + word("device") + word("cpu") + b"s\x92",  # as `allocator`, which is a pointer
    ],
    ids=["function", "class", "class with named arguments"],
)
def test_no_storage_is_made_by_a_pickle(call: bytes, tmp_path: Path) -> None:
    path = save_archive(tmp_path / "a.pt", STORAGE + call)
    try:
        assert type(CodeFreeReader().read(path)) is StandIn
    except InputError as error:
        assert "it calls" in str(error)
    with pytest.raises(InputError):
        read_checkpoint(path)


TENSOR = REBUILD + b"(" + numbers() + b"K\x00K\x04\x85K\x01\x85\x89}tR"


@pytest.mark.parametrize(
    "target",
    [STORAGE, REBUILD, TENSOR, numbers(), b"ctorch\nFloatStorage\n", b"ctorch\nfloat32\n"],
    ids=["storage", "function", "tensor", "numbers", "kind of numbers", "dtype"],
)
@pytest.mark.parametrize(
    "state", [b"}" + word("nbytes") + b"K\x05s", b"N}" + word("nbytes") + b"K\x05s\x86"], ids=["attributes", "slots"]
)
def test_no_attribute_of_torch_is_set(
    target: bytes, state: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.UntypedStorage.nbytes
    monkeypatch.setattr(torch.UntypedStorage, "nbytes", real)  # to be put back
    path = save_archive(tmp_path / "a.pt", target + state + b"b")
    with pytest.raises(InputError, match="it changes"):
        CodeFreeReader().read(path)
    with pytest.raises(InputError):
        read_checkpoint(path)
    assert torch.UntypedStorage.nbytes is real
    assert not any(hasattr(part, "nbytes") for part in TENSOR_PARTS.values())


def test_parts_of_tensors_cannot_be_called_or_changed_by_themselves() -> None:
    for part in TENSOR_PARTS.values():
        assert not callable(part)
        assert isinstance(part, Maker | torch.dtype) or vars(part) == {"dtype": torch.uint8}


@pytest.mark.parametrize("filled", [b"K\x00K\x09s", b"(K\x00K\x09u", b"(K\x09\x90"])
def test_tensors_are_not_computed_with(filled: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it fills Tensor"):
        CodeFreeReader().read(save_archive(tmp_path / "a.pt", TENSOR + filled))


@pytest.mark.parametrize(
    "storage",
    [
        b"]",
        STORAGE,
        b"cos\npath\n",
        TENSOR,
        numbers(5),
        numbers(kind="module") + b"0" + numbers(kind="other"),
        b"K\x05Q",
    ],
)
def test_tensors_of_no_numbers_are_refused(storage: bytes, tmp_path: Path) -> None:
    path = save_archive(tmp_path / "a.pt", REBUILD + b"(" + storage + b"K\x00K\x04\x85K\x01\x85\x89}tR")
    with pytest.raises(InputError, match="not a readable PyTorch file"):
        CodeFreeReader().read(path)


def test_hooks_and_gradients_are_left_behind(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    torch.save({"a": weight, "size": weight.shape, "dtype": weight.dtype}, tmp_path / "a.pt")
    reader = CodeFreeReader()
    held = reader.read(tmp_path / "a.pt")
    assert held["size"] == (2,) and held["dtype"] is torch.float32 and not reader.strangers
    assert torch.equal(held["a"], weight) and not held["a"].requires_grad
    hooked = TENSOR.replace(b"\x89}", b"\x88}K\x00cos\nsystem\ns")
    assert not CodeFreeReader().read(save_archive(tmp_path / "b.pt", hooked))._backward_hooks


@pytest.mark.parametrize("zipped", [True, False])
def test_storages_of_bytes_are_passed_by(zipped: bool, tmp_path: Path) -> None:
    content: dict[str, Any] = {"w": torch.arange(6.0)[2:], "negative": torch.ones(3, dtype=torch.complex64).conj().imag}
    content["same"] = content["w"]
    if zipped:
        content["storage"] = torch.ones(3).untyped_storage()
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    held = CodeFreeReader().read(tmp_path / "a.pt")
    assert all(torch.equal(held[name], content[name]) for name in ("w", "same", "negative"))
    assert held["same"].untyped_storage().data_ptr() == held["w"].untyped_storage().data_ptr()


def test_the_source_of_a_module_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch would write the differences beside: to a place that the file names."""
    monkeypatch.chdir(tmp_path)
    own_name = torch.UntypedStorage.__name__
    told = word("dump_patches") + b"\x88s" + word("__name__") + word(str(tmp_path / "written")) + b"s"
    module = b"(" + word("module") + STORAGE + word("a.py") + word("import os\n") + b"tQ"
    path = save_legacy(tmp_path / "a.pt", STORAGE + b"N}" + told + b"\x86b0" + module)
    try:
        with pytest.raises(InputError):
            read_checkpoint(path)
        with pytest.raises(InputError, match="it changes"):
            CodeFreeReader().read(path)
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    finally:
        torch.UntypedStorage.__name__ = own_name
        vars(torch.UntypedStorage).get("dump_patches") and delattr(torch.UntypedStorage, "dump_patches")


def test_a_module_saved_with_its_source_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3))
    torch.save(module, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pt").read_bytes()
    assert b"class Linear" in content
    (tmp_path / "a.pt").write_bytes(content.replace(b"class Linear", b"class Other_"))
    held = module_tensors(CodeFreeReader().read(tmp_path / "a.pt"))
    assert held.keys() == module.state_dict().keys()
    assert all(torch.equal(held[key], value) for key, value in module.state_dict().items())


def test_a_program_behind_an_archive_that_python_does_not_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    path.write_bytes(path.read_bytes() + b"\x01" * 68_000)
    assert not zipfile.is_zipfile(path)
    for read in (CodeFreeReader().read, read_checkpoint):
        with pytest.raises(InputError, match="TorchScript"):
            read(path)


def test_an_archive_of_links_is_not_unpacked(tmp_path: Path) -> None:
    """Torch would set the rights of what a link in it names."""
    other = tmp_path / "other"
    other.write_bytes(b"secret")
    other.chmod(0o600)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname, link.mode = tarfile.LNKTYPE, str(other), 0o666
        archive.addfile(link)
    head = bytearray(stream.getvalue())
    head[257:265], head[148:156] = bytes(8), b" " * 8  # as tar wrote it before POSIX
    head[148:156] = f"{sum(head[:512]):06o}\0 ".encode()
    (tmp_path / "a.pt").write_bytes(head)
    assert tarfile.is_tarfile(tmp_path / "a.pt")
    for read in (CodeFreeReader().read, read_checkpoint):
        with pytest.raises(InputError, match="before 2017"):
            read(tmp_path / "a.pt")
    assert other.stat().st_mode & 0o777 == 0o600
