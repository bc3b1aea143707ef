"""From a manifest to a loaded ensemble, and from an image to its masks: what kernel and commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kernel.ensemble.ensemble import Ensemble, Member, Prediction
from kernel.errors import InputError
from kernel.inputs import find_dataset, find_weights, walk_paths
from kernel.manifest import Manifest, MemberEntry
from kernel.models.checkpoints import load_detector
from kernel.models.fusion import fuse_batch_norms
from kernel.models.recognition import recognise_members
from kernel.postprocess.clean import ImageMasks, postprocess_instances
from kernel.postprocess.instances import Instances, paste_instances
from kernel.runtime.log import LOG
from kernel.settings import Thresholds


@dataclass(frozen=True)
class Segmentation:
    """One image's result: the masks of the submission, and the prediction they were made of."""

    prediction: Prediction
    instances: Instances  # soft masks, before the post-processing
    masks: ImageMasks


def finish_prediction(prediction: Prediction, thresholds: Mapping[str, Thresholds]) -> Segmentation:
    """What is left to do when the networks are done: the masks of the submission rows. Nothing is on a GPU any more."""
    instances = instances_of_prediction(prediction)
    return Segmentation(prediction, instances, postprocess_instances(instances, thresholds))


def instances_of_prediction(prediction: Prediction) -> Instances:
    """Paste the predicted masks into the image, each as a crop."""
    return paste_instances(
        prediction.mask_probs.numpy(),
        prediction.boxes_xyxy.numpy(),
        prediction.scores.numpy(),
        prediction.labels.numpy(),
        prediction.image_shape,
    )


def mounted_weights(manifest: Manifest, root: Path) -> dict[str, Path]:
    """Where each member's weights lie under the input root, by member name.

    A member whose file the manifest does not name is looked for by content. Raises InputError as `find_weights` and
    `recognise_members` do.
    """
    named = {
        member.name: find_weights(root, manifest.datasets_for(member), member.file, member.sha256)
        for member in manifest.members
        if member.file is not None
    }
    unnamed = [member for member in manifest.members if member.file is None]
    if not unnamed:
        return named
    folders = [find_dataset(root, dataset) for dataset in manifest.all_weight_datasets]
    files = [path for folder in folders for path in walk_paths(folder)]
    return named | recognise_members(unnamed, files, named.values())


def load_ensemble(
    manifest: Manifest,
    weights: dict[str, Path],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[Sequence[MemberEntry]], Sequence[MemberEntry]] = lambda members: members,
) -> Ensemble:
    """Load the manifest's members from their files and join them. mmdet must be importable.

    Raises InputError as `load_detector` does, and for a dtype that the device has not.
    """
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        prepare_gpu(torch.device(device), dtype)
    members = []
    for entry in progress(manifest.members):
        path = weights[entry.name]
        detector = load_detector(path, entry.kind, entry.encoder, entry.sha256)
        fuse_batch_norms(detector)
        members.append(Member(entry.name, entry.kind, detector, frozenset(entry.use_for), entry.weights))
        LOG.info("member %s: %s %s from %s", entry.name, entry.kind, entry.encoder, path.name)
    return Ensemble(members, manifest.ensemble, device=device, dtype=dtype, views_per_batch=3 if on_gpu else 1)


def prepare_gpu(device: torch.device, dtype: torch.dtype) -> None:
    """See that a GPU computes in a dtype as it is meant. Raises InputError where it cannot."""
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):  # torch would emulate it, slowly
        raise InputError(f"{device}, {torch.cuda.get_device_name(device)}, has no bfloat16: give float16 or float32")
    torch.backends.cudnn.allow_tf32 = False  # float32 is then the same on every GPU
