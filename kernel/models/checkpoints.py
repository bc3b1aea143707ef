"""Weights from a file into a detector: read safely, recognised by their content, matched strictly."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError

from kernel.errors import InputError
from kernel.files import file_sha256, reading
from kernel.manifest.types import MASK_KINDS, PLAIN_ENCODER, WEIGHT_SUFFIXES
from kernel.models.adapting import (
    STEM_KEYS,
    for_our_pixels,
    refuse_caffe,
    refuse_other_boxes,
    tell_change,
    tell_several,
)
from kernel.models.configs import NECK_NORM_GROUPS, DetectorSpec
from kernel.models.configurations import (
    OUR_PIXELS,
    PixelRule,
    configured_boxes,
    configured_encoder,
    configured_pixels,
    configured_stem_stride,
    configured_style,
)
from kernel.models.detectors import Detector, build_detector
from kernel.models.eight_bits import from_eight_bits
from kernel.models.encoders import ENCODER_SIGNATURES, encoder_signature
from kernel.models.pickles import DAMAGED_FILE_ERRORS, foreign_classes, refuse_torchscript
from kernel.models.wrappers import StateDict, find_state
from kernel.text import first_line, shell_word

#: Keys of timm's classifier, which no detector runs: a checkpoint may hold or lack them, and our own files lack them.
NEVER_RUN_PREFIXES = (
    "backbone.effnet.conv_head.",
    "backbone.effnet.bn2.",
    "backbone.effnet.classifier.",
)
#: Keys of an encoder that is a network of timm, `TimmFeatures`.
TIMM_KEYS = "backbone.timm."
#: Keys of a mask network, `CropUNet`; its channels are those of the first convolution.
CROP_UNET_KEYS = "crop_unet."
CROP_UNET_FIRST = "crop_unet.down.0.0.weight"
#: Keys of tensors that may be all zero: some networks of timm begin so with layers that add to others.
MAY_BE_ZERO = (*NEVER_RUN_PREFIXES, TIMM_KEYS)
#: Buffers that only training uses; older checkpoints lack them.
OPTIONAL_KEY_SUFFIXES = (".num_batches_tracked",)
#: What weights may be stored as; counters may be whole numbers.
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
COUNTER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@dataclass(frozen=True)
class Checkpoint:
    """What a weight file holds."""

    state: StateDict  # dense tensors of real numbers on the CPU, by the detector's own keys
    stem_stride: int | None  # as its configuration has it, if it has one
    told: tuple[str, ...] = ()  # what it holds besides, and is not used
    encoder: str | None = None  # of timm, as its configuration names it
    pixels: frozenset[PixelRule] = frozenset()  # `configured_pixels`: how its network was given them
    boxes: Mapping[str, frozenset[tuple[float, ...]]] = field(default_factory=dict)  # `configured_boxes`
    style: str | None = None  # of a ResNet, `configured_style`
    metadata: Mapping[str, str] = field(default_factory=dict)  # of safetensors


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors or PyTorch file.

    Names and prefixes that trainers put around the detector's state dict are taken off, as `find_state` says.

    Raises:
        InputError: the file is missing or damaged, would run code when loaded, or holds no dense tensors of numbers.
    """
    if not path.is_file():
        raise InputError(f"no weight file {path}: check the member's `dataset` and `file` in the manifest")
    if path.suffix not in WEIGHT_SUFFIXES:
        raise InputError(f"{path}: not a weight file; allowed are {', '.join(WEIGHT_SUFFIXES)}")
    if path.suffix == ".safetensors":
        content, metadata = load_safetensors(path)
        return replace(checkpoint_of(content, metadata, str(path)), metadata=metadata)
    content = load_pytorch(path)
    return checkpoint_of(content, content, str(path))


def checkpoint_of(content: Any, configuration: Any, source: str, take: str | None = None) -> Checkpoint:
    """What a file with this content holds; arguments as of `find_state` and `configured_stem_stride`.

    Raises:
        InputError: as `find_state` and `refuse_odd_tensors`.
    """
    state, told = find_state(content, source, take)
    refuse_odd_tensors(state, source)
    return Checkpoint(
        state,
        configured_stem_stride(configuration),
        tuple(told),
        configured_encoder(configuration),
        configured_pixels(configuration),
        configured_boxes(configuration),
        configured_style(configuration),
    )


def read_state_dict(path: Path) -> StateDict:
    """The state dict of `read_checkpoint`, which see."""
    return read_checkpoint(path).state


