"""The results of a run, image by image: run lengths and figures, no masks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kernel.errors import InputError
from kernel.log import LOG
from kernel.postprocess.submission import check_image_rles
from kernel.runtime.budget import TimeBudget
from kernel.runtime.device_workers import DeviceWorker, WorkerQueue
from kernel.runtime.failures import FailedImage, FirstImages
from kernel.runtime.sharing import share_images


@dataclass(frozen=True)
class RunResults:
    """The results of some images, by their id."""

    rows: dict[str, tuple[list[str], tuple[int, int]]] = field(default_factory=dict)  # run lengths and (H, W)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)  # for summary.json, of images with a result
    failed: dict[str, FailedImage] = field(default_factory=dict)  # images without a result; their rows are empty
    peaks: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)  # by device: `peak_memory`
    forecasts: list[Any] = field(default_factory=list)  # of the time budget, for summary.json

    def fail(self, image_id: str, failure: FailedImage) -> None:
        """Take note of an image that has no result."""
        self.failed[image_id] = failure
        self.rows[image_id] = [], (0, 0)

    def in_order(self, paths: Sequence[Path]) -> RunResults:
        """The same results, with the images in the order of `paths`, which has them all."""
        order = {path.stem: place for place, path in enumerate(paths)}
        return RunResults(
            dict(sorted(self.rows.items(), key=lambda item: order[item[0]])),
            dict(sorted(self.summaries.items(), key=lambda item: order[item[0]])),
            dict(sorted(self.failed.items(), key=lambda item: order[item[0]])),
            self.peaks,
            self.forecasts,
        )


def failed_results(paths: Sequence[Path], reason: str) -> RunResults:
    """The results of images that all fail for one reason, without being at fault."""
    results = RunResults()
    for path in paths:
        results.fail(path.stem, FailedImage(reason, wrong_input=False))
    return results


def segment_all(
    workers: Sequence[DeviceWorker],
    messages: WorkerQueue,
    image_paths: Sequence[Path],
    budget: TimeBudget,
    hard_deadline: float,
) -> RunResults:
    """Have all images segmented; the arguments are those of `share_images`.

    Where the first images all fail, and not through their own fault, the log says so.
    """
    results = RunResults(forecasts=budget.forecasts)
    first = FirstImages(len(image_paths))

    def on_answer(worker: DeviceWorker, answer: Mapping[str, Any]) -> None:
        image_id, (height, width) = answer["image"], answer["image_shape"]
        try:
            check_image_rles(image_id, answer["rles"], (height, width))
        except InputError as error:
            on_failure(image_id, FailedImage(str(error), wrong_input=False, error_type=type(error).__name__))
            return
        first.succeeded()
        results.rows[image_id] = answer["rles"], (height, width)
        results.summaries[image_id] = {**answer["summary"], "device": worker.name}
        host, gpu = answer["peaks"]
        results.peaks[worker.name] = host, gpu
        LOG.info("image %s: %s", image_id, json.dumps(results.summaries[image_id]))
        progress.update()

    def on_failure(image_id: str, failure: FailedImage) -> None:
        results.fail(image_id, failure)
        first.failed(failure)
        progress.update()

    with tqdm(total=len(image_paths), unit="image", mininterval=10) as progress:
        share_images(workers, messages, image_paths, budget, on_answer, on_failure, hard_deadline)
    return results.in_order(image_paths)
