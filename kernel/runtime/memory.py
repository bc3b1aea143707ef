"""Memory plan: how many views go through a network at once, and how many features are kept, within what is free.

It is made before the first image. What an encoder and a neck compute grows with the area of the padded image, so one
pass over a small image gives each member's bytes per pixel, and the largest image's size gives the rest. Where an image
does not fit after all, `kernel.ensemble.fallbacks` retries it with less. Images of more pixels than memory allows are
predicted in tiles (`kernel.ensemble.tiles`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.features import features_bytes
from kernel.ensemble.members import Member
from kernel.ensemble.networks import Tiling
from kernel.ensemble.tiles import LEAST_TILE_SIDE, needs_tiles
from kernel.ensemble.views import PAD_MULTIPLE
from kernel.log import LOG
from kernel.models.crop_unet import CropUNet
from kernel.runtime.limits import unused_memory
from kernel.settings import CELL_TYPES, CLS_USE

#: The side of the small image in pixels: every FPN level has some positions, and the pass takes no time.
PROBE_SIDE = 2 * PAD_MULTIPLE
#: The bytes of a layer's input and output are doubled: a residual block keeps its input, convolutions need workspace.
WORKING_FACTOR = 2
#: What the heads take at 256 channels, whatever the image: they work on chunks of RoIs (256 of 0.8 MB in the mask head,
#: 2048 of 50 KB in the box head), of which a few tensors are alive at a time.
HEADS_BYTES = 1 << 30
HEADS_CHANNELS = 256
#: The share of the free memory that is used; on the CPU the system and the post-processing need some too.
USABLE_SHARE = {"cuda": 0.9, "cpu": 0.75}
#: Images of more pixels are predicted in tiles whatever is free: the NMS of a GPU takes a bit for each pair of boxes,
#: whose number grows with the area.
WHOLE_PIXELS = 2048 * 2048
#: Images of no more pixels are predicted whole whatever is free, as the competition's are: the plan is an estimate, and
#: the fallbacks are there where they do not fit.
LEAST_WHOLE_PIXELS = 1024 * 1024
#: Sides of tiles, so that results do not depend on every byte that is free.
TILE_SIDES = (LEAST_TILE_SIDE, 640, 768, 1024, 1280, 1536, 2048)
#: What a tile may take on the CPU, heads included: image, masks and libraries have room beside it within 4 GB.
CPU_TILE_BYTES = 2 << 30
#: The part of a tile's memory that is for computing a view; the features kept between the stages have the rest.
TILE_WORKING_PART = 0.6
#: Assumed to be free where the system does not say.
UNKNOWN_FREE_BYTES = 4 << 30


@dataclass(frozen=True)
class Footprint:
    """The memory of one view in one member, in bytes per pixel of the padded image."""

    features: float  # those that later stages need
    working: float  # the peak while they are computed, features included


@dataclass(frozen=True)
class MemoryPlan:
    """How an ensemble is run within the memory that is free."""

    views_per_batch: int
    feature_budget_bytes: int  # features kept between the stages of one image
    wanted_bytes: int  # all features of the largest image, for the cell type with the most
    view_bytes: int  # the features of one view, in the member with the most
    working_bytes: int  # the peak while the features of one view are computed
    free_bytes: int
    tiling: Tiling
    in_tiles: bool  # whether the largest image is predicted in tiles; the figures are those of the largest that is not

    def describe(self) -> str:
        """The plan for the log."""
        largest = "the largest image predicted whole" if self.in_tiles else "the largest image"
        tiles = f"; larger images in tiles of up to {self.tiling.side} pixels" if self.in_tiles else ""
        kept = "all" if self.feature_budget_bytes >= self.wanted_bytes else gigabytes(self.feature_budget_bytes)
        return (
            f"{gigabytes(self.free_bytes)} free; {largest} takes up to {gigabytes(self.view_bytes)} of "
            f"features per member and view, {gigabytes(self.wanted_bytes)} in all, and "
            f"{gigabytes(self.working_bytes)} to compute a view; {kept} of the features stay between the stages, "
            f"{self.views_per_batch} flipped view(s) per batch{tiles}"
        )


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:.2f} GB"


def plan_memory(ensemble: Ensemble, largest_shape: tuple[int, int], free_bytes: int) -> MemoryPlan:
    """Plan the memory of the ensemble's device.

    Keeping features saves whole passes through the encoders, larger batches save little, so features come first. A
    batch gets at most the ensemble's own `views_per_batch`.

    Args:
        ensemble: loaded, on its device.
        largest_shape: (H, W) in pixels, which no image exceeds.
        free_bytes: of the device.
    """
    height, width = (-(-side // PAD_MULTIPLE) * PAD_MULTIPLE for side in largest_shape)
    footprints = {member.name: measure_footprint(ensemble, member) for member in ensemble.members}
    room = room_for_features(ensemble, ensemble.device.type, free_bytes)
    per_pixel = max(footprint.working for footprint in footprints.values())
    tiling = plan_tiling(ensemble, free_bytes, per_pixel)
    in_tiles = needs_tiles(largest_shape, tiling)
    pixels = tiling.whole_pixels if in_tiles else height * width
    per_view = {name: round(footprint.features * pixels) for name, footprint in footprints.items()}
    working = round(per_pixel * pixels)
    views = sum(map(len, ensemble.view_batches(ensemble.settings.use_tta or ensemble.settings.use_tta_masks)))
    wanted = max(views * sum(per_view[name] for name in members_run(ensemble, cell_type)) for cell_type in CELL_TYPES)
    batch = min(ensemble.views_per_batch, views_that_roi_align_takes(ensemble, pixels))
    while batch > 1 and wanted + batch * working > room:
        batch -= 1
    kept = min(wanted, max(0, room - batch * working))
    return MemoryPlan(batch, kept, wanted, max(per_view.values()), working, free_bytes, tiling, in_tiles)


def views_that_roi_align_takes(ensemble: Ensemble, pixels: int) -> int:
    """How many views of so many pixels may go through a network at once: torchvision's RoIAlign numbers the elements of
    a batch of feature maps by 32 bits on a GPU. One at least."""
    elements = max(
        member.detector.neck.out_channels * pixels // member.detector.rpn_head.prior_generator.strides[0][0] ** 2
        for member in ensemble.members
        if not isinstance(member.detector, CropUNet)
    )
    return max(1, (2**31 - 1) // max(elements, 1))


def room_for_features(ensemble: Ensemble, device_type: str, free_bytes: int) -> int:
    """Of the free memory of a device, what encoders and necks may take."""
    return round(free_bytes * USABLE_SHARE[device_type]) - heads_bytes(ensemble)


def heads_bytes(ensemble: Ensemble) -> int:
    """What the heads of the widest member take; a mask network takes less than any."""
    necks = [member.detector.neck for member in ensemble.members if not isinstance(member.detector, CropUNet)]
    return HEADS_BYTES * max(neck.out_channels for neck in necks) // HEADS_CHANNELS


def plan_tiling(ensemble: Ensemble, free_bytes: int, bytes_per_pixel: float | None = None) -> Tiling:
    """Which images are predicted in tiles, and how large these are.

    On the CPU tiles are small, so that the largest image is done within a few GB; on a GPU as large as fits. A GPU's
    tiling has that of the CPU with it: where a GPU's memory does not suffice, the host's may be less still.

    Args:
        ensemble: loaded, on its device.
        free_bytes: of the device.
        bytes_per_pixel: the members' largest peak while a view is computed, where it has been measured.
    """
    if bytes_per_pixel is None:
        bytes_per_pixel = max(measure_footprint(ensemble, member).working for member in ensemble.members)
    tiling = device_tiling(ensemble, ensemble.device.type, free_bytes, bytes_per_pixel)
    if ensemble.device.type == "cpu":
        return tiling
    if ensemble.dtype == torch.float16:  # the CPU computes in float32 instead
        bytes_per_pixel *= 2
    return replace(tiling, on_cpu=device_tiling(ensemble, "cpu", free_memory(torch.device("cpu")), bytes_per_pixel))


def device_tiling(ensemble: Ensemble, device_type: str, free_bytes: int, bytes_per_pixel: float) -> Tiling:
    """`plan_tiling` for a device of a type, whatever the ensemble's."""
    room = max(0, room_for_features(ensemble, device_type, free_bytes))
    tile_room = room
    if device_type == "cpu":
        tile_room = min(room, CPU_TILE_BYTES - heads_bytes(ensemble))
    fitting = [side for side in TILE_SIDES if bytes_per_pixel * side * side <= TILE_WORKING_PART * tile_room]
    side = max(fitting, default=LEAST_TILE_SIDE)
    kept = max(0, tile_room - round(bytes_per_pixel * side * side))
    whole_pixels = min(WHOLE_PIXELS, max(LEAST_WHOLE_PIXELS, int(room / bytes_per_pixel)))
    return Tiling(whole_pixels, side, kept)