def load_safetensors(path: Path) -> tuple[StateDict, dict[str, str]]:
    """Read a safetensors file: its tensors, those of 8 bits as float32, and its metadata.

    Raises:
        InputError: it is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        content = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({first_line(error)}); fetch it again") from error
    return from_eight_bits(content, str(path)), metadata


def load_pytorch(path: Path) -> Any:
    """Read what a PyTorch file holds, without running any code in it.

    Raises:
        InputError: the file is damaged, or holds more than tensors and plain containers: their classes are named.
    """
    try:
        refuse_torchscript(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        strangers = foreign_classes(path)
        if not strangers:
            raise InputError(
                f"{path}: holds more than tensors and would run code when loaded, or is damaged; it is refused; "
                "save a plain state dict, or better safetensors"
            ) from error
        files = f"{shell_word(path.name)} {shell_word(f'{path.stem}.safetensors')}"
        raise InputError(
            f"{path}: holds more than tensors and would run code when loaded: {shorten_list(strangers)}; it is "
            f"refused; `python -m kernel convert {files}` takes the tensors out without running any"
        ) from error
    except DAMAGED_FILE_ERRORS as error:
        raise InputError(f"{path}: not a readable PyTorch file ({first_line(error)}); fetch it again") from error


def refuse_odd_tensors(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise InputError for tensors that are not dense and of real numbers: sparse, quantised, complex, without data."""
    odd = {key: oddity for key, value in state.items() if (oddity := oddity_of(value))}
    if odd:
        listed = shorten_list([f"{key} is {oddity}" for key, oddity in odd.items()])
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in WEIGHT_DTYPES)
        raise InputError(f"{source}: {listed}; allowed are dense tensors of {allowed}: save the file so")


def oddity_of(tensor: torch.Tensor) -> str:
    """In what a tensor is unlike weights; empty if in nothing."""
    if tensor.is_nested:
        return "a list of tensors (nested)"
    if tensor.is_meta:
        return "without data (of the device meta)"
    if tensor.layout != torch.strided:
        return f"sparse ({str(tensor.layout).removeprefix('torch.')})"
    counts = tensor.dtype in COUNTER_DTYPES and tensor.ndim < 2
    if tensor.is_quantized or not (counts or tensor.dtype in WEIGHT_DTYPES):
        return f"of {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"{tuple(tensor.shape)} of fewer stored numbers"
    return ""


def recognise_state_dict(
    shapes: Mapping[str, tuple[int, ...]], source: str, timm_encoder: str | None = None
) -> DetectorSpec:
    """Recognise the detector that a state dict belongs to.

    Args:
        shapes: its tensors' shapes by key, without "module.".
        source: what messages call it.
        timm_encoder: the encoder that the file names, where it is a network of timm.

    Raises:
        InputError: it belongs to no detector of ours.
    """
    if any(key.startswith(CROP_UNET_KEYS) for key in shapes):
        return recognise_crop_unet(shapes, source)
    encoder = ENCODER_SIGNATURES.get(encoder_signature(shapes))
    if any(key.startswith(TIMM_KEYS) for key in shapes):
        encoder = timm_encoder
        if encoder is None:
            raise InputError(
                f"{source}: its encoder is a network of timm, and nothing in the file names it, as the metadata of "
                "files trained here does: `python -m kernel convert FILE OUT --encoder timm:NAME` notes it"
            )
    if encoder is None:
        known = ", ".join(sorted(ENCODER_SIGNATURES.values()))
        raise InputError(f"{source}: unknown encoder; known are {known}, and networks of timm (timm:NAME)")
    if any(key.startswith("roi_head.semantic_head.") for key in shapes):
        kind, head = "htc", "0."
    elif "roi_head.bbox_head.0.fc_cls.weight" in shapes:
        kind, head = "cascade", "0."
    else:
        kind, head = "maskrcnn", ""
    keys = {
        "classes": f"roi_head.bbox_head.{head}fc_cls.weight",
        "neck": "neck.fpn_convs.0.conv.weight",
        "fc": f"roi_head.bbox_head.{head}shared_fcs.0.weight",
        "mask": f"roi_head.mask_head.{head}conv_logits.weight",
    }
    missing = [key for key in keys.values() if key not in shapes]
    if missing:
        raise InputError(f"{source}: not one of our detectors: it lacks {', '.join(missing)}")
    dimensions = {"classes": 2, "neck": 4, "fc": 2, "mask": 4}
    for part, count in dimensions.items():
        shape = shapes[keys[part]]
        if len(shape) != count or 0 in shape:
            raise InputError(f"{source}: not one of our detectors: {keys[part]} has the shape {tuple(shape)}")
    classes, neck_channels = shapes[keys["classes"]][0] - 1, shapes[keys["neck"]][0]
    neck_norm = "neck.lateral_convs.0.gn.weight" in shapes
    if classes < 1:
        raise InputError(f"{source}: not one of our detectors: {keys['classes']} has a row for the background alone")
    if neck_norm and neck_channels % NECK_NORM_GROUPS:
        raise InputError(
            f"{source}: not one of our detectors: its neck has {neck_channels} channels, which GroupNorm cannot split "
            f"into {NECK_NORM_GROUPS} groups"
        )
    return DetectorSpec(
        kind=kind,
        encoder=encoder,
        num_classes=classes,
        neck_channels=neck_channels,
        fc_channels=shapes[keys["fc"]][0],
        mask_channels=shapes[keys["mask"]][1],
        neck_norm=neck_norm,
    )


