"""One member of each kind from raw data: prepared, pretrained on LIVECell, finetuned, enlisted in a manifest.

Each run starts from the one before it: the encoder's weights, LIVECell, then the kinds one after the other. Under an
hour of two cores each, they would otherwise spend most of their time on the same beginnings. Runs that are done are not
done again, and one that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kernel.data.livecell import read_livecell
from kernel.data.prepare import prepare
from kernel.data.sources import read_competition
from kernel.data.splits import FOLDS_NAME, other_folds
from kernel.errors import InputError
from kernel.manifest import parse_manifest
from kernel.runtime.files import whole_file
from kernel.runtime.log import LOG
from kernel.settings import CELL_TYPES
from kernel.training.enlist import manifest_entry
from kernel.training.evaluation import EVALUATION_SETTINGS
from kernel.training.recipe import Recipe
from kernel.training.samples import TrainingImage, read_training_images
from kernel.training.trainer import TrainingRun, train_detector


@dataclass(frozen=True)
class MembersPlan:
    """What to train, and from what."""

    competition: Path  # folder with train.csv and train/<id>.png
    livecell_annotations: tuple[Path, ...]  # LIVECell's COCO files; none: no pretraining
    livecell_images: Path | None
    encoder_weights: Path  # what the first run starts from
    out: Path
    recipe: Recipe  # its `kind` is replaced by each of `kinds`
    kinds: tuple[str, ...]
    iterations: tuple[int, ...]  # of each kind's finetuning
    pretraining_iterations: int
    folds: int  # stratified by cell type
    fold: int | None  # left out of the training, to be scored; None: all images are trained on
    device: str = "cpu"

    @property
    def manifest(self) -> Path:
        return self.out / "manifest.json"

    @property
    def folds_csv(self) -> Path:
        return self.out / "prepared" / FOLDS_NAME

    def weights(self, name: str) -> Path:
        """Where the run `name` writes."""
        return self.out / f"{name}.safetensors"

    def check(self) -> None:
        """Raise InputError for a plan that cannot be followed: better now than after the first hour."""
        if not self.encoder_weights.is_file():
            raise InputError(f"--encoder-weights {self.encoder_weights}: no such file")
        if bool(self.livecell_annotations) != (self.livecell_images is not None):
            raise InputError("--livecell-annotations and --livecell-images belong together: give both, or none")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise InputError(f"--fold {self.fold}: there are folds 0 to {self.folds - 1}")
        if len(set(self.kinds)) < len(self.kinds):
            raise InputError(f"--kinds {' '.join(self.kinds)}: name each kind once")
        if len(self.iterations) != len(self.kinds):
            raise InputError(
                f"--iterations {' '.join(map(str, self.iterations))}: give one number for all kinds, or one for "
                f"each of {', '.join(self.kinds)}"
            )


def train_members(plan: MembersPlan) -> None:
    """Follow the plan: `plan.out` then holds the weights `<kind>.safetensors`, the manifest, and what they came of.

    Raises InputError for a plan or data that cannot be trained, RunError where a training fails or is stopped; the same
    call goes on from there.
    """
    plan.check()
    init, keep_classes = plan.encoder_weights, False
    if plan.livecell_annotations:
        init = pretrain(plan, init)
    images = competition_images(plan)
    for number, (kind, iterations) in enumerate(zip(plan.kinds, plan.iterations, strict=True), start=1):
        settings = replace(plan.recipe.training, iterations=iterations, seed=plan.recipe.training.seed + number)
        recipe = Recipe(replace(plan.recipe.detector, kind=kind), settings)
        init = train_one(plan, kind, recipe, images, init, keep_classes)
        keep_classes = True  # from here on the classes are the same
    write_members_manifest(plan)


def pretrain(plan: MembersPlan, init: Path) -> Path:
    """Train the first kind on LIVECell's classes; returns the weights."""
    folder = plan.out / "livecell"
    if not folder.is_dir():
        assert plan.livecell_images is not None
        report = prepare(read_livecell(list(plan.livecell_annotations), plan.livecell_images), folder, None)
        LOG.info("%s", report.describe())
    detector = replace(plan.recipe.detector, kind=plan.kinds[0])
    settings = replace(plan.recipe.training, iterations=plan.pretraining_iterations)
    return train_one(plan, "pretrained", Recipe(detector, settings), read_training_images(folder), init, False)


def competition_images(plan: MembersPlan) -> list[TrainingImage]:
    """The images to finetune on."""
    folder = plan.folds_csv.parent
    if not folder.is_dir():
        report = prepare(read_competition(plan.competition, None), folder, "stratified", plan.folds)
        LOG.info("%s", report.describe())
    training = None if plan.fold is None else other_folds(plan.folds_csv, plan.fold)
    return read_training_images(folder, training, plan.folds_csv)


def train_one(
    plan: MembersPlan, name: str, recipe: Recipe, images: Sequence[TrainingImage], init: Path, keep_classes: bool
) -> Path:
    """One run from `init`, or what is left of it; returns its weights."""
    out = plan.weights(name)
    LOG.info("%s: %s %s from %s", out, recipe.detector.kind, recipe.detector.encoder, init)
    train_detector(
        TrainingRun(
            spec=recipe.detector,
            settings=recipe.training,
            images=images,
            out=out,
            init=init,
            keep_classes=keep_classes,
            device=plan.device,
            resume=True,
        )
    )
    return out


def write_members_manifest(plan: MembersPlan) -> None:
    """A manifest of the members, with thresholds for detectors that are not yet sure of themselves."""
    members = [
        manifest_entry(plan.weights(kind), replace(plan.recipe.detector, kind=kind), CELL_TYPES) for kind in plan.kinds
    ]
    data = {
        "kernel": {
            "id": "your-kaggle-name/in-network-ensemble",
            "title": "In-network ensemble",
            "competition": "sartorius-cell-instance-segmentation",
        },
        "wheels_dataset": "your-kaggle-name/mmdet-pure-python-wheels",
        "weight_datasets": ["your-kaggle-name/in-network-ensemble-weights"],
        "members": members,
        "ensemble": {
            "mask_score_power": EVALUATION_SETTINGS.mask_score_power,
            "thresholds": {name: asdict(limits) for name, limits in EVALUATION_SETTINGS.thresholds.items()},
        },
    }
    text = json.dumps(data, indent=2) + "\n"
    parse_manifest(text, str(plan.manifest))
    with whole_file(plan.manifest) as temporary:
        temporary.write_text(text, encoding="utf-8")
