"""A training run: what is trained on what, and where it is written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kernel.data.annotated import AnnotatedImage
from kernel.data.learned import MemberRecord, all_pictures, read_member_record
from kernel.data.pictures import Picture, PictureIndex, picture_of
from kernel.errors import InputError, RunError
from kernel.files import file_sha256, remove_unfinished, writing
from kernel.log import LOG
from kernel.manifest.types import MASK_KINDS, TIMM_PREFIX
from kernel.models.configs import DetectorSpec
from kernel.scoring.predictions import fingerprint_differences
from kernel.text import first_names
from kernel.training.evaluation import check_evaluation, lacks_classes
from kernel.training.samples import MIN_CELL_PIXELS, TrainingImage, check_classes, count_small_cells, images_digest
from kernel.training.scale import TrainingScale
from kernel.training.settings import TrainSettings
from kernel.training.state import fingerprint_of

#: Settings that may change when a run is resumed: they do not change what is computed.
FREE_SETTINGS = ("workers", "checkpoint_every", "evaluate_every")
#: Settings that mean nothing, and may change, in a run without extra images.
EXTRA_SETTINGS = ("extra_images", "extra_share", "extra_until")


def files_of_run(out: Path) -> tuple[Path, ...]:
    """What a training writes: the weights `out`, the best ones, the state; settings, log and curves."""
    beside = (out.with_suffix(suffix) for suffix in (".state", ".json", ".jsonl", ".png"))
    return (out, out.with_name(f"{out.stem}.best{out.suffix}"), *beside)


@dataclass(frozen=True)
class TrainingRun:
    """What to train, on what, and where it goes."""

    spec: DetectorSpec
    settings: TrainSettings
    images: Sequence[TrainingImage]
    out: Path  # weights (.safetensors); log, state and pictures lie beside it
    init: Path | None = None  # weights to start from
    keep_classes: bool = False  # of `init`, also the layers that tell classes apart
    device: str = "cpu"
    half: bool = False  # write weights as float16
    validation: Sequence[AnnotatedImage] = ()  # evaluated on every `evaluate_every` steps
    resume: bool = False  # go on from the state beside `out`, if there is one
    replace: bool = False  # an earlier result at `out` may be overwritten
    extra: Sequence[TrainingImage] = ()  # mixed in on a falling schedule, labelled as `images` are

    @property
    def state_path(self) -> Path:
        return files_of_run(self.out)[2]

    @property
    def best_path(self) -> Path:
        return files_of_run(self.out)[1]

    @property
    def evaluations(self) -> Path:
        """Holds a folder of pictures for each evaluation."""
        return self.out.with_suffix("")

    def remove_unfinished(self) -> None:
        """Delete what killed runs had written of its files, each as large as the file. For whoever alone writes them.

        Raises:
            InputError: they cannot be deleted.
        """
        with writing(self.out):
            for path in files_of_run(self.out):
                remove_unfinished(path)

    def remove_evaluations(self) -> None:
        """Remove the best weights and the pictures of an earlier run.

        Raises:
            RunError: they cannot be removed.
        """
        with writing(self.out, RunError):
            self.best_path.unlink(missing_ok=True)
            pictures = list(self.evaluations.glob("step_*/*.png"))
            for picture in pictures:
                picture.unlink()
            for folder in {picture.parent for picture in pictures}:
                if not any(folder.iterdir()):
                    folder.rmdir()

    @property
    def has_evaluations(self) -> bool:
        return bool(self.settings.evaluate_every and self.validation)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what is computed: a state goes on only with its own. Reads all pixels, so once."""
        settings = self.without_free(asdict(self.settings))
        init = None if self.init is None else file_sha256(self.init)
        described = json.dumps([asdict(self.spec), settings, init, self.keep_classes])
        return fingerprint_of(described, images_digest(self.images), images_digest(self.extra))

    def without_free(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the settings by name that decide what is computed."""
        free = {*FREE_SETTINGS, *(() if self.extra else EXTRA_SETTINGS)}
        return {name: value for name, value in settings.items() if name not in free}

    def told(self) -> dict[str, Any]:
        """What it tells of itself in the JSON file beside its weights."""
        return {
            "detector": asdict(self.spec),
            "training": asdict(self.settings),
            "images": len(self.images),
            "cells": sum(len(image.crops) for image in self.images),
            "cells_too_small": sum(self.small_cells.values()),
            "extra_images": len(self.extra),
            "fingerprint": self.fingerprint,
        }

    def told_before(self) -> dict[str, Any]:
        """What an earlier run has told there; nothing where there is no such file."""
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(self.out.with_suffix(".json").read_text(encoding="utf-8"))
            if isinstance(told, dict) and "fingerprint" in told:
                return told
        return {}

    def differences(self, fingerprint: str) -> list[str] | None:
        """Where the run of another fingerprint, whose state is there, differs in what it tells; None: it tells nothing.

        Of the images their numbers alone are told, of the weights to start from nothing.
        """
        told = self.told_before()
        if told.get("fingerprint") != fingerprint or not isinstance(told.get("training"), dict):
            return None
        wanted = self.told()
        del wanted["fingerprint"], wanted["cells_too_small"]
        return fingerprint_differences(
            {**told, "training": self.without_free(told["training"])},
            {**wanted, "training": self.without_free(wanted["training"])},
        )

    @cached_property
    def learned_before(self) -> tuple[Picture, ...]:
        """The images that `init` tells that it has learned from."""
        before = read_member_record(self.init) if self.init is not None else None
        return before.images if before is not None else ()

    @cached_property
    def learned(self) -> tuple[Picture, ...]:
        """The images that its weights have learned from in the end: its own, and those of `init`."""
        own = (picture_of(image.name, image.image_bgr) for image in (*self.images, *self.extra))
        return all_pictures(self.learned_before, own)

    @cached_property
    def scale(self) -> TrainingScale:
        """The scale of its images, and that of the weights to start from.

        Raises:
            InputError: as `told_pixel_um`.
        """
        return TrainingScale.of((*self.images, *self.extra), self.init, is_member=self.keep_classes)

    def record(self, step: int) -> MemberRecord:
        """The history of its weights after a step."""
        encoder = self.spec.encoder if self.spec.encoder.startswith(TIMM_PREFIX) else None
        iterations, stride = self.settings.iterations, self.spec.stem_stride
        return MemberRecord(self.fingerprint, step, iterations, self.learned, encoder, stride, self.scale.weights_um)

    @property
    def is_complete(self) -> bool:
        """Whether `out` holds the finished weights of this very run, whatever lies beside them."""
        record = read_member_record(self.out)
        return record is not None and record.is_finished and record.fingerprint == self.fingerprint

    def refuse_to_overwrite(self) -> None:
        """Refuse to write over a result that is not this run's to go on with.

        Raises:
            InputError: `out` or its state is there, of an earlier run, and neither `resume` nor `replace` covers it.
        """
        if self.replace:
            return
        if self.state_path.exists() and not self.resume:
            raise InputError(
                f"{self.state_path} is the state of an earlier run: add --resume to go on with it, --replace to start "
                "anew, or name another --out"
            )
        if not self.out.exists() and not self.state_path.exists():
            self._refuse_foreign_files()
        if self.out.exists() and not self.state_path.exists():
            record = read_member_record(self.out) if self.resume else None
            # Killed after its first weights and before its first state, a run may begin again.
            if record is None or record.fingerprint != self.fingerprint:
                raise InputError(
                    f"--out {self.out} is there already, and no state of this run is beside it: name another --out, or "
                    "give --replace to overwrite it"
                )

    def _refuse_foreign_files(self) -> None:
        """Refuse to write over files of these names beside `out` that no begun run has left: an image, a manifest.

        Raises:
            InputError: there is one.
        """
        if self.told_before():  # killed before its first weights
            return
        for path in files_of_run(self.out):
            if path.exists():
                raise InputError(
                    f"{path} is there already, of no training, and would be written beside --out {self.out}: name "
                    "another --out, or give --replace to overwrite it"
                )

    @cached_property
    def small_cells(self) -> dict[str, int]:
        """By image, how many of its cells are in no crop, as they have too few pixels."""
        counts = [(image.name, count_small_cells(image)) for image in (*self.images, *self.extra)]
        return {name: count for name, count in counts if count}

    def tell_small_cells(self) -> None:
        """Say how many cells are too small to train on, and where.

        Raises:
            InputError: all are.
        """
        small, cells = sum(self.small_cells.values()), sum(len(image.crops) for image in (*self.images, *self.extra))
        if small == cells:
            raise InputError(
                f"no cell of {MIN_CELL_PIXELS} pixels or more among the {cells} annotated ones, and smaller ones are "
                "left out of every crop: enlarge the images with their masks"
            )
        if small:
            named = first_names([f"{count} in {name}" for name, count in self.small_cells.items()])
            LOG.warning(
                "%d of %d cells have fewer than %d pixels and are left out of every crop: %s",
                small, cells, MIN_CELL_PIXELS, named,
            )  # fmt: skip

    def tell_seen(self) -> None:
        """Say which images of the evaluations the weights to start from have learned from."""
        if not self.learned_before:
            return
        learned = PictureIndex(self.learned_before)
        seen = [image.image_id for image in self.validation if learned.find(picture_of(image.image_id, image.read()))]
        if seen:
            LOG.warning(
                "%d of the %d images that evaluations score were learned from by %s, so these scores flatter, and so "
                "does the choice of %s by them: %s",
                len(seen), len(self.validation), self.init, self.best_path.name, first_names(seen),
            )  # fmt: skip

    def check(self) -> None:
        """Refuse what cannot be trained, before anything is written.

        Raises:
            InputError: wrong settings, paths or images.
        """
        self.settings.check("the recipe")
        if self.out.suffix != ".safetensors":
            raise InputError(f"--out {self.out}: weights are written as .safetensors, name a file that ends so")
        if self.out.is_dir():
            raise InputError(f"--out {self.out} is a folder: name a file in it")
        if self.init is not None and not self.init.is_file():
            raise InputError(f"--init {self.init}: no such file")
        for path in (self.out, self.best_path):
            if self.init is not None and path.exists() and path.samefile(self.init):
                raise InputError(
                    f"--init {self.init} is the file that the training writes ({path}), and would be lost: copy it, or "
                    "name another --out"
                )
        if self.resume and self.replace:
            raise InputError("--resume goes on with what --replace would overwrite: give one of them")
        self.refuse_to_overwrite()
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {self.out}: cannot write there ({error.strerror}); name another place") from error
        if not any(len(image.crops) for image in self.images):
            raise InputError("no annotated cell in the training images")
        self.tell_small_cells()
        self.scale.tell()
        if self.extra and not self.settings.extra_share:
            raise InputError("there are extra images, and extra_share is 0: none would ever be drawn")
        check_classes([*self.images, *self.extra], self.spec.num_classes)
        if self.has_evaluations and self.spec.kind in MASK_KINDS:
            raise InputError(
                f"a {self.spec.kind} finds no cells, so it cannot be scored by itself: set evaluate_every 0, and score "
                "an ensemble with it by `python -m kernel validate`"
            )
        if self.has_evaluations:
            check_evaluation(self.spec.num_classes, self.validation)
            self.tell_seen()
        elif self.spec.kind not in MASK_KINDS and (flaw := lacks_classes(self.spec.num_classes)):
            LOG.warning("no ensemble will take this detector, which is good to start from (--init) alone: %s", flaw)
