"""The built script, run dry with the synthetic members: the same as the package, offline, whatever the images are.

The environment of the tests holds no mmcv and no mmdet, so the script can only have them from its wheels.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

import build_kernel
from kernel.data.synthetic.generate import generate_image
from kernel.ensemble.load import load_ensemble
from kernel.images.reading import list_images, read_image
from kernel.local_weights import resolve_weights
from kernel.main import SCORING_RUN_VARIABLE
from kernel.manifest.reader import read_manifest
from kernel.postprocess.submitted import read_submission, validate_submission
from kernel.segment import segment_image

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "bundle" / "synthetic"

pytestmark = pytest.mark.xdist_group("script")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of each type as PNG, 16 bit TIFF and colour JPEG, of odd sizes, and an image without cells."""
    folder = tmp_path_factory.mktemp("images")
    cv2.imwrite(str(folder / "cort.png"), generate_image("cort", 3, (160, 224)).image)
    deep = generate_image("shsy5y", 4, (160, 192)).image.astype(np.uint16) * 16
    cv2.imwrite(str(folder / "shsy5y.tif"), deep)
    colour = np.repeat(generate_image("astro", 5, (160, 200)).image[..., None], 3, axis=2)
    cv2.imwrite(str(folder / "astro.jpg"), colour)
    cv2.imwrite(str(folder / "nothing.png"), np.full((70, 90), 128, np.uint8))
    return folder


