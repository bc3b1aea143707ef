"""All images of a run through its workers: answers are checked, kept and logged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kernel.ensemble.leaving_out import levels_without
from kernel.errors import InputError
from kernel.log import LOG, printable_name
from kernel.manifest.types import Manifest
from kernel.runtime.budget import TimeBudget
from kernel.runtime.device_workers import DeviceWorker, WorkerQueue
from kernel.runtime.failures import FailedImage, FirstImages
from kernel.runtime.saved_run import SavedRun
from kernel.runtime.sharing import share_images


def segment_all(
    workers: Sequence[DeviceWorker],
    messages: WorkerQueue,
    image_paths: Sequence[Path],
    budget: TimeBudget,
    hard_deadline: float,
    saved: SavedRun,
    manifest: Manifest,
) -> None:
    """Have all images segmented, and keep each result in `saved`; the other arguments are those of `share_images`.

    Members of `manifest` that a worker leaves out are so in the budget, too.

    Where the first images all fail, and not through their own fault, the log says so.

    Raises:
        InputError, RunError: as `share_images`.
    """
    first = FirstImages(len(image_paths))
    by_id = {path.stem: path for path in image_paths}

    def on_answer(worker: DeviceWorker, answer: Mapping[str, Any]) -> None:
        image_id = answer["image"]
        try:
            saved.succeed(by_id[image_id], answer, worker.name)
        except InputError as error:
            on_failure(image_id, FailedImage(str(error), wrong_input=False, error_type=type(error).__name__))
            return
        first.succeeded()
        LOG.info("image %s: %s", printable_name(image_id), json.dumps(saved.results.summaries[image_id]))
        progress.update()

    def on_failure(image_id: str, failure: FailedImage) -> None:
        saved.fail(by_id[image_id], failure)
        first.failed(failure)
        progress.update()

    def on_left_out(members: Mapping[str, str]) -> None:
        saved.results.left_out.update(members)
        budget.levels = levels_without(manifest, members)

    with tqdm(total=len(image_paths), unit="image", mininterval=10) as progress:
        share_images(
            workers, messages, image_paths, budget, on_answer, on_failure, hard_deadline, on_left_out=on_left_out
        )
    saved.results.forecasts.extend(budget.forecasts)
