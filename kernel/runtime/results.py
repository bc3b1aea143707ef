"""The results of a run, image by image: run lengths and figures, no masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kernel.runtime.failures import FailedImage


@dataclass(frozen=True)
class RunResults:
    """The results of some images, by their id."""

    rows: dict[str, tuple[list[str], tuple[int, int]]] = field(default_factory=dict)  # run lengths and (H, W)
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)  # for summary.json, of images with a result
    failed: dict[str, FailedImage] = field(default_factory=dict)  # images without a result; their rows are empty
    peaks: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)  # by device: `peak_memory`
    forecasts: list[Any] = field(default_factory=list)  # of the time budget, for summary.json
    left_out: dict[str, str] = field(default_factory=dict)  # members that could not be loaded, and why

    def succeed(self, image_id: str, answer: Mapping[str, Any], device: str) -> None:
        """Take note of an image's result, as `ImageWorker` answers it; an earlier failure is forgotten."""
        height, width = answer["image_shape"]
        self.failed.pop(image_id, None)
        self.rows[image_id] = answer["rles"], (height, width)
        self.summaries[image_id] = {**answer["summary"], "device": device}
        host, gpu = answer["peaks"]
        self.peaks[device] = host, gpu

    def answer(self, image_id: str) -> dict[str, Any]:
        """An image's result as `succeed` has taken it, and the device."""
        summary = dict(self.summaries[image_id])
        device = summary.pop("device")
        rles, shape = self.rows[image_id]
        return {
            "device": device, "rles": rles, "image_shape": shape, "summary": summary, "peaks": self.peaks[device]
        }  # fmt: skip

    def fail(self, image_id: str, failure: FailedImage) -> None:
        """Take note of an image that has no result."""
        self.failed[image_id] = failure
        self.rows[image_id] = [], (0, 0)

    def fail_rest(self, paths: Sequence[Path], reason: str) -> None:
        """Let the images of `paths` that have neither result nor failure fail, without being at fault."""
        for path in paths:
            if path.stem not in self.rows:
                self.fail(path.stem, FailedImage(reason, wrong_input=False))

    def add(self, other: RunResults) -> None:
        """Take over the results of other images."""
        for name in ("rows", "summaries", "failed", "peaks", "left_out"):
            getattr(self, name).update(getattr(other, name))
        self.forecasts.extend(other.forecasts)

    def in_order(self, paths: Sequence[Path]) -> RunResults:
        """The same results, with the images in the order of `paths`, which has them all."""
        order = {path.stem: place for place, path in enumerate(paths)}
        return RunResults(
            dict(sorted(self.rows.items(), key=lambda item: order[item[0]])),
            dict(sorted(self.summaries.items(), key=lambda item: order[item[0]])),
            dict(sorted(self.failed.items(), key=lambda item: order[item[0]])),
            self.peaks,
            self.forecasts,
            self.left_out,
        )


def results_to_json(results: RunResults) -> dict[str, Any]:
    """The results as JSON has them, for `results_from_json`."""
    return asdict(results)


def results_from_json(written: Mapping[str, Any]) -> RunResults:
    """The results that `results_to_json` gave."""
    return RunResults(
        {name: (rles, (shape[0], shape[1])) for name, (rles, shape) in written["rows"].items()},
        written["summaries"],
        {name: FailedImage(**failure) for name, failure in written["failed"].items()},
        {device: (host, gpu) for device, (host, gpu) in written["peaks"].items()},
        written["forecasts"],
        written["left_out"],
    )
