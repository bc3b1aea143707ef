"""Weights from a file into a detector: read safely, recognised by their content, matched strictly."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from kernel.errors import InputError
from kernel.files import file_sha256
from kernel.manifest.types import WEIGHT_SUFFIXES
from kernel.models.configs import DetectorSpec
from kernel.models.detectors import Detector, build_detector
from kernel.models.encoders import ENCODER_SIGNATURES, encoder_signature

#: Keys that a checkpoint may lack or have in excess: of timm's classifier, which no detector runs.
OPTIONAL_KEY_PREFIXES = (
    "backbone.effnet.conv_head.",
    "backbone.effnet.bn2.",
    "backbone.effnet.classifier.",
)
#: Buffers that only training uses; older checkpoints lack them.
OPTIONAL_KEY_SUFFIXES = (".num_batches_tracked",)
#: What data-parallel training puts before every key.
PARALLEL_PREFIX = "module."
#: What torch.load raises for bytes that are no state dict: it does not check them, and fails wherever it gets to.
DAMAGED_FILE_ERRORS = (
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, OverflowError,
    struct.error,
)  # fmt: skip


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict of CPU tensors from a safetensors or PyTorch file.

    A dictionary under "state_dict" (mmdet's habit) is taken out, and the prefix "module." is removed from its keys.

    Raises:
        InputError: the file is missing or damaged, would run code when loaded, or holds anything but tensors.
    """
    if not path.is_file():
        raise InputError(f"no weight file {path}: check the member's `dataset` and `file` in the manifest")
    if path.suffix not in WEIGHT_SUFFIXES:
        raise InputError(f"{path}: not a weight file; allowed are {', '.join(WEIGHT_SUFFIXES)}")
    state = load_safetensors(path) if path.suffix == ".safetensors" else load_pytorch(path)
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path}: holds {type(state).__name__}, not a state dict of named tensors")
    wrong = [key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
    if wrong:
        raise InputError(f"{path}: {wrong[0]!r} is no named tensor; allowed is a plain state dict")
    bare = {key.removeprefix(PARALLEL_PREFIX): value for key, value in state.items()}
    if len(bare) < len(state):
        raise InputError(
            f"{path}: holds tensors of one name both with and without {PARALLEL_PREFIX!r}; save one of each name"
        )
    return bare


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: it is damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error


def load_pytorch(path: Path) -> Any:
    """Read what a PyTorch file holds, without running any code in it.

    Raises:
        InputError: the file is damaged, or holds more than tensors and plain containers.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors and would run code when loaded, or is damaged; it is refused; "
            f"save a plain state dict, or better safetensors ({str(error).splitlines()[0]})"
        ) from error
    except DAMAGED_FILE_ERRORS as error:
        raise InputError(f"{path}: not a readable PyTorch file ({error}); fetch it again") from error


def recognise_state_dict(shapes: Mapping[str, tuple[int, ...]], source: str) -> DetectorSpec:
    """Recognise the detector that a state dict belongs to.

    Args:
        shapes: its tensors' shapes by key, without "module.".
        source: what messages call it.

    Raises:
        InputError: it belongs to no detector of ours.
    """
    encoder = ENCODER_SIGNATURES.get(encoder_signature(shapes))
    if encoder is None:
        known = ", ".join(sorted(ENCODER_SIGNATURES.values()))
        raise InputError(f"{source}: unknown encoder; known are {known}")
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
    return DetectorSpec(
        kind=kind,
        encoder=encoder,
        num_classes=shapes[keys["classes"]][0] - 1,
        neck_channels=shapes[keys["neck"]][0],
        fc_channels=shapes[keys["fc"]][0],
        mask_channels=shapes[keys["mask"]][1],
        neck_norm="neck.lateral_convs.0.gn.weight" in shapes,
    )


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by key."""
    return {key: tuple(value.shape) for key, value in state.items()}


def recognise_checkpoint(path: Path) -> DetectorSpec:
    """Read a weight file and recognise the detector that it belongs to.

    Raises:
        InputError: as `read_state_dict` and `recognise_state_dict` do.
    """
    return recognise_state_dict(shapes_of(read_state_dict(path)), str(path))


def is_optional_key(key: str) -> bool:
    """Whether a checkpoint may lack `key`, or hold it though the detector has no use for it."""
    return key.startswith(OPTIONAL_KEY_PREFIXES) or key.endswith(OPTIONAL_KEY_SUFFIXES)


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
        "not finite": [
            key for key, value in state.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())
        ],
    }
    if any(problems.values()):
        raise InputError(
            f"{source} does not fit the detector: "
            + "; ".join(f"{sort}: {shorten_list(keys)}" for sort, keys in problems.items() if keys)
        )
    detector.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def shorten_list(names: Iterable[str], limit: int = 5) -> str:
    """The first `limit` names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def refuse_other_detector(spec: DetectorSpec, kind: str, encoder: str, path: Path) -> None:
    """Raise InputError where the detector in `path` is not the one that the manifest claims, naming both."""
    if (spec.kind, spec.encoder) != (kind, encoder):
        raise InputError(
            f"{path} holds {spec.kind} {spec.encoder}, the manifest says {kind} {encoder}: correct the member's "
            "`kind` and `encoder`, or its `file`"
        )


def load_detector(path: Path, kind: str, encoder: str, sha256: str | None = None) -> Detector:
    """Build the detector that a weight file belongs to, with its weights.

    Args:
        path: the file.
        kind, encoder: the detector that the manifest claims.
        sha256: the file's, as the manifest claims; None: not checked.

    Returns:
        The detector in eval mode, float32, on the CPU.

    Raises:
        InputError: the file was altered, belongs to another detector than claimed, or does not fit.
    """
    if sha256 is not None and path.is_file():
        found = file_sha256(path)
        if found != sha256:
            raise InputError(
                f"{path} was altered: its sha256 is {found}, the manifest says {sha256}; fetch the file again, or, if "
                "the change is meant, put the new sum into the manifest"
            )
    state = read_state_dict(path)
    spec = recognise_state_dict(shapes_of(state), str(path))
    refuse_other_detector(spec, kind, encoder, path)
    detector = build_detector(spec)
    load_strictly(detector, state, str(path))
    return detector
