"""One member of each detector kind from raw data: prepared, pretrained on LIVECell, finetuned, put into a manifest.

Each run starts from the weights of the one before it: the encoder's, LIVECell's, then kind after kind. Each takes under
an hour on two cores; from the encoder alone, each would spend most of it learning the same features. Runs that are done
are not done again, and one that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kernel.data.annotated import list_annotated, list_around_fold
from kernel.data.json_files import read_json
from kernel.data.livecell import read_livecell
from kernel.data.pictures import PictureIndex, picture_of
from kernel.data.prepare import PrepareReport, prepare
from kernel.data.sources import read_competition
from kernel.data.splits import FOLDS_NAME
from kernel.data.tables import whole_text
from kernel.errors import InputError
from kernel.files import file_sha256
from kernel.log import LOG
from kernel.manifest.edit import manifest_entry
from kernel.scoring.predictions import fingerprint_differences
from kernel.settings import CELL_TYPES
from kernel.training.evaluation import check_class_count
from kernel.training.manifests import leave_manifest, new_manifest
from kernel.training.recipe import Recipe
from kernel.training.run import TrainingRun
from kernel.training.samples import TrainingImage, leave_out_pictures, read_entries, read_training_images
from kernel.training.trainer import train_detector

#: The run on LIVECell, by its name beside those of the kinds.
PRETRAINED = "pretrained"
#: What a folder was prepared from; written last, so that only a whole folder has it.
SOURCE_NAME = "source.json"
#: The first kind is finetuned this many times as long as each that starts from the one before.
FIRST_OVER_LATER = 6


@dataclass(frozen=True)
class MembersPlan:
    """Which members to train, and from what data."""

    competition: Path  # folder with train.csv and train/<id>.png
    livecell_annotations: tuple[Path, ...]  # LIVECell's COCO files; none: no pretraining
    livecell_images: Path | None
    encoder_weights: Path  # what the first run starts from
    out: Path
    recipe: Recipe  # its `kind` is replaced by each of `kinds`
    kinds: tuple[str, ...]
    iterations: tuple[int, ...]  # of each kind's finetuning
    pretraining_iterations: int
    folds: int  # by wells, or the next best split
    fold: int | None  # left out of the training, to be scored; None: all images are trained on
    device: str = "cpu"

    @property
    def manifest(self) -> Path:
        return self.out / "manifest.json"

    @property
    def prepared(self) -> Path:
        return self.out / "prepared"

    @property
    def prepared_livecell(self) -> Path:
        return self.out / "livecell"

    @property
    def folds_csv(self) -> Path:
        return self.prepared / FOLDS_NAME

    @property
    def recipes(self) -> dict[str, Recipe]:
        """What each run trains, by its name, in their order."""
        pretraining = [(PRETRAINED, self.kinds[0], self.pretraining_iterations)] if self.livecell_annotations else []
        runs = [*pretraining, *zip(self.kinds, self.kinds, self.iterations, strict=True)]
        detector, training = self.recipe.detector, self.recipe.training
        return {
            name: Recipe(
                replace(detector, kind=kind), replace(training, iterations=iterations, seed=training.seed + number)
            )
            for number, (name, kind, iterations) in enumerate(runs, start=1 - len(pretraining))
        }

    def weights(self, name: str) -> Path:
        """Where the run `name` writes."""
        return self.out / f"{name}.safetensors"

    def check(self) -> None:
        """Refuse a plan that cannot be followed, before hours are spent on it.

        Raises:
            InputError: options that do not fit each other, a file that is missing, or a wrong recipe.
        """
        if bool(self.livecell_annotations) != (self.livecell_images is not None):
            raise InputError("--livecell-annotations and --livecell-images belong together: give both, or none")
        for option, path in (
            ("--encoder-weights", self.encoder_weights),
            ("--competition", self.competition / "train.csv"),
            *(("--livecell-annotations", path) for path in self.livecell_annotations),
        ):
            if not path.is_file():
                raise InputError(f"{option} {path}: no such file")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise InputError(f"--fold {self.fold}: there are folds 0 to {self.folds - 1}")
        if len(set(self.kinds)) < len(self.kinds):
            raise InputError(f"--kinds {' '.join(self.kinds)}: name each kind once")
        if len(self.iterations) != len(self.kinds):
            raise InputError(
                f"--iterations {' '.join(map(str, self.iterations))}: give one number for all kinds, or one for "
                f"each of {', '.join(self.kinds)}"
            )
        check_class_count(self.recipe.detector.num_classes)
        for name, recipe in self.recipes.items():
            recipe.check(f"the run {name}")


def usual_iterations(first: int, kinds: int) -> tuple[int, ...]:
    """The iterations of each detector kind's finetuning, where the first kind's are `first`."""
    return (first, *[max(first // FIRST_OVER_LATER, 1)] * (kinds - 1))


def prepare_members(plan: MembersPlan) -> None:
    """Check the plan, and prepare what it trains on: `plan.prepared`, and `plan.prepared_livecell` where that is given.

    Raises:
        InputError: the plan or the data cannot be followed, or a folder was prepared from other data.
    """
    plan.check()
    prepare_once(
        plan.prepared,
        {
            "competition": str(plan.competition.resolve()),
            "train_csv_sha256": file_sha256(plan.competition / "train.csv"),
            "folds": plan.folds,
            "split": "group, or the next best",
        },
        lambda: prepare(read_competition(plan.competition), plan.prepared, "group", plan.folds, or_next_best=True),
    )
    annotations, images = list(plan.livecell_annotations), plan.livecell_images
    if images is not None:
        prepare_once(
            plan.prepared_livecell,
            {
                "livecell_annotations": [str(path.resolve()) for path in annotations],
                "livecell_annotations_sha256": [file_sha256(path) for path in annotations],
                "livecell_images": str(images.resolve()),
            },
            lambda: prepare(read_livecell(annotations, images), plan.prepared_livecell, None),
        )


def prepare_once(folder: Path, source: Mapping[str, Any], make: Callable[[], PrepareReport]) -> None:
    """Let `make` prepare `folder` from `source`, unless that is done.

    Raises:
        InputError: it was prepared from another source.
    """
    path = folder / SOURCE_NAME
    if path.is_file():
        differences = fingerprint_differences(read_json(path, "the source of prepared images"), source)
        if differences:
            raise InputError(
                f"{folder} was prepared from other data ({'; '.join(differences)}): give the same, or another --out, "
                "or delete the folder to prepare it anew"
            )
        return
    LOG.info("%s", make().describe())
    with whole_text(path) as stream:
        stream.write(json.dumps(source, indent=1) + "\n")


def train_members(plan: MembersPlan) -> None:
    """Train what `prepare_members` has prepared: `plan.out` then holds `<kind>.safetensors` and the manifest.

    Raises:
        InputError: images that cannot be trained on.
        RunError: a training fails or is stopped; the same call goes on from there.
    """
    # First, though LIVECell's turn comes before: what is wrong with them should show now, not after hours.
    if plan.fold is None:
        entries, unseen = list_annotated(plan.prepared), []
    else:
        entries, unseen = list_around_fold(plan.prepared, plan.fold, plan.folds_csv)
    held_out = PictureIndex(picture_of(entry.image_id, entry.read()) for entry in unseen)
    images = leave_out_pictures(read_entries(entries), held_out, plan.prepared)
    init, keep_classes = plan.encoder_weights, False
    for name, recipe in plan.recipes.items():
        its_images = images
        if name == PRETRAINED:
            livecell = read_training_images(plan.prepared_livecell)
            its_images = leave_out_pictures(livecell, held_out, plan.prepared_livecell)
        init = train_one(plan, name, recipe, its_images, init, keep_classes)
        keep_classes = name != PRETRAINED  # from the first kind on the classes are the same
    write_members_manifest(plan)


def train_one(
    plan: MembersPlan, name: str, recipe: Recipe, images: Sequence[TrainingImage], init: Path, keep_classes: bool
) -> Path:
    """Train one run from the weights `init`, or resume it; returns the file of its weights."""
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
    """Write a manifest of the members."""
    recipes = plan.recipes
    members = [
        manifest_entry(plan.weights(kind), kind, recipes[kind].detector.encoder, CELL_TYPES) for kind in plan.kinds
    ]
    leave_manifest(plan.manifest, new_manifest(members, of_competition=True))
