"""Our training step against the plain loop: Mask R-CNN resnet50, 8 classes, batches of four 256 x 256 crops.

    PYTHONPATH=.:tests python tests/benchmarks/bench_training.py [steps] [folder]

Ours: crop-first samples, encoder, neck and heads in bfloat16, channels last. The plain loop: every full-frame mask
decoded for each crop, float32, contiguous. Both train on the same crops of one image of 500 cells, from the same
weights and with the same random numbers; steps are taken in turn, so that both see the same machine. It prints the
ratio of the medians, the first step left out, and the largest relative difference of the losses; both curves go to
loss.csv and loss.png in the folder. `--profile` instead prints where a step of ours spends its time.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from slow_samples import crowded_image, decoded_sample, encoded_cells
from torch import nn

from kernel.training.settings import TrainSettings
from kernel.vendored import use_vendored_packages

CELLS = 500
#: The published finetuning, with all layers of ours in bfloat16.
SETTINGS = TrainSettings(dtype="bfloat16", heads_dtype="bfloat16")


def our_steps(settings: TrainSettings, folder: Path) -> Iterator[float]:
    """The losses of the trainer's own steps."""
    from kernel.models.configs import DetectorSpec
    from kernel.training.run import TrainingRun
    from kernel.training.signals import Stops
    from kernel.training.trainer import Trainer

    spec = DetectorSpec("maskrcnn", "resnet50")
    trainer = Trainer(TrainingRun(spec, settings, [crowded_image(CELLS)], folder / "ours.safetensors"))
    batches = trainer.micro_batches.batches(0)
    while not trainer.is_finished:
        yield trainer.take_step(batches, Stops())[0]


def plain_steps(settings: TrainSettings) -> Iterator[float]:
    """The losses of the loop that one would write first."""
    import kernel.training.crops as crops
    from kernel.models.configs import DetectorSpec
    from kernel.models.detectors import build_detector
    from kernel.training.initialise import draw_weights
    from kernel.training.losses import weighted_loss
    from kernel.training.optimisation import learning_rate_factor, parameter_groups
    from kernel.training.samples import Sample, collate
    from kernel.training.step import set_proposal_counts

    image = crowded_image(CELLS)
    rles = encoded_cells(image)
    torch.manual_seed(settings.seed)
    spec = DetectorSpec("maskrcnn", "resnet50")
    detector = build_detector(spec)
    draw_weights(detector)
    set_proposal_counts(detector, settings)
    detector.train()
    optimizer = torch.optim.AdamW(parameter_groups(detector, settings))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, settings.iterations, settings.warmup_share)
    )
    dataset = crops.CropDataset([image], settings.iterations * settings.batch_size, settings.crop_size, settings.seed)

    def decode_all(_: object, top: int, left: int, size: int, flips: tuple[bool, bool]) -> Sample:
        return decoded_sample(image.image_bgr, rles, image.labels, (top, left), size, flips)

    for step in range(settings.iterations):
        torch.manual_seed(settings.seed * 1_000_003 + step)
        first = step * settings.batch_size
        with patch.object(crops, "cut_sample", decode_all):
            batch = collate([dataset[index] for index in range(first, first + settings.batch_size)])
        losses = detector.forward_train(
            batch["images"], batch["img_metas"], batch["gt_bboxes"], batch["gt_labels"], gt_masks=batch["gt_masks"]
        )
        loss, _ = weighted_loss(losses, 1 + step * settings.epochs // settings.iterations, settings.epochs)
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), settings.clip_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        yield loss.item()


def timed_curves(runs: dict[str, Iterator[float]], count: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Losses and seconds of each of `count` steps of each run, taken in turn."""
    losses = {name: list[float]() for name in runs}
    seconds = {name: list[float]() for name in runs}
    for _ in range(count):
        for name, steps in runs.items():
            start = time.perf_counter()
            loss = next(steps)
            seconds[name].append(time.perf_counter() - start)
            losses[name].append(loss)
            print(f"step {len(losses[name])}, {name}: loss {loss:.4f}, {seconds[name][-1]:.2f} s", flush=True)
    return losses, seconds


def write_curves(losses: dict[str, list[float]], folder: Path) -> None:
    """loss.csv and loss.png in `folder`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "loss.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["step", *losses])
        writer.writerows([step, *values] for step, values in enumerate(zip(*losses.values(), strict=True), start=1))
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, values in losses.items():
        axes.plot(range(1, len(values) + 1), values, label=name)
    axes.set(title="maskrcnn resnet50: the same crops, weights and random numbers", xlabel="step", ylabel="loss")
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=110)


def profile_step(settings: TrainSettings, folder: Path) -> None:
    """Print the operators in which the second step of ours spends most of its own time."""
    steps = our_steps(settings, folder)
    next(steps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        next(steps)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=45))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=int, nargs="?", default=10)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("dist/benchmarks/training"))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--crop-size", type=int, default=SETTINGS.crop_size, help="smaller: only to see that it works")
    parser.add_argument("--batch-size", type=int, default=SETTINGS.batch_size)
    parser.add_argument("--heads-dtype", default=SETTINGS.heads_dtype, help="of ours (default: %(default)s)")
    options = parser.parse_args()
    use_vendored_packages()
    settings = replace(
        SETTINGS,
        iterations=max(options.steps, 2),
        crop_size=options.crop_size,
        batch_size=options.batch_size,
        heads_dtype=options.heads_dtype,
    )
    with tempfile.TemporaryDirectory() as temporary:
        if options.profile:
            profile_step(settings, Path(temporary))
            return
        runs = {"ours": our_steps(settings, Path(temporary)), "plain": plain_steps(settings)}
        losses, seconds = timed_curves(runs, settings.iterations)
    write_curves(losses, options.folder)
    ours, plain = (median(seconds[name][1:]) for name in runs)
    difference = max(abs(one - other) / other for one, other in zip(losses["ours"], losses["plain"], strict=True))
    print(f"{torch.get_num_threads()} threads, {settings.batch_size} crops of {settings.crop_size} pixels a step")
    print(f"ours: {settings.dtype}, heads in {settings.heads_dtype}, channels last, crop first")
    print(f"ours {ours:.2f} s, the plain loop {plain:.2f} s a step, ratio {plain / ours:.2f}")
    print(f"largest relative difference of the losses over {len(losses['ours'])} steps: {difference:.2%}")
    print(f"curves: {options.folder / 'loss.csv'}, {options.folder / 'loss.png'}")


if __name__ == "__main__":
    main()
