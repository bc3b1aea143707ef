"""From a manifest and weight files to a loaded ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.members import Member
from kernel.errors import InputError
from kernel.log import LOG
from kernel.manifest.types import Manifest, MemberEntry
from kernel.models.checkpoints import load_detector
from kernel.models.fusion import fuse_batch_norms
from kernel.models.recognition import recognise_members
from kernel.mounts import find_dataset, find_weights, walk_paths


def mounted_weights(manifest: Manifest, root: Path) -> dict[str, Path]:
    """The members' weight files below the input root, by member name.

    A file that the manifest does not name is recognised by its content.

    Raises:
        InputError: as `find_weights` and `recognise_members` do.
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
    """Load the manifest's members and join them to an ensemble. mmdet must be importable.

    Args:
        manifest: members and settings.
        weights: their files, by member name.
        device: where they run.
        dtype: what the networks compute in.
        progress: wraps the members while they are loaded, as tqdm does.

    Raises:
        InputError: as `load_detector` and `Ensemble` do, or the device does not have the dtype.
    """
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        prepare_gpu(torch.device(device), dtype)
    members = []
    for entry in progress(manifest.members):
        path = weights[entry.name]
        detector = load_detector(path, entry.kind, entry.encoder, entry.sha256, entry.stem_stride)
        fuse_batch_norms(detector)
        members.append(Member(entry.name, entry.kind, detector, frozenset(entry.use_for), entry.weights))
        LOG.info("member %s: %s %s from %s", entry.name, entry.kind, entry.encoder, path.name)
    return Ensemble(members, manifest.ensemble, device=device, dtype=dtype, views_per_batch=3 if on_gpu else 1)


def prepare_gpu(device: torch.device, dtype: torch.dtype) -> None:
    """Let a GPU compute float32 exactly.

    Raises:
        InputError: it does not have the dtype.
    """
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):  # torch would emulate it, slowly
        raise InputError(f"{device}, {torch.cuda.get_device_name(device)}, has no bfloat16: give float16 or float32")
    torch.backends.cudnn.allow_tf32 = False  # float32 is then the same on every GPU
