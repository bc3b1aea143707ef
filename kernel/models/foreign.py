"""Weight files of other trainers: the tensors in them, and what detector these are."""

from __future__ import annotations

from pathlib import Path

from kernel.errors import InputError
from kernel.models.checkpoints import Checkpoint, checkpoint_of, load_safetensors, recognise_state_dict, shapes_of
from kernel.models.pickles import CodeFreeReader, module_tensors


def read_foreign(path: Path, take: str | None) -> tuple[Checkpoint, tuple[str, ...]]:
    """What a weight file of any trainer holds, and the classes of what was left behind.

    Raises:
        InputError: the file is missing or damaged, or holds no tensors to choose.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    if path.suffix == ".safetensors":
        content, metadata = load_safetensors(path)
        return checkpoint_of(content, metadata, str(path), take), ()
    reader = CodeFreeReader()
    content = reader.read(path)
    for_module = module_tensors(content)
    if isinstance(content, dict):  # a module beside other things: {"model": module, "epoch": 3}
        content = {key: module_tensors(value) or value for key, value in content.items()}
    return checkpoint_of(for_module or content, content, str(path), take), tuple(reader.strangers)


def describe(checkpoint: Checkpoint, stem_stride: int | None, path: Path) -> str:
    """What a manifest says of a member with this file, or why it can have none."""
    try:
        spec = recognise_state_dict(shapes_of(checkpoint.state), str(path))
    except InputError as error:
        return f"no member of an ensemble: {error}"
    stem = "not known: state `stem_stride` in the manifest, 1 or 2" if stem_stride is None else str(stem_stride)
    return f"kind {spec.kind}, encoder {spec.encoder}, {spec.num_classes} classes, stride of the stem {stem}"
