"""The ensemble against the obvious order of work, mmdet's own test-time augmentation and torchvision's Mask R-CNN.

    PYTHONPATH=.:tests python tests/benchmarks/bench_inference.py
    PYTHONPATH=.:tests python tests/benchmarks/bench_inference.py --published     three resnet50, 520 x 704, four views

All in one run, one after the other, on the same image and the same deterministic weights. On the CPU the figures are
processor seconds of all threads, so that other work on the machine does not count. Prints seconds and ratios per stage
and the peak memory, asserts that ours in float32 finds what the obvious order finds, and writes inference.csv and
inference.png into the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import ctypes
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from kernel.settings import CELL_TYPES, CLS_USE, EnsembleSettings, Thresholds
from kernel.vendored import use_vendored_packages

STAGES = ("features", "proposals", "boxes", "masks", "post-processing")
#: Gains of the golden `ensemble_three`: features stay bounded, boxes and scores differ.
SCALES = {"rpn_cls": 0.363, "rpn_reg": 0.0624, "fc_cls": 0.339, "fc_reg": 0.0946, "conv_logits": 0.871}
#: Proposals per final box, as in the figures of the original: 400 and 96.
PROPOSALS_PER_CELL = 4


@dataclass(frozen=True)
class Setting:
    """What is run."""

    kinds: tuple[str, ...]
    encoder: str
    size: tuple[int, int]  # (H, W)
    cells: int  # final boxes
    members: int  # of the pool, kinds in turn; those beyond the kinds are of one cell type each
    views: int  # 1 or 4

    def describe(self) -> str:
        kinds, (height, width) = "+".join(self.kinds), self.size
        return (
            f"{self.members} member(s) of {kinds} {self.encoder}, {height} x {width}, {self.cells} cells, "
            f"{self.views} view(s)"
        )


@dataclass
class Measurement:
    """One way to run a setting."""

    setting: Setting
    way: str
    seconds: dict[str, float]  # per stage, or "total" alone
    peak_mb: float  # above what was taken before, the members among it
    result: object = None

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class Meter:
    """Measures blocks: processor time and what memory they take at their peak, or a GPU's time and memory."""

    def __init__(self, device: str):
        self.device = device

    def now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def reset_peak(self) -> None:
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif Path("/proc/self/clear_refs").exists():
            with contextlib.suppress(AttributeError):  # another libc: it has no such thing
                ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, or the next way would seem to take nothing
            with contextlib.suppress(PermissionError):  # a container's: then peaks are those of the run so far
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def memory_mb(self, field: str) -> float:
        """What is taken now ("VmRSS"), or the peak since it was reset ("VmHWM"); Linux's names for its own figures."""
        if self.device != "cpu":
            cuda = torch.cuda
            taken = cuda.memory_allocated if field == "VmRSS" else cuda.max_memory_allocated
            return taken(self.device) / 2**20
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10

    def measure(self, setting: Setting, way: str, run: Callable[[Callable], object]) -> Measurement:
        """Run with a function `stage` that charges a block to a stage, without stages nested in it."""
        seconds: defaultdict[str, float] = defaultdict(float)

        @contextlib.contextmanager
        def stage(name: str) -> Iterator[None]:
            start, before = self.now(), sum(seconds.values())
            yield
            seconds[name] += self.now() - start - (sum(seconds.values()) - before)

        self.reset_peak()
        before = self.memory_mb("VmRSS")
        result = run(stage)
        measurement = Measurement(setting, way, dict(seconds), self.memory_mb("VmHWM") - before, result)
        print(f"  {way}: {measurement.total:.2f} s", flush=True)
        return measurement


def make_members(setting: Setting):
    """The pool: plain members for the obvious order, and the same ones made ready as the kernel does."""
    from golden_ensemble import deterministic_detector

    from kernel.ensemble.members import Member
    from kernel.models.fusion import fuse_batch_norms

    plain, ready = [], []
    detectors = {kind: deterministic_detector(kind, setting.encoder, SCALES).eval() for kind in set(setting.kinds)}
    everywhere = len(setting.kinds)
    for number in range(setting.members):
        kind = setting.kinds[number % len(setting.kinds)]
        uses = {*CELL_TYPES, CLS_USE} if number < everywhere else {CELL_TYPES[number % len(CELL_TYPES)]}
        plain.append(Member(f"{number}:{kind}", kind, copy.deepcopy(detectors[kind]), frozenset(uses)))
        fused = copy.deepcopy(detectors[kind])
        fuse_batch_norms(fused)
        ready.append(replace(plain[-1], detector=fused))
    return plain, ready


