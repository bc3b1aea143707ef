"""The built script on this machine, as Kaggle would run it: same file, same mounts, its own process, offline.

What it leaves is checked and drawn. Only drawing and checking need numpy and OpenCV.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from kernel.errors import InputError, RunError
from kernel.folders import make_read_only, replace_folder, scratch_folder
from kernel.local_weights import FoundWeights
from kernel.manifest.types import Manifest

if TYPE_CHECKING:
    import numpy as np

#: What a dry run leaves.
RESULT_NAMES = ("submission.csv", "summary.json", "pictures")
#: After the script's end its workers have this long to end as well, and to say what is left to say.
RELAY_SECONDS = 30.0
#: Files above this are linked into the staged mounts where that is possible, not copied.
LINK_ABOVE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class DryRun:
    """What a dry run left behind."""

    folder: Path  # submission.csv, summary.json, pictures/
    exit_code: int  # the script's own
    cells: Mapping[str, int]  # cells per image
    cell_types: Mapping[str, str]  # by image, those that have a result
    failed: Mapping[str, str]  # why an image has no result, by image


def run_dry(
    script: Path,
    manifest: Manifest,
    wheels: Path,
    weights: Sequence[FoundWeights],
    images: Path,
    out: Path,
    limit: int | None = None,
    device: str | None = None,
) -> DryRun:
    """Run the built `script` on the images of a folder; the results are in `out`/dry-run when it returns.

    The mounts are staged read-only in a scratch folder below `out`: the competition's test images, the wheel
    dataset, the weight datasets.

    Args:
        script: the built kernel.py.
        manifest: what it was built from.
        wheels: folder of the wheel dataset.
        weights: the members' weight files.
        images: folder of images.
        out: folder for the results, and for the scratch folder meanwhile.
        limit: only the first so many images by name.
        device: as KERNEL_DEVICE; None: the environment's KERNEL_DEVICE, or the GPUs that torch can compute on.

    Raises:
        InputError: a folder without images, or what the script refuses.
        RunError: the script leaves no submission, or one that Kaggle would refuse, or has a result for no image though
            they are not at fault.
    """
    check_device(device)
    device = device or usable_device()
    chosen = choose_images(images, limit)
    with scratch_folder(out, "dry-run") as scratch:
        inputs, working, results = scratch / "input", scratch / "working", scratch / "results"
        working.mkdir()
        results.mkdir()
        stage_mounts(inputs, manifest, wheels, weights, chosen)
        shown = StagedPaths(inputs, manifest, wheels, weights, images, working, out / "dry-run").shown
        code = run_script(script, inputs, working, device, shown, manifest.time_limit_hours)
        submission, summary = working / "submission.csv", working / "summary.json"
        if not submission.is_file():
            failure = InputError if code == 2 else RunError
            raise failure(f"the script ended with exit code {code} and left no submission.csv: see its log above")
        found = read_summary(summary)
        failed = {image_id: shown(reason) for image_id, reason in found.get("failed", {}).items()}
        found |= {"failed": failed} if failed else {}
        refuse_failed_run(found)
        types = cell_types_of(found)
        cells = check_and_draw(submission, chosen, types, failed, results / "pictures")
        shutil.copyfile(submission, results / "submission.csv")
        if summary.is_file():
            text = json.dumps(found, indent=1) + "\n"
            (results / "summary.json").write_text(text, encoding="utf-8", newline="\n")
        replace_folder(results, out / "dry-run")
    return DryRun(out / "dry-run", code, cells, types, failed)


def check_device(device: str | None) -> None:
    """Refuse a `device` that no machine has, or not this one.

    Raises:
        InputError: with what is allowed.
    """
    if device is None:
        return
    names = [re.fullmatch(r"(cpu)|cuda(?::(\d+))?", name.strip()) for name in device.split(",")]
    if None in names:
        raise InputError(f"--device {device}: allowed are cpu, cuda and cuda:N, or several with commas between")
    gpus = [int(name[2] or 0) for name in names if name is not None and name[1] is None]
    if gpus:
        import torch  # takes seconds

        count = torch.cuda.device_count()
        if max(gpus) >= count:
            raise InputError(f"--device {device}: this machine has cpu and {count} GPU(s) (cuda, cuda:1, ...)")


def usable_device() -> str | None:
    """The KERNEL_DEVICE to give to the script where the user names none; None: the environment's, or its own choice.

    By itself it takes all GPUs, since a run on Kaggle has to end where torch can compute on none of them: another
    accelerator is to be chosen there. Here the GPUs are used that torch can compute on, else the CPU.
    """
    if os.environ.get("KERNEL_DEVICE") or find_spec("torch") is None:
        return None
    import torch  # takes seconds

    from kernel.gpus import usable_gpus

    usable = [f"cuda:{index}" for index in usable_gpus()]
    return None if len(usable) == torch.cuda.device_count() else ",".join(usable) or "cpu"


class StagedPaths:
    """Whose places the staged ones stand for: people know their own.

    Args:
        inputs: the staged mounts.
        manifest, wheels, weights: what is staged, as `run_dry` takes it.
        images: the folder of the images.
        working: the script's working folder.
        results: where its results go.
    """

    def __init__(
        self,
        inputs: Path,
        manifest: Manifest,
        wheels: Path,
        weights: Sequence[FoundWeights],
        images: Path,
        working: Path,
        results: Path,
    ):
        datasets = inputs.resolve() / "datasets"
        own = {
            inputs.resolve() / "competitions" / manifest.kernel.competition / "test": images,
            datasets / manifest.wheels_dataset: wheels,
            working.resolve(): results,
        }
        for found in weights:
            own[datasets / manifest.datasets_for(found.member)[0] / str(found.member.file)] = found.path
        # The longest first: a file in a dataset before the dataset.
        self._own = sorted(((str(staged), str(path)) for staged, path in own.items()), key=lambda pair: -len(pair[0]))

    def shown(self, text: str) -> str:
        """A text with the user's own paths for the staged ones."""
        for staged, path in self._own:
            text = text.replace(staged, path)
        return text