def apply_plan(ensemble: Ensemble, plan: MemoryPlan) -> None:
    """Run the ensemble by `plan` from now on, and log it."""
    ensemble.views_per_batch = plan.views_per_batch
    ensemble.feature_budget_bytes = plan.feature_budget_bytes
    ensemble.tiling = plan.tiling
    LOG.info("memory of %s: %s", ensemble.device, plan.describe())


def members_run(ensemble: Ensemble, cell_type: str) -> list[str]:
    """The names of the members that run on an image of a cell type, those of the first pass included."""
    first = ensemble.members_for(CLS_USE) if ensemble.needs_first_pass else ()
    return [member.name for member in ensemble.members if cell_type in member.use_for or member in first]


@torch.inference_mode()
def measure_footprint(ensemble: Ensemble, member: Member) -> Footprint:
    """Measure a member: pass a small image through it, and count the bytes of its features and its layers' tensors.

    Numbers that overflow take as many bytes as others. They end no run: an image where they do is done in float32.
    """
    probe = torch.zeros((1, 3, PROBE_SIDE, PROBE_SIDE), device=ensemble.device)
    largest = 0

    def note(module: nn.Module, inputs: Any, outputs: Any) -> None:
        nonlocal largest
        largest = max(largest, tensor_bytes(inputs) + tensor_bytes(outputs))

    with contextlib.ExitStack() as stack:
        for module in leaf_modules(member.detector):
            stack.callback(module.register_forward_hook(note).remove)
        kept = features_bytes(ensemble.unchecked_features(member, probe))
    return Footprint(kept / PROBE_SIDE**2, (kept + WORKING_FACTOR * largest) / PROBE_SIDE**2)


