"""Stored soft predictions: an ensemble's cells of an image, before any threshold of the post-processing.

One file per image, `<image id>.npz`, a megabyte or so. With them the post-processing's thresholds are tuned, and scores
computed, without weights and without predicting again.

Each file holds its *fingerprint*: what it was made of. A file with another fingerprint than the one wanted is refused
or made anew. What can change the last bits alone is not part of it: the device, its number of threads, how many views
go through a network at once, the version of torch.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernel.data.annotated import AnnotatedImage
from kernel.data.zip_files import read_entry
from kernel.ensemble.ensemble import Prediction
from kernel.errors import InputError
from kernel.files import file_sha256, whole_file
from kernel.manifest.types import Manifest
from kernel.masks.instances import Instances
from kernel.segment import instances_of_prediction

#: Part of every fingerprint: to be raised when the files, or what the ensemble makes of an image, change.
FORMAT = 2
#: The thresholds that only the post-processing knows. All others decide what is predicted.
POSTPROCESSING_THRESHOLDS = ("mask_threshold", "mask_nms_threshold", "confidence", "min_size", "corrupt")

#: What zipfile, zlib and NumPy raise for damaged files and for files of something else.
_DAMAGE = (OSError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, KeyError, TypeError,
           RuntimeError, OverflowError)  # fmt: skip

#: What a prediction was made of, as JSON has it: objects, lists, texts, numbers. See `ensemble_fingerprint`.
Fingerprint = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class SoftPrediction:
    """An ensemble's prediction of one image, its soft masks pasted into the image: all that scores and tuning need.

    `Prediction`, from the ensemble, holds the masks as the network gives them, 28 x 28 in each box.
    """

    instances: Instances
    cell_type: str  # by the proposals' counts, or by the first pass: whose members and thresholds were used
    level_counts: tuple[int, ...]  # confident positions per FPN level
    seconds: Mapping[str, float]  # per stage
    is_stored: bool = False  # read from a file: the seconds are of another run, maybe on another machine


def soft_prediction(prediction: Prediction) -> SoftPrediction:
    """The prediction with its masks pasted into the image, as the submission has them."""
    return SoftPrediction(
        instances_of_prediction(prediction), prediction.cell_type, prediction.level_counts, dict(prediction.seconds)
    )


def settings_fingerprint(manifest: Manifest) -> dict[str, Any]:
    """The part of a fingerprint that the manifest alone decides: members, their uses, their shares, settings."""
    settings = asdict(manifest.ensemble)
    for thresholds in settings["thresholds"].values():
        for name in POSTPROCESSING_THRESHOLDS:
            del thresholds[name]
    return {
        "members": [member.name for member in manifest.members],
        "detectors": {
            member.name: {"kind": member.kind, "encoder": member.encoder, "stem_stride": member.stem_stride}
            for member in manifest.members
        },
        "use_for": {member.name: sorted(member.use_for) for member in manifest.members},
        "averaging": {member.name: asdict(member.weights) for member in manifest.members},
        "settings": settings,
    }


def ensemble_fingerprint(manifest: Manifest, dtype: str) -> dict[str, Any]:
    """All of a prediction's fingerprint but the image.

    Args:
        manifest: with every member's sha256.
        dtype: of the networks' arithmetic, as "float32".
    """
    return {
        "format": FORMAT,
        **settings_fingerprint(manifest),
        "weights": {member.name: member.sha256 for member in manifest.members},
        "dtype": dtype,
    }


def image_fingerprint(path: Path) -> dict[str, Any]:
    """The part of a fingerprint that is the image's: the file's sha256."""
    return {"image": file_sha256(path)}


def prediction_path(folder: Path, image_id: str) -> Path:
    """Where the prediction of an image is stored."""
    return folder / f"{image_id}.npz"


def store_prediction(
    path: Path,
    prediction: SoftPrediction,
    fingerprint: Fingerprint,
    seen_by: Sequence[str] = (),
    untold: Sequence[str] = (),
) -> None:
    """Write a prediction, whole or not at all.

    Args:
        path: the file.
        prediction: to keep.
        fingerprint: what it was made of.
        seen_by: the members that have learned from the image.
        untold: the members of which that is not known.

    Raises:
        InputError: the file cannot be written.
    """
    instances = prediction.instances
    metadata = {
        "fingerprint": dict(fingerprint),
        "image_shape": instances.image_shape,
        "cell_type": prediction.cell_type,
        "level_counts": prediction.level_counts,
        "seconds": dict(prediction.seconds),
        "seen_by": list(seen_by),
        "untold": list(untold),
    }
    empty = np.zeros(0, np.uint8)
    try:
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(
                stream,
                told=np.frombuffer(json.dumps(metadata).encode(), np.uint8),  # metadata
                # Crops differ in shape: their pixels one after the other, row by row.
                pixels=np.concatenate([empty, *(crop.ravel() for crop in instances.crops)]),
                crop_shapes=np.array([crop.shape for crop in instances.crops], np.int64).reshape(-1, 2),
                offsets_yx=instances.offsets_yx,
                boxes_xyxy=instances.boxes_xyxy,
                scores=instances.scores,
                labels=instances.labels,
            )
    except OSError as error:
        raise InputError(f"cannot write the prediction {path}: {error.strerror}; choose another folder") from error


def load_prediction(path: Path) -> SoftPrediction:
    """Read a stored prediction: the very instances that were stored, bit for bit.

    Raises:
        InputError: no file, or one that is damaged or something else.
    """
    metadata, arrays = _read_file(path)
    try:
        shapes = arrays["crop_shapes"]
        ends = np.cumsum(shapes.prod(axis=1))
        if shapes.min(initial=0) < 0 or ends[-1:].sum() != len(arrays["pixels"]):
            raise ValueError("the crops' shapes are not those of the pixels")
        crops = np.split(arrays["pixels"], ends)[: len(shapes)]
        return SoftPrediction(
            Instances(
                tuple(crop.reshape(shape) for crop, shape in zip(crops, shapes.tolist(), strict=True)),
                arrays["offsets_yx"],
                arrays["boxes_xyxy"],
                arrays["scores"],
                arrays["labels"],
                tuple(metadata["image_shape"]),
            ),
            metadata["cell_type"],
            tuple(metadata["level_counts"]),
            metadata["seconds"],
            is_stored=True,
        )
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def load_fingerprint(path: Path) -> dict[str, Any]:
    """What a stored prediction was made of.

    Raises:
        InputError: as `load_prediction`.
    """
    metadata, _ = _read_file(path, arrays=False)
    try:
        return dict(metadata["fingerprint"])
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def load_seen(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of a stored prediction, the members that have learned from its image, and those of which that is not known.

    Raises:
        InputError: as `load_prediction`.
    """
    metadata, _ = _read_file(path, arrays=False)
    try:
        if "seen_by" not in metadata:  # stored by an earlier version
            return (), tuple(metadata["fingerprint"]["weights"])
        return tuple(metadata["seen_by"]), tuple(metadata["untold"])
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _read_file(path: Path, arrays: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A file's metadata, from JSON, and its arrays. Each entry is read as a whole, so that its checksum is checked."""
    if not path.is_file():
        raise InputError(f"no stored prediction {path}: `python -m kernel validate --predictions FOLDER` stores them")
    try:
        with zipfile.ZipFile(path) as archive:
            names = ("told", "pixels", "crop_shapes", "offsets_yx", "boxes_xyxy", "scores", "labels")
            read = {
                name: np.lib.format.read_array(io.BytesIO(read_entry(archive, f"{name}.npy")), allow_pickle=False)
                for name in names[: None if arrays else 1]
            }
        metadata = json.loads(read.pop("told").tobytes())
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if not isinstance(metadata, dict):
        raise _damaged(path, TypeError("its metadata is no object"))
    return metadata, read


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is no stored prediction, or a damaged one ({type(error).__name__}: {error}): delete it, and "
        "`python -m kernel validate --predictions` stores it anew"
    )


