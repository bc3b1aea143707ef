"""Weights from a file into a detector: read safely, recognised by content, matched strictly."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from kernel.errors import InputError
from kernel.manifest import WEIGHT_SUFFIXES
from kernel.models.detectors import Detector, DetectorSpec, build_detector
from kernel.models.encoders import ENCODER_SIGNATURES, encoder_signature
from kernel.runtime.wheels import file_sha256

#: Keys a checkpoint may lack or hold in excess: timm's classifier, which no detector runs.
OPTIONAL_KEY_PREFIXES = (
    "backbone.effnet.conv_head.",
    "backbone.effnet.bn2.",
    "backbone.effnet.classifier.",
)
#: Buffers that only training counts with; older checkpoints lack them.
OPTIONAL_KEY_SUFFIXES = (".num_batches_tracked",)
#: What data-parallel training puts before every key.
PARALLEL_PREFIX = "module."
#: What torch.load raises on bytes that are no state dict: it trusts them to be one, and fails wherever it gets to.
DAMAGED_FILE_ERRORS = (
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, OverflowError,
    struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class CheckpointInfo:
    """What a file of weights turned out to be."""

    path: Path
    spec: DetectorSpec

    @property
    def kind(self) -> str:
        return self.spec.kind

    @property
    def encoder(self) -> str:
        return self.spec.encoder

    @property
    def num_classes(self) -> int:
        return self.spec.num_classes


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict of CPU tensors, `module.` prefixes stripped.

    safetensors, or a PyTorch file read with `weights_only=True`, so that no code of the file is ever run; a
    dictionary under "state_dict" (mmdet's habit) is taken out.

    Raises InputError for a missing or damaged file, for one that wants to run code, and for anything but tensors.
    """
    if not path.is_file():
        raise InputError(f"no weight file {path}: check the member's `dataset` and `file` in the manifest")
    if path.suffix not in WEIGHT_SUFFIXES:
        raise InputError(f"{path}: not a weight file; allowed are {', '.join(WEIGHT_SUFFIXES)}")
    if path.suffix == ".safetensors":
        try:
            state = safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise InputError(
                f"{path}: holds more than tensors and would run code when loaded, or is damaged; refused. "
                f"Save a plain state dict, or better safetensors. ({str(error).splitlines()[0]})"
            ) from error
        except DAMAGED_FILE_ERRORS as error:
            raise InputError(f"{path}: not a readable PyTorch file ({error}); fetch it again") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path}: holds {type(state).__name__}, not a state dict of named tensors")
    wrong = [key for key, value in state.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
    if wrong:
        raise InputError(f"{path}: {wrong[0]!r} is no named tensor; a weight file is a plain state dict")
    bare = {key.removeprefix(PARALLEL_PREFIX): value for key, value in state.items()}
    if len(bare) < len(state):
        raise InputError(f"{path}: holds tensors of one name both with and without {PARALLEL_PREFIX!r}: which count?")
    return bare


def recognise_state_dict(shapes: Mapping[str, tuple[int, ...]], source: str) -> DetectorSpec:
    """Tell from the keys and shapes of a bare state dict what detector it belongs to.

    Raises InputError, naming `source`, where it belongs to none that we know.
    """
    encoder = ENCODER_SIGNATURES.get(encoder_signature(shapes))
    if encoder is None:
        known = ", ".join(sorted(ENCODER_SIGNATURES.values()))
        raise InputError(f"{source}: its encoder is none of those known ({known})")
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
        raise InputError(f"{source}: no detector of ours; it lacks {', '.join(missing)}")
    dimensions = {"classes": 2, "neck": 4, "fc": 2, "mask": 4}
    for part, count in dimensions.items():
        shape = shapes[keys[part]]
        if len(shape) != count or 0 in shape:
            raise InputError(f"{source}: no detector of ours; {keys[part]} has the shape {tuple(shape)}")
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


def recognise_checkpoint(path: Path) -> CheckpointInfo:
    """Read a weight file and say what detector it belongs to. Raises InputError as `read_state_dict` does."""
    return CheckpointInfo(path, recognise_state_dict(shapes_of(read_state_dict(path)), str(path)))


def is_optional_key(key: str) -> bool:
    """Whether a checkpoint may lack `key`, or hold it without use."""
    return key.startswith(OPTIONAL_KEY_PREFIXES) or key.endswith(OPTIONAL_KEY_SUFFIXES)


def load_strictly(detector: Detector, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy `state` into `detector`. Keys and shapes must match in both directions, but for the optional ones.

    Raises InputError that lists up to five of each sort of mismatch.
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
    """Raise InputError where what `path` holds is not the claimed `kind` and `encoder`, naming both."""
    if (spec.kind, spec.encoder) != (kind, encoder):
        raise InputError(
            f"{path} holds {spec.kind} {spec.encoder}, the manifest says {kind} {encoder}: correct the member's "
            "`kind` and `encoder`, or its `file`"
        )


def load_detector(path: Path, kind: str, encoder: str, sha256: str | None = None) -> Detector:
    """Build the detector that `path` holds, load it, and check it against what the manifest claims.

    Returns it in eval mode, float32, on the CPU. `sha256` None: not checked.

    Raises InputError where the file is altered, is another kind or encoder than claimed (naming both), or does
    not fit.
    """
    if sha256 is not None and path.is_file():
        found = file_sha256(path)
        if found != sha256:
            raise InputError(
                f"{path} was altered: its sha256 is {found}, the manifest says {sha256}. "
                "Fetch the file again, or, if the change is meant, put the new sum into the manifest."
            )
    state = read_state_dict(path)
    spec = recognise_state_dict(shapes_of(state), str(path))
    refuse_other_detector(spec, kind, encoder, path)
    detector = build_detector(spec)
    load_strictly(detector, state, str(path))
    return detector