def random_image(size: tuple[int, int]) -> np.ndarray:
    """Smooth noise, so that the features have something of every size."""
    import cv2

    noise = np.random.RandomState(0).randint(0, 256, (*size, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


def settings_of(setting: Setting, members, image: np.ndarray, device: str) -> EnsembleSettings:
    """Thresholds that give every type four times as many proposals as there are cells, and just the cells as boxes.

    NMS at 1 keeps all boxes; the score threshold is put between the last box wanted and the next.
    """
    from kernel.ensemble.ensemble import Ensemble

    limits = Thresholds(
        rpn_score_threshold=0.0, rpn_max_per_img=setting.cells * PROPOSALS_PER_CELL, rcnn_iou_threshold=1.0,
        rcnn_score_threshold=0.0, confidence=0.0, min_size=5,
    )  # fmt: skip
    views = setting.views > 1
    settings = EnsembleSettings(use_tta=views, use_tta_masks=views, thresholds=dict.fromkeys(CELL_TYPES, limits))
    ensemble = Ensemble(members, settings, device=device)
    features = ensemble.image_features(image)
    proposals = ensemble.propose(features, members)
    scores = ensemble.detect(features, members, proposals, proposals.cell_type).scores
    cut = min(setting.cells, len(scores) - 1)
    limits = replace(limits, rcnn_score_threshold=float(scores[cut - 1 : cut + 1].mean()))
    return replace(settings, thresholds=dict.fromkeys(CELL_TYPES, limits))


def run_ours(meter: Meter, setting: Setting, members, settings, image, dtype: torch.dtype, way: str) -> Measurement:
    """The package's ensemble and post-processing."""
    from kernel.ensemble.ensemble import Ensemble
    from kernel.postprocess.clean import postprocess_instances
    from kernel.segment import instances_of_prediction

    ensemble = Ensemble(members, settings, device=meter.device, dtype=dtype)

    def run(stage):
        features = ensemble.image_features(image)
        features.clock = SimpleNamespace(stage=stage, seconds={})  # the ensemble's stages are charged to the meter
        prediction = ensemble.predict(features)
        with stage("post-processing"):
            postprocess_instances(instances_of_prediction(prediction), settings.thresholds)
        return prediction

    return meter.measure(setting, way, run)


def run_obvious(meter: Meter, setting: Setting, members, settings, image) -> Measurement:
    """The oracle."""
    from slow_inference import slow_inference

    for member in members:
        member.detector.to(meter.device, memory_format=torch.contiguous_format)
    return meter.measure(
        setting, "obvious order", lambda stage: slow_inference(members, settings, image, meter.device, stage)
    )


def run_mmdet(meter: Meter, setting: Setting, member, settings, image) -> Measurement:
    """mmdet's augmented test of the first member, with as many proposals and boxes; of one view its simple test."""
    from kernel.ensemble.views import ALL_VIEWS, view_images

    detector = copy.deepcopy(member.detector).to(meter.device, memory_format=torch.contiguous_format)
    proposals = setting.cells * PROPOSALS_PER_CELL
    for config in (detector.test_cfg, detector.roi_head, detector.rpn_head):
        test = getattr(config, "test_cfg", config)
        for part in (test, test.get("rpn") or {}, test.get("rcnn") or {}):
            if "nms_pre" in part:
                part.update(nms_pre=5000, max_per_img=proposals)
            if "score_thr" in part:
                part.update(score_thr=0.0, max_per_img=setting.cells)
    height, width = setting.size
    images, metas = [], []
    for view in ALL_VIEWS[: setting.views]:
        tensor = view_images(image, (view,), meter.device)
        images.append(tensor)
        padded = (*tensor.shape[-2:], 3)
        direction = view.name if view.flip_x or view.flip_y else None
        metas.append([{
            "ori_shape": (height, width, 3), "img_shape": (height, width, 3), "pad_shape": padded,
            "batch_input_shape": padded[:2], "scale_factor": np.ones(4, np.float32), "flip": direction is not None,
            "flip_direction": direction,
        }])  # fmt: skip

    @torch.inference_mode()
    def run(stage):
        with stage("total"):
            return detector.forward_test(images, metas, rescale=True)

    name = "aug_test" if setting.views > 1 else "simple_test"
    return meter.measure(setting, f"mmdet {name}, first member", run)


def run_torchvision(meter: Meter, setting: Setting, image: np.ndarray) -> Measurement:
    """torchvision's Mask R-CNN (strides from 4) on one view: a floor."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    torch.manual_seed(0)
    height, width = setting.size
    model = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=9, min_size=min(height, width), max_size=max(height, width),
        rpn_post_nms_top_n_test=setting.cells * PROPOSALS_PER_CELL, box_score_thresh=0.0,
        box_detections_per_img=setting.cells,
    ).to(meter.device).eval()  # fmt: skip
    tensor = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))).to(meter.device).float() / 255

    @torch.inference_mode()
    def run(stage):
        with stage("total"):
            return model([tensor])

    return meter.measure(setting, "torchvision maskrcnn_resnet50_fpn, one view", run)


def assert_equal_results(ours, slow) -> None:
    """The same boxes, as the goldens compare them, and the same masks of those that have the same place."""
    from golden_ensemble import assert_same_boxes, to_rows

    assert ours.cell_type == slow.cell_type, (ours.cell_type, slow.cell_type)
    found = to_rows(ours.boxes_xyxy, ours.scores, ours.labels)
    expected = to_rows(slow.boxes.boxes_xyxy, slow.boxes.scores, slow.boxes.labels)
    assert_same_boxes(found, expected, "boxes", labelled=True)
    same = (np.abs(found[:, None] - expected[None]) < [0.01, 0.01, 0.01, 0.01, 1e-4, 0.5]).all(axis=2)
    assert same.any(axis=0).mean() > 0.95
    for row, column in zip(*np.nonzero(same), strict=True):
        torch.testing.assert_close(ours.mask_probs[row], slow.mask_probs[column], atol=1e-3, rtol=0)


def compare(meter: Meter, setting: Setting, dtype: torch.dtype, others: bool) -> list[Measurement]:
    """All ways to run one setting; `others`: mmdet and torchvision as well."""
    print(setting.describe(), flush=True)
    plain, ready = make_members(setting)
    image = random_image(setting.size)
    settings = settings_of(setting, ready, image, meter.device)
    slow = run_obvious(meter, setting, plain, settings, image)
    ours = run_ours(meter, setting, ready, settings, image, torch.float32, "ours, float32")
    assert_equal_results(ours.result, slow.result)
    measured = [slow, ours]
    if dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        measured.append(run_ours(meter, setting, ready, settings, image, dtype, f"ours, {name}"))
    if others:
        alone = replace(ready[0], use_for=frozenset({*CELL_TYPES, CLS_USE}))
        one = replace(setting, members=1)
        measured.append(run_ours(meter, one, [alone], settings, image, torch.float32, "ours, float32, first member"))
        measured.append(run_mmdet(meter, one, plain[0], settings, image))
        measured.append(run_torchvision(meter, replace(one, views=1), image))
    return measured


def print_table(measured: list[Measurement]) -> None:
    """Seconds per stage; in brackets how many times faster than the obvious order."""
    slow = measured[0]
    print(f"\n{slow.setting.describe()}; seconds, and in brackets the obvious order's by these")
    columns = (*STAGES, "total")
    print(f"{'':44}" + "".join(f"{name:>18}" for name in columns) + f"{'peak MB':>10}")
    for each in measured:
        comparable = each.setting == slow.setting
        line = f"{each.way:44}"
        for name in columns:
            value = each.total if name == "total" else each.seconds.get(name)
            against = slow.total if name == "total" else slow.seconds[name]
            if value is None:
                line += f"{'':>18}"
            else:
                line += f"{f'{value:.3f}' + (f' ({against / max(value, 1e-9):.2f})' if comparable else ''):>18}"
        print(line + f"{each.peak_mb:10.0f}")


def write_results(groups: dict[str, list[list[Measurement]]], folder: Path) -> None:
    """inference.csv, a row per measurement; inference.png, totals by what grows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "inference.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        setting_columns = ["kinds", "encoder", "height", "width", "cells", "members", "views"]
        writer.writerow(["grows", *setting_columns, "way", *STAGES, "total", "peak_mb"])
        for group, runs in groups.items():
            for each in (each for run in runs for each in run):
                s = each.setting
                stages = [f"{each.seconds[name]:.4f}" if name in each.seconds else "" for name in STAGES]
                figures = [*stages, f"{each.total:.4f}", f"{each.peak_mb:.0f}"]
                row = [group, "+".join(s.kinds), s.encoder, *s.size, s.cells, s.members, s.views, each.way]
                writer.writerow([*row, *figures])
    figure = Figure(figsize=(4 * len(groups), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (group, runs) in zip(np.atleast_1d(figure.subplots(1, len(groups))), groups.items(), strict=True):
        if group == "stages":
            setting = runs[0][0].setting
            comparable = [each for each in runs[0] if each.setting == setting and "total" not in each.seconds]
            below = np.zeros(len(comparable))
            for name in STAGES:
                heights = np.array([each.seconds[name] for each in comparable])
                axes.bar([each.way.replace(", ", "\n") for each in comparable], heights, bottom=below, label=name)
                below += heights
        else:
            places = [
                run[0].setting.size[0] * run[0].setting.size[1] if group == "size" else getattr(run[0].setting, group)
                for run in runs
            ]
            for ways in zip(*runs, strict=True):
                axes.plot(places, [each.total for each in ways], marker="o", label=ways[0].way)
        axes.set(title=group, ylabel="seconds", xlabel="pixels" if group == "size" else group, ylim=(0, None))
        axes.legend(fontsize=7)
    figure.savefig(folder / "inference.png", dpi=110)


def grown(setting: Setting, wide: bool) -> dict[str, list[Setting]]:
    """What is varied around a setting, one thing at a time; `wide`: over all that the competition's images have."""
    height, width = setting.size
    kinds = len(setting.kinds)
    cells = (30, 120, 500, 2000) if wide else [setting.cells * factor for factor in (1, 2, 4)]
    members = (1, 4, 7, 10, 13) if wide else (kinds, kinds + 3, kinds + 6)
    return {
        "cells": [replace(setting, cells=count) for count in cells],
        "members": [replace(setting, members=count) for count in members],
        "views": [replace(setting, views=views) for views in (1, 4)],
        "size": [replace(setting, size=(height * factor // 2, width * factor // 2)) for factor in (2, 3, 4)],
    }


def parse_size(text: str) -> tuple[int, int]:
    height, width = text.split("x")
    return int(height), int(width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kinds", default="maskrcnn,cascade,htc", help="of the members, in turn (default: %(default)s)"
    )
    parser.add_argument("--encoder", default="resnet18_narrow", help="default: %(default)s")
    parser.add_argument("--size", type=parse_size, default=(128, 160), metavar="HxW", help="default: 128x160")
    parser.add_argument("--cells", type=int, default=16, help="final boxes; proposals are four times as many")
    parser.add_argument("--members", type=int, help="in the pool (default: one of each kind)")
    parser.add_argument("--views", type=int, choices=(1, 4), default=4)
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16", help="beside float32"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--published", action="store_true", help="three resnet50, 520x704, 96 cells, four views")
    parser.add_argument("--no-growth", action="store_true", help="this setting alone, without varying it")
    parser.add_argument("--wide", action="store_true", help="vary more: 30 to 2000 cells, 1 to 13 members (20 minutes)")
    parser.add_argument("--folder", type=Path, default=Path("dist/benchmarks/inference"))
    options = parser.parse_args()
    use_vendored_packages()
    kinds = tuple(options.kinds.split(","))
    setting = Setting(kinds, options.encoder, options.size, options.cells, options.members or len(kinds), options.views)
    if options.published:
        setting = replace(setting, encoder="resnet50", size=(520, 704), cells=96)
    meter, dtype = Meter(options.device), getattr(torch, options.dtype)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    groups = {"stages": [compare(meter, setting, dtype, others=True)]}
    if not (options.no_growth or options.published):
        for what, settings in grown(setting, options.wide).items():
            groups[what] = [compare(meter, each, dtype, others=False) for each in settings]
    print(f"\n{torch.get_num_threads()} thread(s), {options.device}")
    for runs in groups.values():
        for run in runs:
            print_table(run)
    write_results(groups, options.folder)
    print(f"\n{options.folder / 'inference.csv'}, {options.folder / 'inference.png'}")


if __name__ == "__main__":
    sys.exit(main())
