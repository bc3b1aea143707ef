"""From a manifest and weight files to a loaded ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.members import Member, averaging_signature, check_signatures
from kernel.errors import InputError
from kernel.gpus import own_dtype, require_kernels
from kernel.log import LOG
from kernel.manifest.types import MASK_KINDS, Manifest, MemberEntry
from kernel.models.checkpoints import build_loaded, read_claimed
from kernel.models.configs import DetectorSpec
from kernel.models.configurations import OUR_PIXELS
from kernel.models.detectors import Detector
from kernel.models.fusion import fuse_batch_norms
from kernel.models.recognition import recognise_members
from kernel.mounts import dataset_folders, find_weights, walk_paths
from kernel.settings import CELL_TYPES

#: The classes of members that were pretrained on LIVECell; its first three stand for the cell types afterwards.
LIVECELL_CLASS_COUNT = DetectorSpec.num_classes

#: What may have to be assumed of a member.
STEM_STRIDE = "stem_stride"
PIXELS = "pixels"


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
    folders = [path for dataset in manifest.all_weight_datasets for path in dataset_folders(root, dataset).trusted]
    files = [path for folder in folders for path in walk_paths(folder)]
    return named | recognise_members(unnamed, files, named.values())


def load_ensemble(
    manifest: Manifest,
    weights: dict[str, Path],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Ensemble:
    """Load the manifest's members and join them to an ensemble. mmdet must be importable.

    Args:
        manifest: members and settings.
        weights: their files, by member name.
        device: where they run.
        dtype: what the networks compute in.

    Raises:
        InputError: as `load_member` and `Ensemble` do, or torch cannot compute on the device.
    """
    on_gpu = torch.device(device).type == "cuda"
    dtype = (prepare_gpu if on_gpu else own_dtype)(torch.device(device), dtype)
    members = []
    for entry in manifest.members:
        path = weights[entry.name]
        detector, _ = load_member(entry, path)
        fuse_batch_norms(detector)
        members.append(Member(entry.name, entry.kind, detector, frozenset(entry.use_for), entry.weights))
    return Ensemble(members, manifest.ensemble, device=device, dtype=dtype, views_per_batch=3 if on_gpu else 1)


def load_member(entry: MemberEntry, path: Path) -> tuple[Detector, frozenset[str]]:
    """Load a member from its file, and log what it is, and what of the file is not used.

    Returns:
        The detector, and what had to be assumed of it, as neither manifest nor file says it: `STEM_STRIDE`, `PIXELS`.

    Raises:
        InputError: as `read_claimed` and `build_loaded` do.
    """
    spec, checkpoint = read_claimed(path, entry.kind, entry.encoder, entry.sha256, entry.stem_stride)
    detector = build_loaded(spec, checkpoint, str(path))
    LOG.info("member %s: %s %s from %s", entry.name, entry.kind, entry.encoder, path.name)
    if spec.stem_stride != DetectorSpec.stem_stride:
        LOG.info("member %s: its stem has stride %d", entry.name, spec.stem_stride)
    for line in checkpoint.told:
        LOG.info("member %s: %s: %s", entry.name, path.name, line)
    assumed = {
        STEM_STRIDE: entry.stem_stride is None and checkpoint.stem_stride is None,
        PIXELS: len(checkpoint.pixels) > 1,
    }
    has_stem = entry.kind not in MASK_KINDS
    return detector, frozenset(what for what, is_assumed in assumed.items() if has_stem and is_assumed)


def check_members(manifest: Manifest, weights: Mapping[str, Path]) -> list[str]:
    """Load each member as the script will, one at a time, and look whether they can be averaged.

    Args:
        manifest: members and settings.
        weights: their files, by member name.

    Returns:
        What the files leave open, a sentence each.

    Raises:
        InputError: what `load_ensemble` would raise, of all members at once.
    """
    problems: list[str] = []
    signatures: dict[str, Mapping[str, Any]] = {}
    assumed: dict[str, list[str]] = {STEM_STRIDE: [], PIXELS: []}
    told = list[str]()
    for entry in manifest.members:
        try:
            detector, unknown = load_member(entry, weights[entry.name])
        except InputError as error:
            problems.append(f"member {entry.name}: {error}")
            continue
        signatures[entry.name] = averaging_signature(detector)
        for what in unknown:
            assumed[what].append(entry.name)
        classes = signatures[entry.name].get("number of classes", LIVECELL_CLASS_COUNT)
        if classes not in (len(CELL_TYPES), LIVECELL_CLASS_COUNT):
            told.append(
                f"member {entry.name} knows {classes} classes, neither the {len(CELL_TYPES)} cell types nor LIVECell's "
                f"{LIVECELL_CLASS_COUNT}: its first {len(CELL_TYPES)} are taken as {', '.join(CELL_TYPES)}"
            )
    if problems:
        raise InputError("\n".join(problems))
    check_signatures(signatures, manifest.ensemble)
    if strides := assumed[STEM_STRIDE]:
        told.append(
            f"the files of {len(strides)} member(s) do not say the stride of the first convolution, which is taken as "
            f"{DetectorSpec.stem_stride}, as trained here; of a plain mmdet detector it is 2: state `stem_stride` for "
            + ", ".join(strides)
        )
    if pixels := assumed[PIXELS]:
        told.append(
            f"the files of {len(pixels)} member(s) name several rules of pixels, and which one they were trained by is "
            f"not known; ours is taken, {OUR_PIXELS}: leave only that one in the configurations of " + ", ".join(pixels)
        )
    return told


def prepare_gpu(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Let a GPU compute float32 exactly; returns the dtype for what is asked for as `dtype`, as `own_dtype` does.

    Raises:
        InputError: this build of torch cannot compute on it.
    """
    require_kernels(device)
    torch.backends.cudnn.allow_tf32 = False  # float32 is then the same on every GPU
    return own_dtype(device, dtype)
