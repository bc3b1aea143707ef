"""Weight files of other trainers: the tensors in them, and what detector these are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kernel.errors import InputError
from kernel.manifest.types import MASK_KINDS, TIMM_PREFIX
from kernel.models.checkpoints import (
    TIMM_KEYS,
    Checkpoint,
    as_member,
    checkpoint_of,
    load_safetensors,
    recognise_detector,
)
from kernel.models.configurations import (
    OUR_PIXELS,
    configured_boxes,
    configured_encoder,
    configured_stem_stride,
    configured_style,
)
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
        return replace(checkpoint_of(content, metadata, str(path), take), metadata=metadata), ()
    reader = CodeFreeReader()
    content = reader.read(path)
    for_module = module_tensors(content)
    if isinstance(content, dict):  # a module beside other things: {"model": module, "epoch": 3}
        content = {key: module_tensors(value) or value for key, value in content.items()}
    return checkpoint_of(for_module or content, content, str(path), take), tuple(reader.strangers)


def noted(checkpoint: Checkpoint, source: str, stem_stride: int | None, encoder: str | None) -> Checkpoint:
    """A checkpoint as a file of ours tells it: with metadata from which all that its configuration told is read again.

    Args:
        checkpoint: what was read.
        source: what messages call it.
        stem_stride, encoder: to be noted; None: as its own configuration has them.

    Raises:
        InputError: its own record tells otherwise, or it has not the keys of an encoder of timm.
    """
    has_timm = any(key.startswith(TIMM_KEYS) for key in checkpoint.state)
    if encoder is not None and not (has_timm and encoder.startswith(TIMM_PREFIX)):
        raise InputError(
            f"--encoder {encoder}: it notes a network of timm, {TIMM_PREFIX}NAME, in the file of a detector whose "
            f"encoder is one (keys {TIMM_KEYS}...); any other is recognised by its weights"
        )
    stem_stride, encoder = stem_stride or checkpoint.stem_stride, encoder or checkpoint.encoder
    metadata = dict(checkpoint.metadata) or {"format": "pt"}
    if stem_stride is not None and configured_stem_stride(metadata) != stem_stride:
        metadata["stem_stride"] = str(stem_stride)
    if encoder is not None and configured_encoder(metadata) != encoder:
        metadata["encoder"] = encoder
    if checkpoint.pixels - {OUR_PIXELS}:  # a training that starts from the file must know
        metadata["img_norm_cfg"] = "\n".join(sorted(map(str, checkpoint.pixels)))
    if checkpoint.style is not None and configured_style(metadata) != checkpoint.style:
        metadata["style"] = checkpoint.style
    if configured_boxes(metadata) != checkpoint.boxes:  # what was trained by other anchors is no member, here as there
        metadata["cfg"] = "\n".join(
            f"{name} = {list(numbers)}" for name, found in checkpoint.boxes.items() for numbers in sorted(found)
        )
    for what, wanted, told in (
        ("stem_stride", stem_stride, configured_stem_stride(metadata)),
        ("encoder", encoder, configured_encoder(metadata)),
    ):
        if wanted != told:
            raise InputError(f"{source}: its own record tells another {what} than {wanted}, and that stays")
    return replace(checkpoint, stem_stride=stem_stride, encoder=encoder, metadata=metadata)


def describe(checkpoint: Checkpoint, path: Path) -> str:
    """What a manifest says of a member with this file, or why it can have none."""
    try:
        spec = recognise_detector(checkpoint, str(path))
        as_member(checkpoint, spec, str(path))
    except InputError as error:
        return f"no member of an ensemble: {error}"
    if spec.kind in MASK_KINDS:
        return f"kind {spec.kind}, encoder {spec.encoder}, {spec.mask_channels} channels; it makes masks alone"
    stem = str(checkpoint.stem_stride or "not known: state `stem_stride` in the manifest, 1 or 2")
    return f"kind {spec.kind}, encoder {spec.encoder}, {spec.num_classes} classes, stride of the stem {stem}"
