"""Predict many images on one device or several, and store each prediction, so that a run can go on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from kernel.data.annotated import AnnotatedImage
from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.fallbacks import means_out_of_memory, predict_image
from kernel.ensemble.load import load_ensemble
from kernel.errors import InputError
from kernel.images.zoom import COMPETITION_PIXEL_UM, is_same_scale
from kernel.log import LOG
from kernel.manifest.types import Manifest, usual_weights
from kernel.processes import own_device, share_over_devices
from kernel.runtime.memory import free_memory, plan_tiling
from kernel.scale import ScaledEnsemble, member_pixel_um
from kernel.scoring.predictions import (
    SoftPrediction,
    check_distinct,
    ensemble_fingerprint,
    fingerprint_differences,
    image_fingerprint,
    load_fingerprint,
    load_prediction,
    prediction_path,
    soft_prediction,
    store_prediction,
)
from kernel.settings import EVERY_USE


@dataclass(frozen=True)
class EnsembleFiles:
    """An ensemble that is not loaded yet: what is handed to the processes that load it."""

    manifest: Manifest  # with every member's sha256
    paths: Mapping[str, Path]  # the weights, by member
    dtype: str  # one of NETWORK_DTYPES

    @property
    def sums(self) -> dict[str, str | None]:
        """The weights' sha256, by member."""
        return {member.name: member.sha256 for member in self.manifest.members}

    def load(self, device: str) -> Ensemble:
        """Load it. mmdet must be importable.

        Raises:
            InputError: as `load_ensemble`, or the members do not fit into the device's memory.
        """
        try:
            ensemble = load_ensemble(self.manifest, dict(self.paths), device, getattr(torch, self.dtype))
        except (RuntimeError, MemoryError) as error:
            if not means_out_of_memory(error):
                raise
            others = "" if torch.device(device).type == "cpu" else "the CPU (--device cpu), or "
            raise InputError(
                f"{device} has too little free memory for the {len(self.paths)} member(s): take {others}fewer members, "
                "or end what else uses it"
            ) from error
        ensemble.tiling = plan_tiling(ensemble, free_memory(ensemble.device))
        return ensemble

    def alone(self, name: str) -> EnsembleFiles:
        """An ensemble of the one member `name`, no mask network, used for every cell type, with the same settings."""
        (member,) = (member for member in self.manifest.members if member.name == name)
        member = replace(member, use_for=EVERY_USE, weights=usual_weights(member.kind))
        return replace(self, manifest=replace(self.manifest, members=(member,)), paths={name: self.paths[name]})


@dataclass(frozen=True)
class PredictionJob:
    """An image, and the ensemble that is to predict it."""

    image: AnnotatedImage
    files: EnsembleFiles
    fold: int | None = None  # that the ensemble has not seen; None: not known to any fold
    seen_by: tuple[str, ...] = ()  # "member", or "member (as other id)": who has learned from the image
    untold: tuple[str, ...] = ()  # members of which that is not known

    def alone(self, name: str) -> PredictionJob:
        """The same by one member, with what is known of that one: it has learned from other images than the others."""
        return replace(
            self,
            files=self.files.alone(name),
            seen_by=tuple(told for told in self.seen_by if told.split(" ")[0] == name),  # no name has a space
            untold=tuple(untold for untold in self.untold if untold == name),
        )

    def in_dtype(self, dtype: str) -> PredictionJob:
        """The same with the networks' arithmetic in `dtype`, as "bfloat16"."""
        return replace(self, files=replace(self.files, dtype=dtype))

    def fingerprint(self) -> dict[str, Any]:
        """What its prediction is made of."""
        made_of = ensemble_fingerprint(self.files.manifest, self.files.dtype)
        return {**made_of, **image_fingerprint(self.image.path)}


def warn_of_other_scales(jobs: Sequence[PredictionJob]) -> None:
    """Say which jobs show members an image at another scale than they know, where the image's is known.

    Raises:
        InputError: as `member_pixel_um`, of an ensemble of such images.
    """
    for files, of_files in groupby(jobs, key=lambda job: job.files):
        shown = [job.image.pixel_um for job in of_files if job.image.pixel_um is not None]
        member_um = member_pixel_um(files.paths) if shown else COMPETITION_PIXEL_UM
        others = [pixel_um for pixel_um in shown if not is_same_scale(pixel_um, member_um)]
        if others:
            LOG.warning(
                "%d image(s) are shown with pixels of %s um, and the members know those of %.4g um: what is scored is "
                "not what predict does; prepare the images with --member-pixel-size %.4g",
                len(others), ", ".join(f"{size:.4g}" for size in sorted(set(others))), member_um, member_um,
            )  # fmt: skip