def recognise_crop_unet(shapes: Mapping[str, tuple[int, ...]], source: str) -> DetectorSpec:
    """As `recognise_state_dict`, of a mask network.

    Raises:
        InputError: its channels cannot be told.
    """
    shape = shapes.get(CROP_UNET_FIRST, ())
    if len(shape) != 4 or not shape[0]:
        raise InputError(f"{source}: not one of our mask networks: {CROP_UNET_FIRST} has the shape {tuple(shape)}")
    return DetectorSpec(kind="unet", encoder=PLAIN_ENCODER, mask_channels=shape[0])


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by key."""
    return {key: tuple(value.shape) for key, value in state.items()}


def recognise_checkpoint(path: Path) -> DetectorSpec:
    """Read a weight file and recognise the detector that it belongs to.

    Raises:
        InputError: as `read_checkpoint`, `recognise_state_dict` and `refuse_worthless` do.
    """
    checkpoint = read_checkpoint(path)
    spec = recognise_detector(checkpoint, str(path))
    refuse_worthless(checkpoint.state, str(path))
    return spec


def recognise_detector(checkpoint: Checkpoint, source: str) -> DetectorSpec:
    """Recognise the detector that a checkpoint belongs to; arguments and errors as of `recognise_state_dict`."""
    return recognise_state_dict(shapes_of(checkpoint.state), source, checkpoint.encoder)


def is_optional_key(key: str) -> bool:
    """Whether a checkpoint may lack `key`, or hold it though the detector has no use for it."""
    return key.startswith(NEVER_RUN_PREFIXES) or key.endswith(OPTIONAL_KEY_SUFFIXES)


def load_strictly(detector: Detector, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy `state` into `detector`. Keys and shapes must match in both directions, except for optional keys.

    Raises:
        InputError: they do not match, or a number is not finite; the first five of each sort are listed.
    """
    own = detector.state_dict()
    problems = {
        "missing": [key for key in own if key not in state and not is_optional_key(key)],
        "unknown": [key for key in state if key not in own and not is_optional_key(key)],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
        "of whole numbers": [
            f"{key} {str(state[key].dtype).removeprefix('torch.')}"
            for key in own
            if key in state and own[key].is_floating_point() and not state[key].is_floating_point()
        ],
        "not finite": not_finite(state),
        "below zero": [
            key for key in own if key in state and key.endswith(".running_var") and bool((state[key] < 0).any())
        ],
    }
    if any(problems.values()):
        raise InputError(
            f"{source} does not fit the detector: "
            + "; ".join(f"{sort}: {shorten_list(keys)}" for sort, keys in problems.items() if keys)
        )
    detector.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def refuse_worthless(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise InputError for weights that no training leaves: not finite, or 0 in all of a layer."""
    problems = {
        "not finite": not_finite(state),
        "all zero": [
            key
            for key, value in state.items()
            if value.ndim > 1 and not key.startswith(MAY_BE_ZERO) and not bool(value.count_nonzero())
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{sort}: {shorten_list(keys)}" for sort, keys in problems.items() if keys)
        raise InputError(f"{source} holds no trained weights: {listed}: save them anew")


def not_finite(state: Mapping[str, torch.Tensor]) -> list[str]:
    """The keys of tensors with a number that is not finite, or that is in float64 alone."""
    return [
        key for key, value in state.items() if value.is_floating_point() and not bool(value.float().isfinite().all())
    ]


def shorten_list(names: Iterable[str]) -> str:
    """The first five names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def refuse_other_detector(spec: DetectorSpec, kind: str, encoder: str, path: Path) -> None:
    """Raise InputError where the detector in `path` is not the one that the manifest claims, naming both."""
    if (spec.kind, spec.encoder) != (kind, encoder):
        raise InputError(
            f"{path} holds {spec.kind} {spec.encoder}, the manifest says {kind} {encoder}: correct the member's "
            "`kind` and `encoder`, or its `file`"
        )


def agreed_stem_stride(stated: int | None, configured: int | None, path: Path) -> int:
    """The stem's stride, as the manifest states it or the file's configuration has it; ours where neither does.

    Raises:
        InputError: they differ.
    """
    if stated is not None and configured is not None and stated != configured:
        raise InputError(
            f"{path} was trained with a stem of stride {configured}, by its configuration, the manifest says "
            f"{stated}: correct or leave out the member's `stem_stride`"
        )
    return stated or configured or DetectorSpec.stem_stride


def read_claimed(
    path: Path, kind: str, encoder: str, sha256: str | None = None, stem_stride: int | None = None
) -> tuple[DetectorSpec, Checkpoint]:
    """Read a weight file that must hold the detector that a manifest claims.

    Args:
        path: the file.
        kind, encoder: the detector.
        sha256: the file's; None: not checked.
        stem_stride: 1 or 2; None: as the file's configuration has it, else 1.

    Raises:
        InputError: the file was altered, cannot be read, belongs to another detector than claimed, or as `as_member`.
    """
    if sha256 is not None and path.is_file():
        with reading(path):
            found = file_sha256(path)
        if found != sha256:
            raise InputError(
                f"{path} was altered: its sha256 is {found}, the manifest says {sha256}; fetch the file again, or, if "
                "the change is meant, put the new sum into the manifest"
            )
    checkpoint = read_checkpoint(path)
    spec = recognise_detector(checkpoint, str(path))
    refuse_other_detector(spec, kind, encoder, path)
    spec = replace(spec, stem_stride=agreed_stem_stride(stem_stride, checkpoint.stem_stride, path))
    return spec, as_member(checkpoint, spec, str(path))


def as_member(checkpoint: Checkpoint, spec: DetectorSpec, source: str) -> Checkpoint:
    """A checkpoint as a member takes it; `source` names it in messages.

    Raises:
        InputError: by its configuration it was trained by other anchors, strides or pixels than can be made up for.
    """
    if spec.kind in MASK_KINDS:
        return checkpoint
    refuse_other_boxes(checkpoint.boxes, spec, source)
    refuse_caffe(checkpoint.state.keys(), checkpoint.style, source)
    return with_our_pixels(checkpoint, source)


def with_our_pixels(checkpoint: Checkpoint, source: str) -> Checkpoint:
    """The checkpoint of a detector, its first layer changed to our pixels where its configuration names others.

    Of several rules none is taken: what is left of a file's base configuration looks like the one it was trained by.

    Raises:
        InputError: they are others, and the encoder is no ResNet.
    """
    if len(checkpoint.pixels) > 1:
        return replace(checkpoint, told=(*checkpoint.told, tell_several(checkpoint.pixels)))
    theirs = next(iter(checkpoint.pixels), OUR_PIXELS)
    if theirs == OUR_PIXELS:
        return checkpoint
    if not checkpoint.state.keys() >= STEM_KEYS:
        raise InputError(
            f"{source} was trained on pixels by {theirs}, its configuration says, and is given them by {OUR_PIXELS} "
            "here: only a ResNet's first layer can be changed for that; train it on, or take another file"
        )
    state = for_our_pixels(checkpoint.state, theirs)
    return replace(
        checkpoint, state=state, pixels=frozenset({OUR_PIXELS}), told=(*checkpoint.told, tell_change(theirs))
    )


def build_loaded(spec: DetectorSpec, checkpoint: Checkpoint, source: str) -> Detector:
    """Build a detector with the weights of a checkpoint; `source` names that in messages.

    Returns:
        The detector in eval mode, float32, on the CPU.

    Raises:
        InputError: as `load_strictly` and `refuse_worthless`.
    """
    detector = build_detector(spec)
    load_strictly(detector, checkpoint.state, source)
    refuse_worthless(checkpoint.state, source)
    return detector


def load_detector(path: Path, kind: str, encoder: str) -> Detector:
    """Build the detector that a weight file belongs to, with its weights: `read_claimed`, then `build_loaded`."""
    spec, checkpoint = read_claimed(path, kind, encoder)
    return build_loaded(spec, checkpoint, str(path))
