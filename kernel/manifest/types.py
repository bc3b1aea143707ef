"""The manifest: which members an ensemble has, where their weights are, and what the kernel is called.

`kernel.manifest.reader` makes these dataclasses of its JSON; `bundle/manifest.schema.json` documents the same format.
Standard library only: the builder reads manifests on a bare Python.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from kernel.errors import InputError
from kernel.settings import EQUAL_WEIGHTS, MASKS_ALONE, EnsembleSettings, StageWeights

#: Detector kinds.
KIND_NAMES = ("maskrcnn", "cascade", "htc")
#: What makes masks alone, of the boxes that detectors find; and its only encoder, which is trained from nothing.
MASK_KINDS = ("unet",)
PLAIN_ENCODER = "plain"
#: What a member may be.
MEMBER_KINDS = (*KIND_NAMES, *MASK_KINDS)
ENCODER_NAMES = (
    "resnet50",
    "resnet101",
    "resnext50",
    "resnext101",  # 32x4d
    "resnext101_64x4",
    "resnext101_32x8",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_lite0",  # small: for the members that come with the program
    "resnet18_narrow",  # small: for tests
)
#: Before the name of any network of timm, which then is the encoder: "timm:convnext_tiny".
TIMM_PREFIX = "timm:"
#: Kaggle's accelerators that this kernel can use; its P100 is retired.
ACCELERATOR_NAMES = ("NvidiaTeslaT4",)
#: Which image Kaggle takes for later versions of a kernel.
DOCKER_PINNING_NAMES = ("original", "latest")
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
#: Under which our weight files tell of themselves in their metadata; of several keys safetensors would write the order
#: by chance.
METADATA_KEY = "in_network_ensemble"
#: That of whose images the pixels, the time limit and the cell types are known.
USUAL_COMPETITION = "sartorius-cell-instance-segmentation"
#: In a member's `file`: the number of the fold that its training left out. Only out-of-fold validation allows it.
FOLD_PLACEHOLDER = "{fold}"


def usual_weights(kind: str) -> StageWeights:
    """The weights that a member of a detector kind has where nobody states any."""
    return MASKS_ALONE if kind in MASK_KINDS else EQUAL_WEIGHTS


@dataclass(frozen=True)
class KernelIdentity:
    """What Kaggle calls the kernel, and how it runs it."""

    id: str  # "owner/slug"
    title: str  # its slug is the id's slug
    competition: str
    accelerator: str = "NvidiaTeslaT4"  # two T4
    private: bool = True
    docker_image: str | None = None  # the image that it runs in; None: Kaggle's choice
    docker_pinning: str = "original"  # of later versions: the first one's image, or the latest


@dataclass(frozen=True)
class MemberEntry:
    """One detector of the ensemble."""

    name: str
    kind: str  # the detector's, one of MEMBER_KINDS
    encoder: str  # one of ENCODER_NAMES, a name of timm's after TIMM_PREFIX, or PLAIN_ENCODER of MASK_KINDS
    use_for: tuple[str, ...]  # cell types whose images it is run on, and "cls"
    dataset: str | None = None  # "owner/slug"; None: any of the manifest's weight_datasets
    file: str | None = None  # path inside the dataset, "{fold}" in it for a file per fold; None: not known yet
    sha256: str | None = None  # checked before use; None: not known yet
    stem_stride: int | None = None  # of the first convolution, 1 or 2; None: as the file's configuration has it, else 1
    weights: StageWeights = EQUAL_WEIGHTS  # in the averages over the members of a cell type; a unet's are MASKS_ALONE
    worth: float | None = None  # the least worthy are left out first when time is short; None: before all others
    notes: str = ""


@dataclass(frozen=True)
class Manifest:
    """Everything that a kernel is built from, except for the code."""

    kernel: KernelIdentity
    wheels_dataset: str  # "owner/slug"
    members: tuple[MemberEntry, ...]
    weight_datasets: tuple[str, ...] = ()  # where members without a dataset are looked for
    time_limit_hours: float = 9.0  # the competition's
    time_margin_hours: float = 0.5  # kept back: images not begun by then get an empty row
    dtype: str = "float32"  # one of NETWORK_DTYPES
    ensemble: EnsembleSettings = field(default_factory=EnsembleSettings)
    notes: str = ""

    def members_for(self, cell_type: str) -> tuple[MemberEntry, ...]:
        """The members that images of `cell_type` are run with, in the manifest's order."""
        return tuple(member for member in self.members if cell_type in member.use_for)

    def datasets_for(self, member: MemberEntry) -> tuple[str, ...]:
        """The datasets in which `member`'s file may be."""
        return (member.dataset,) if member.dataset is not None else self.weight_datasets

    @property
    def all_weight_datasets(self) -> tuple[str, ...]:
        """All datasets that the kernel needs weights from, each once, in the manifest's order."""
        named = [name for member in self.members for name in self.datasets_for(member)]
        return tuple(dict.fromkeys(named))


def refuse_fold_files(manifest: Manifest) -> None:
    """Raise InputError where a member's `file` means a file per fold: to run, each member needs one file."""
    per_fold = [member for member in manifest.members if member.file is not None and FOLD_PLACEHOLDER in member.file]
    if per_fold:
        listed = ", ".join(f"{member.name} ({member.file})" for member in per_fold)
        example = str(per_fold[0].file).replace(FOLD_PLACEHOLDER, "0")
        raise InputError(
            "these members have a file per fold, which `python -m kernel validate --out-of-fold` alone takes: "
            f"{listed}; here each needs one file: name that of one fold, {example} for example"
        )


def manifest_to_json(manifest: Manifest) -> str:
    """The manifest as JSON that `parse_manifest` reads back as an equal one. Same manifest, same text."""
    return json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