def predict_jobs(
    jobs: Sequence[PredictionJob], devices: Sequence[str], folder: Path | None = None
) -> Iterator[tuple[PredictionJob, SoftPrediction]]:
    """The jobs with their predictions, in the jobs' order.

    Args:
        jobs: those of one ensemble behind each other, so that it is loaded once per device.
        devices: as ["cpu"] or ["cuda:0", "cuda:1"]; a device named twice gets two processes.
        folder: where each prediction is stored as soon as it is made. A prediction with the same fingerprint that is
            stored there already is read instead; one with another is replaced, with a warning. None: nothing is stored.

    Raises:
        InputError: at once, a damaged stored file or a folder that cannot be made; when its turn comes, an image that
            cannot be read.
        RunError: a process dies or hangs. What is stored by then stays, and is not predicted again.
    """
    stored = [False] * len(jobs)
    if folder is not None:
        check_distinct([job.image for job in jobs])
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}; name another") from error
        stored = find_stored(jobs, folder)
        LOG.info("%d of %d predictions are in %s already", sum(stored), len(jobs), folder)
    return _predict_missing(jobs, devices, folder, stored)


def _predict_missing(
    jobs: Sequence[PredictionJob], devices: Sequence[str], folder: Path | None, stored: Sequence[bool]
) -> Iterator[tuple[PredictionJob, SoftPrediction]]:
    missing = ((job, folder) for job, found in zip(jobs, stored, strict=True) if not found)
    predicted = map_on_devices(devices, missing)  # starts when it is first asked
    for job, found in zip(jobs, stored, strict=True):
        if found and folder is not None:
            yield job, load_prediction(prediction_path(folder, job.image.image_id))
        else:
            yield job, next(predicted)


def find_stored(jobs: Sequence[PredictionJob], folder: Path) -> list[bool]:
    """For each job, whether `folder` has its prediction with the same fingerprint. Others are logged.

    Raises:
        InputError: a stored file is damaged.
    """
    found: list[bool] = []
    others: list[str] = []
    for job in jobs:
        path = prediction_path(folder, job.image.image_id)
        differences = fingerprint_differences(load_fingerprint(path), job.fingerprint()) if path.is_file() else None
        found.append(differences == [])
        if differences:
            others.append(f"{path} ({'; '.join(differences[:5])})")
    if others:
        LOG.warning(
            "%d stored predictions were made of something else and are replaced: %s first", len(others), others[0]
        )
    return found


class LastEnsemble:
    """Loads ensembles to one device; the last one stays loaded until another is asked for, and is of no use then."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._files: EnsembleFiles | None = None
        self._scaled: ScaledEnsemble | None = None

    def load(self, files: EnsembleFiles, shape: tuple[int, int] | None = None) -> Ensemble:
        """The ensemble of these files; its memory is planned for an image (H, W) where `shape` is given."""
        if self._scaled is None or self._files != files:
            if self._scaled is not None:  # its memory is needed for the next, whoever still holds it
                self._scaled.ensemble.drop_weights()
            self._scaled = None
            self._scaled = ScaledEnsemble(files.load(self.device))
            self._files = files
        if shape is not None:
            self._scaled.plan(shape)
        return self._scaled.ensemble


class FoldEnsembles:
    """The ensembles of some jobs with the images of each, one loaded at a time; may be gone through many times.

    The memory of each is planned for its largest image.

    Ensembles differ in their weights alone, as those of `out_of_fold_jobs` do.
    """

    def __init__(self, jobs: Sequence[PredictionJob], last: LastEnsemble) -> None:
        self.jobs, self.last = jobs, last

    def __iter__(self) -> Iterator[tuple[Ensemble, list[AnnotatedImage]]]:
        for files, jobs in groupby(self.jobs, key=lambda job: job.files):
            images = [job.image for job in jobs]
            largest = max((image.annotations.image_shape for image in images), key=math.prod)
            yield self.last.load(files, largest), images


class Predictor:
    """Predicts on one device, one image after another."""

    def __init__(self, device: str) -> None:
        self.last = LastEnsemble(device)

    def predict(self, job: PredictionJob, folder: Path | None) -> SoftPrediction:
        """Predict the job's image, and store the prediction in `folder`, if there is one.

        Raises:
            InputError: the image cannot be read, or the prediction cannot be stored.
        """
        image = job.image.read()  # before the loading, so that an image that cannot be read is refused at once
        height, width = image.shape[:2]
        prediction = soft_prediction(predict_image(self.last.load(job.files, (height, width)), image))
        if folder is not None:
            path = prediction_path(folder, job.image.image_id)
            store_prediction(path, prediction, job.fingerprint(), job.seen_by, job.untold)
        return prediction


def map_on_devices(
    devices: Sequence[str], work: Iterable[tuple[PredictionJob, Path | None]]
) -> Iterator[SoftPrediction]:
    """`Predictor.predict` of each job, in order: in this process, or with several devices in a process for each.

    Raises:
        RunError: as `share_over_devices`. What `Predictor.predict` raises is raised here too.
    """
    if len(devices) == 1:
        predictor = Predictor(devices[0])
        for job, folder in work:
            yield predictor.predict(job, folder)
        return
    advice = "what --predictions has stored is kept: run the same again, on fewer devices if need be"
    yield from share_over_devices(predict_in_worker, work, devices, advice)


#: Of a worker process: its predictor. A pool keeps nothing else between two jobs.
_WORKER: list[Predictor] = []


def predict_in_worker(work: tuple[PredictionJob, Path | None]) -> SoftPrediction:
    """`Predictor.predict` of this process's own, on its device."""
    if not _WORKER:
        device = own_device()
        assert device is not None
        _WORKER.append(Predictor(device))
    return _WORKER[0].predict(*work)