@pytest.fixture(scope="module")
def dry_run(images: Path, wheels_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `build_kernel.py --dry-run` leaves for those images."""
    out = tmp_path_factory.mktemp("dist")
    shutil.copytree(wheels_dir, out / "wheels")
    arguments = ["--manifest", str(DEMO / "manifest.json"), "--out", str(out), "--device", "cpu"]
    assert build_kernel.main([*arguments, "--dry-run", "--images", str(images)]) == 0
    return out


def test_the_environment_has_no_mmdet_of_its_own() -> None:
    installed = {distribution.metadata["Name"].lower() for distribution in importlib.metadata.distributions(path=[
        path for path in sys.path if "site-packages" in path
    ])}  # fmt: skip
    assert not installed & {"mmdet", "mmcv", "mmcv-full"}


def test_script_and_package_give_the_same_submission(images: Path, dry_run: Path, wheels_site: Path) -> None:
    manifest, found = resolve_weights(read_manifest(DEMO / "manifest.json"), DEMO / "weights")
    ensemble = load_ensemble(manifest, {weights.member.name: weights.path for weights in found}, "cpu")
    submitted = read_submission(dry_run / "dry-run" / "submission.csv")
    assert sorted(submitted) == ["astro", "cort", "nothing", "shsy5y"]
    for path in list_images(images):
        assert segment_image(ensemble, read_image(path)).masks.rles() == submitted[path.stem]
    assert submitted["nothing"] == []
    assert all(submitted[cell_type] for cell_type in ("astro", "cort", "shsy5y"))


def test_summary_and_pictures(images: Path, dry_run: Path) -> None:
    summary = json.loads((dry_run / "dry-run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["members"] == ["maskrcnn", "cascade", "htc"] and summary["failed"] == {}
    assert set(summary["stage_seconds"]) == {"features", "proposals", "boxes", "masks"}
    assert summary["peak_memory_gb"] > 0
    submitted = read_submission(dry_run / "dry-run" / "submission.csv")
    assert {name: told["cells"] for name, told in summary["images"].items()} == {
        name: len(rles) for name, rles in submitted.items()
    }
    for path in list_images(images):
        picture = cv2.imread(str(dry_run / "dry-run" / "pictures" / f"{path.stem}.png"))
        assert picture.shape[1] % read_image(path).shape[1] == 0


def test_a_broken_image_costs_only_its_own_row(images: Path, dry_run: Path, tmp_path: Path) -> None:
    """Exit code 2 says so, but in the scoring run, where anything but 0 discards the submission."""
    inputs = tmp_path / "input"
    test = inputs / "sartorius-cell-instance-segmentation" / "test"  # the older, flat form of the mounts
    test.mkdir(parents=True)
    shutil.copy(images / "cort.png", test / "cort.png")
    (test / "broken.png").write_bytes((images / "cort.png").read_bytes()[:500])
    shutil.copytree(dry_run / "wheels", inputs / "mmdet-pure-python-wheels")
    shutil.copytree(DEMO / "weights", inputs / "in-network-ensemble-demo-weights")
    for variables, code in (({}, 2), ({SCORING_RUN_VARIABLE: "1"}, 0)):
        working = tmp_path / f"working{code}"
        working.mkdir()
        given = {"KERNEL_INPUT_ROOT": str(inputs), "KERNEL_WORKING": str(working), "KERNEL_DEVICE": "cpu"}
        done = subprocess.run(
            [sys.executable, "-I", str(dry_run / "kernel" / "kernel.py")],
            env={**os.environ, **given, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "broken.png: the PNG is truncated" in done.stdout and "Traceback" not in done.stdout + done.stderr
        submitted = read_submission(working / "submission.csv")
        assert submitted["broken"] == []
        assert submitted["cort"] == read_submission(dry_run / "dry-run" / "submission.csv")["cort"]
        summary = json.loads((working / "summary.json").read_text(encoding="utf-8"))
        assert list(summary["failed"]) == ["broken"]


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"KERNEL_INPUT_ROOT": "gone"}, "no folder gone, named by KERNEL_INPUT_ROOT"),
        ({"KERNEL_WORKING": "gone"}, "no folder gone: run this on Kaggle, or set KERNEL_WORKING"),
        ({}, "competition sartorius-cell-instance-segmentation is not mounted under"),
    ],
)
def test_what_is_wrong_is_told_by_the_script(
    dry_run: Path, tmp_path: Path, variables: dict[str, str], told: str
) -> None:
    run_wrong(dry_run, tmp_path, variables, told)
    assert not (tmp_path / "submission.csv").exists()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"KERNEL_DEVICE": "tpu"}, "KERNEL_DEVICE is 'tpu'"),
        ({"KERNEL_DTYPE": "int8"}, "KERNEL_DTYPE is 'int8'; allowed are float32, float16, bfloat16"),
    ],
)
def test_what_is_wrong_with_devices_comes_after_a_valid_submission(
    dry_run: Path, images: Path, tmp_path: Path, variables: dict[str, str], told: str
) -> None:
    test = tmp_path / "competitions" / "sartorius-cell-instance-segmentation" / "test"
    shutil.copytree(images, test)
    run_wrong(dry_run, tmp_path, variables, told)
    rows = (tmp_path / "submission.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "id,predicted" and len(rows) > 1 and all(row.endswith(",") for row in rows[1:])


def run_wrong(dry_run: Path, folder: Path, variables: dict[str, str], told: str) -> None:
    """Run the script where something is wrong, which it must tell in one line."""
    given = {"KERNEL_INPUT_ROOT": str(folder), "KERNEL_WORKING": str(folder), "KERNEL_DEVICE": "cpu"}
    done = subprocess.run(
        [sys.executable, "-I", str(dry_run / "kernel" / "kernel.py")],
        env={**os.environ, **given, **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and told in done.stdout and "Traceback" not in done.stdout + done.stderr


def run_built(
    dry_run: Path, images: Path, working: Path, devices: str, launcher: Sequence[str] = ("-I",)
) -> subprocess.Popen[str]:
    """Start the built script on images, laid out below `working`, on one thread for each device."""
    inputs = working / "input"
    test = inputs / "competitions" / "sartorius-cell-instance-segmentation" / "test"
    shutil.copytree(images, test)
    shutil.copytree(dry_run / "wheels", inputs / "mmdet-pure-python-wheels")
    shutil.copytree(DEMO / "weights", inputs / "in-network-ensemble-demo-weights")
    given = {"KERNEL_INPUT_ROOT": str(inputs), "KERNEL_WORKING": str(working), "KERNEL_DEVICE": devices}
    return subprocess.Popen(
        [sys.executable, *launcher, str(dry_run / "kernel" / "kernel.py")],
        env={**os.environ, **given, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


#: As OpenCV does up to 4.12 where a script asks for what 4.13 brought.
BROKEN_READING = """
def read_image(path):
    raise AttributeError("module 'cv2.utils' has no attribute 'logging'")


read_image_shape = read_image


if __name__ == "__main__":"""


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_a_script_that_can_read_no_image_says_so_at_once(
    images: Path, dry_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: str
) -> None:
    """And the scoring run still has its submission."""
    monkeypatch.setenv(SCORING_RUN_VARIABLE, "1")
    (tmp_path / "kernel").mkdir()
    (tmp_path / "wheels").symlink_to(dry_run / "wheels")
    script = (dry_run / "kernel" / "kernel.py").read_text(encoding="utf-8")
    start, ending = script.rsplit('if __name__ == "__main__":', 1)
    (tmp_path / "kernel" / "kernel.py").write_text(start + BROKEN_READING + ending, encoding="utf-8")
    log, _ = run_built(tmp_path, images, tmp_path, devices).communicate()
    (loud,) = [line for line in log.splitlines() if " CRITICAL " in line]
    assert "NO RESULT FOR THE FIRST 3 IMAGE(S), AND THE IMAGES ARE NOT AT FAULT, ALL FOR THE SAME REASON: Attr" in loud
    assert log.index(loud) < log.index("wrote ")
    assert "ending with exit code 0 all the same" in log
    assert read_submission(tmp_path / "submission.csv") == {name: [] for name in ("astro", "cort", "nothing", "shsy5y")}
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert len(summary["failed"]) == 4 and summary["wrong_images"] == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are found in /proc")
def test_two_devices_are_as_good_as_one_and_one_may_die(images: Path, dry_run: Path, tmp_path: Path) -> None:
    """The last time, the process of one device is killed when an image is done."""
    submissions = []
    for name, devices, kill in (("one", "cpu", False), ("two", "cpu,cpu", False), ("killed", "cpu,cpu", True)):
        (tmp_path / name).mkdir()
        script = run_built(dry_run, images, tmp_path / name, devices)
        assert script.stdout
        log = []
        for line in script.stdout:
            log.append(line)
            if kill and " INFO image " in line:
                children = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text(encoding="ascii").split()
                assert len(children) == 2
                os.kill(int(children[0]), signal.SIGKILL)
                kill = False
        assert script.wait() == 0, "".join(log)
        assert ("has died and is started again" in "".join(log)) == (name == "killed")
        submissions.append((tmp_path / name / "submission.csv").read_bytes())
        summary = json.loads((tmp_path / name / "summary.json").read_text(encoding="utf-8"))
        assert len(summary["images"]) == 4 and summary["failed"] == {}
        used = {told["device"] for told in summary["images"].values()}
        # One that starts late or dies early may have done none.
        assert used == set(summary["devices"]) <= ({"cpu"} if name == "one" else {"cpu#1", "cpu#2"})
        assert {told["quality"] for told in summary["images"].values()} == {"full"}
    assert submissions[0] == submissions[1] == submissions[2]
    assert submissions[0].count(b"\n") > 8


def test_three_processes_of_torchrun_are_as_good_as_one(images: Path, dry_run: Path, tmp_path: Path) -> None:
    """Four images over three processes; only the results of all are left."""
    submissions = []
    for processes in (1, 3):
        working = tmp_path / str(processes)
        working.mkdir()
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        script = run_built(dry_run, images, working, "cpu", torchrun)
        told, _ = script.communicate()
        assert script.returncode == 0, told
        assert sorted(path.name for path in working.iterdir()) == ["input", "submission.csv", "summary.json"]
        submissions.append((working / "submission.csv").read_bytes())
        summary = json.loads((working / "summary.json").read_text(encoding="utf-8"))
        assert list(summary["images"]) == ["astro", "cort", "nothing", "shsy5y"] and summary["failed"] == {}
        assert len(summary["devices"]) == processes
    assert submissions[0] == submissions[1] == (dry_run / "dry-run" / "submission.csv").read_bytes()


def without_network() -> list[str] | None:
    """What starts a process in a network namespace without an interface; None where this machine does not let us."""
    for options in (["-n"], ["-r", "-n"]):  # as root, and as anybody else
        command = ["unshare", *options]
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return None


WITHOUT_NETWORK = without_network()


@pytest.mark.skipif(WITHOUT_NETWORK is None, reason="network namespaces cannot be made here (unshare -n)")
def test_dry_run_on_the_demos_images_without_any_network(wheels_dir: Path, tmp_path: Path) -> None:
    assert WITHOUT_NETWORK
    shutil.copytree(wheels_dir, tmp_path / "wheels")
    arguments = ["--manifest", str(DEMO / "manifest.json"), "--out", str(tmp_path), "--device", "cpu"]
    command = [sys.executable, str(ROOT / "build_kernel.py"), *arguments, "--dry-run", "--images", str(DEMO / "images")]
    done = subprocess.run([*WITHOUT_NETWORK, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shapes = {path.stem: read_image(path).shape[:2] for path in list_images(DEMO / "images")}
    found = validate_submission(tmp_path / "dry-run" / "submission.csv", shapes)
    assert len(found) == 3 and all(found.values())