def fingerprint_differences(stored: Fingerprint, wanted: Fingerprint) -> list[str]:
    """In words, where `stored` differs from `wanted`, in the parts that `wanted` names.

    Returns:
        A text for each difference, as "settings.thresholds.cort.rpn_nms_pre: stored 1000, wanted 2000".
    """
    # Once through JSON: a tuple is a list there.
    have, want = (_flatten(json.loads(json.dumps(dict(side)))) for side in (stored, wanted))
    parts = {path.split(".")[0] for path in want}
    paths = dict.fromkeys([*want, *(path for path in have if path.split(".")[0] in parts)])
    return [
        f"{path}: stored {_shorten(have, path)}, wanted {_shorten(want, path)}"
        for path in paths
        if path not in have or path not in want or have[path] != want[path]
    ]


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {
        inner: leaf
        for key, below in value.items()
        for inner, leaf in _flatten(below, f"{path}.{key}" if path else key).items()
    }


def _shorten(values: Mapping[str, Any], path: str) -> str:
    if path not in values:
        return "nothing"
    text = json.dumps(values[path])
    return f'"{text[1:9]}..."' if len(text) == 66 else text  # a sha256


def check_distinct(images: Sequence[AnnotatedImage]) -> None:
    """Refuse images that would be stored under one name.

    Raises:
        InputError: two images have the same name.
    """
    twice = [image_id for image_id, count in Counter(entry.image_id for entry in images).items() if count > 1]
    if twice:
        paths = ", ".join(str(entry.path) for entry in images if entry.image_id == twice[0])
        raise InputError(f"predictions are stored by the image's name, and {twice[0]!r} is several images: {paths}")