def leaf_modules(detector: nn.Module) -> Iterator[nn.Module]:
    """The layers: modules without children."""
    return (module for module in detector.modules() if next(module.children(), None) is None)


def tensor_bytes(value: Any) -> int:
    """The bytes of all tensors in a module's input or output."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (tuple, list)):
        return sum(map(tensor_bytes, value))
    return 0


def free_memory(device: torch.device) -> int:
    """The bytes that this process may still take: of the GPU, or of the machine or the container that it runs in."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return host_memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup"))


def host_memory(meminfo: Path, cgroup: Path) -> int:
    """The bytes that the machine has available, or the control groups of this process where that is less.

    Args:
        meminfo, cgroup: Linux's /proc/meminfo and /sys/fs/cgroup. Where there is neither, half of the machine's memory
            counts as free.
    """
    limits = []
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        if "MemAvailable" in lines:
            limits.append(int(lines["MemAvailable"].split()[0]) << 10)
    unused = unused_memory(cgroup)
    if unused is not None:
        limits.append(unused)
    if limits:
        return max(0, min(limits))
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # a system without these figures
        return UNKNOWN_FREE_BYTES


def peak_host_memory() -> float | None:
    """The most of the machine's memory that this process has taken so far, in GB; None on Windows (no rusage)."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KB, macOS in bytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)