def choose_images(folder: Path, limit: int | None = None) -> list[Path]:
    """The images of a folder, by name, at most `limit`.

    Raises:
        InputError: as `kernel.images.reading.list_images` does.
    """
    from kernel.images.reading import list_images

    return list_images(folder)[:limit]


def stage_mounts(
    inputs: Path, manifest: Manifest, wheels: Path, weights: Sequence[FoundWeights], images: Sequence[Path]
) -> None:
    """Lay out `inputs` as Kaggle does, from files on this machine, and make it read-only."""
    test = inputs / "competitions" / manifest.kernel.competition / "test"
    test.mkdir(parents=True)
    for path in images:
        stage_file(path, test / path.name)
    for dataset in dict.fromkeys([manifest.wheels_dataset, *manifest.all_weight_datasets]):
        (inputs / "datasets" / dataset).mkdir(parents=True)
    for path in sorted(wheels.glob("*.whl")):
        stage_file(path, inputs / "datasets" / manifest.wheels_dataset / path.name)
    for found in weights:
        home = inputs / "datasets" / manifest.datasets_for(found.member)[0]
        stage_file(found.path, home / str(found.member.file))
    make_read_only(inputs)


def stage_file(source: Path, target: Path) -> None:
    """Put a file in its place: a copy, or for large ones a hard link where the file system allows it.

    Not on Windows: a link to a read-only file cannot be deleted there without making that file writable.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size > LINK_ABOVE_BYTES and os.name == "posix":
        try:
            target.hardlink_to(source.resolve())
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)
    else:
        shutil.copyfile(source, target)


def run_script(
    script: Path, inputs: Path, working: Path, device: str | None, shown: Callable[[str], str], limit_hours: float = 9.0
) -> int:
    """Run the script as a process of its own, its log going where ours goes, each line as `shown` makes it.

    `-I` keeps this checkout, the user's packages and PYTHON* variables away from it.

    Returns:
        Its exit code.

    Raises:
        RunError: it has not ended after `limit_hours`.
    """
    environment = dict(os.environ)
    environment["KERNEL_INPUT_ROOT"] = str(inputs.resolve())
    environment["KERNEL_WORKING"] = str(working.resolve())
    if device is not None:
        environment["KERNEL_DEVICE"] = device
    process = subprocess.Popen(
        [sys.executable, "-I", "-X", "utf8", str(script.resolve())],
        env=environment,
        cwd=working,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    pairs = ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    relays = [threading.Thread(target=relay, args=(*pair, shown), daemon=True) for pair in pairs]
    try:
        for thread in relays:
            thread.start()
        code = process.wait(limit_hours * 3600)
        for thread in relays:
            thread.join(RELAY_SECONDS)
        return code
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"the script has not ended after {limit_hours:g} h, the manifest's time_limit_hours, and was ended, as "
            "Kaggle would: see its log above; fewer images (--limit) take less"
        ) from error
    finally:
        process.kill()  # does nothing where it has ended
        process.wait()


def relay(source: BinaryIO, target: TextIO, shown: Callable[[str], str]) -> None:
    """Write what comes from `source` to `target`, each line as `shown` makes it; those of progress bars end in CR."""
    with io.TextIOWrapper(source, encoding="utf-8", errors="backslashreplace", newline="") as lines:
        for line in lines:
            target.write(shown(line))
            target.flush()


def read_summary(path: Path) -> dict[str, Any]:
    """The script's summary, empty where it wrote none.

    Raises:
        RunError: it is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"the script's {path.name} is not JSON: {error}") from error
    return summary if isinstance(summary, dict) else {}