def read_predictions(
    folder: Path, images: Sequence[AnnotatedImage], manifest: Manifest | None = None
) -> Iterator[tuple[AnnotatedImage, SoftPrediction]]:
    """The images with their stored predictions, in the images' order, one in memory at a time. No weights are needed.

    Three things are checked at once, before the first prediction is read: each image has a prediction; the prediction
    is of this very file; all are made with the same settings by members of the same names. Their weights may differ,
    as out of fold they do, unless the manifest states a member's sha256: what suits others is not for that one.

    Args:
        folder: written by `validate --predictions`.
        images: those to read; others may be stored as well.
        manifest: whose settings and weights the predictions must be of.

    Raises:
        InputError: images without a prediction, or a prediction with another fingerprint: the message names the file
            and what differs.
    """
    check_distinct(images)
    missing = [entry.image_id for entry in images if not prediction_path(folder, entry.image_id).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(images)} images have no stored prediction in {folder}, {missing[0]!r} first: "
            f"`python -m kernel validate --predictions {folder}` stores them"
        )
    common = {"format": FORMAT, **(settings_fingerprint(manifest) if manifest else {})}
    sums = {member.name: member.sha256 for member in (manifest.members if manifest else ()) if member.sha256}
    for entry in images:
        path = prediction_path(folder, entry.image_id)
        stored = load_fingerprint(path)
        weights = {**stored.get("weights", {}), **sums}
        wanted = {**common, "weights": weights, **image_fingerprint(entry.path)}
        differences = fingerprint_differences(stored, wanted)
        if differences:
            raise InputError(
                f"{path} was made of something else, or not as the files before it ({'; '.join(differences[:5])}): "
                f"`python -m kernel validate --predictions {folder}` stores it anew, or name the folder or the "
                "manifest that is meant"
            )
        common = {key: value for key, value in stored.items() if key not in ("image", "weights")} | common
    return ((entry, load_prediction(prediction_path(folder, entry.image_id))) for entry in images)