def cell_types_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """Each image's cell type, as the summary has it under "images"; images that failed have none."""
    return {image_id: entry["cell_type"] for image_id, entry in summary.get("images", {}).items()}


def refuse_failed_run(summary: Mapping[str, Any]) -> None:
    """Refuse a run without any result, unless all images are themselves at fault.

    The exit code does not show that: a scoring run ends with 0 all the same.

    Raises:
        RunError: no image has a result, and some are not at fault.
    """
    failed, wrong = summary.get("failed", {}), summary.get("wrong_images", [])
    reasons = [reason for image_id, reason in failed.items() if image_id not in wrong]
    if reasons and not summary.get("images"):
        each = "; ".join(list(dict.fromkeys(reasons))[:3])
        raise RunError(
            f"none of the {len(failed)} image(s) has a result, and for {len(reasons)} the image is not at fault: "
            f"{each}; the script, a library's version or the machine is at fault: see the script's log above before "
            "you push this kernel"
        )


def check_and_draw(
    submission: Path,
    images: Sequence[Path],
    cell_types: Mapping[str, str],
    failed: Mapping[str, str],
    pictures: Path,
) -> dict[str, int]:
    """Check a submission against the images and draw a picture of each that can be read and has not `failed`.

    Returns:
        Cells per image.

    Raises:
        RunError: Kaggle would refuse the submission, or reading an image that the script has read fails here through no
            fault of the image.
    """
    from kernel.images.reading import read_image
    from kernel.postprocess.pictures import draw_picture
    from kernel.postprocess.submitted import validate_submission
    from kernel.runtime.failures import FailedImage, attempt

    def read_if_right(path: Path) -> np.ndarray | None:
        try:
            return read_image(path)
        except InputError:
            return None

    pixels: dict[str, np.ndarray] = {}
    for path in images:
        if path.stem in failed:
            continue  # the script has logged why, and given the image its empty row
        image = attempt(path.stem, partial(read_if_right, path))
        if isinstance(image, FailedImage):
            raise RunError(f"{path} cannot be read here, and is not at fault: {image.reason}")
        if image is not None:
            pixels[path.stem] = image
    shapes = {path.stem: (0, 0) for path in images}
    for image_id, image in pixels.items():
        shapes[image_id] = (image.shape[0], image.shape[1])
    try:
        rles = validate_submission(submission, shapes)
    except InputError as error:
        raise RunError(f"the script's submission is not valid: {error}") from error
    pictures.mkdir(parents=True)
    for image_id, image in pixels.items():
        cell_type = cell_types.get(image_id)
        count = len(rles[image_id])
        caption = f"{image_id}: {count} cell{'' if count == 1 else 's'}" + (f", {cell_type}" if cell_type else "")
        draw_picture(pictures / f"{image_id}.png", image, rles[image_id], caption)
    return {image_id: len(texts) for image_id, texts in rles.items()}
