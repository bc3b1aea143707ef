"""The dry run: mounts as on Kaggle, a process of its own, results whole or not at all."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from bundle.dry_run import DryRun, choose_images, run_dry
from kernel.errors import InputError, RunError
from kernel.folders import remove_folder, replace_folder, scratch_folder
from kernel.local_weights import FoundWeights
from kernel.manifest.types import KernelIdentity, Manifest, MemberEntry

MEMBER = MemberEntry("one", "htc", "resnet50", ("shsy5y", "astro", "cort"), dataset="you/weights", file="run/a.pt")
MANIFEST = Manifest(KernelIdentity("me/some-kernel", "Some kernel", "cells"), "me/wheels", (MEMBER,))

#: What stands in for the built script: writes down what it sees, and a submission.
SCRIPT = """
import json, os, pathlib, sys
root, working = pathlib.Path(os.environ["KERNEL_INPUT_ROOT"]), pathlib.Path(os.environ["KERNEL_WORKING"])
seen = {str(p.relative_to(root)): oct(p.stat().st_mode)[-3:] for p in sorted(root.rglob("*")) if p.is_file()}
ids = sorted(p.stem for p in (root / "competitions/cells/test").iterdir())
rows = ["id,predicted"] + [f"{i},ROW" for i in ids]
(working / "submission.csv").write_text("\\n".join(rows) + "\\n")
images = {i: {"cell_type": "cort"} for i in ids}
device, isolated, here = os.environ.get("KERNEL_DEVICE"), sys.flags.isolated, pathlib.Path.cwd().name
told = {"images": images, "seen": seen, "device": device, "isolated": isolated, "cwd": here}
(working / "summary.json").write_text(json.dumps(told))
raise SystemExit(CODE)
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with images, wheels and weights."""
    (tmp_path / "images").mkdir()
    for name in ("b", "a", "c"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((40, 60), 128, np.uint8))
    (tmp_path / "images" / "notes.txt").write_text("no image", encoding="utf-8")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "mmcv-1.whl").write_bytes(b"PK")
    (tmp_path / "wheels" / "dataset-metadata.json").write_text("{}", encoding="utf-8")
    (tmp_path / "a.pt").write_bytes(b"weights")
    return tmp_path


def run_with(here: Path, row: str = "", code: int = 0, script: str = SCRIPT, **options: object) -> DryRun:
    path = here / "script.py"
    path.write_text(script.replace("ROW", row).replace("CODE", str(code)), encoding="utf-8")
    weights = [FoundWeights(MEMBER, here / "a.pt")]
    return run_dry(path, MANIFEST, here / "wheels", weights, here / "images", here / "out", **options)  # type: ignore[arg-type]


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.name.startswith("."))


def test_the_script_sees_kaggles_mounts(here: Path) -> None:
    done = run_with(here, row="1 3 61 3", device="cpu", limit=2)
    assert done.exit_code == 0 and done.cells == {"a": 1, "b": 1} and done.cell_types == {"a": "cort", "b": "cort"}
    told = json.loads((done.folder / "summary.json").read_text(encoding="utf-8"))
    assert set(told["seen"]) == {
        "competitions/cells/test/a.png",
        "competitions/cells/test/b.png",
        "datasets/me/wheels/mmcv-1.whl",
        "datasets/you/weights/run/a.pt",
    }
    assert set(told["seen"].values()) == {"444"}
    assert (told["device"], told["isolated"], told["cwd"]) == ("cpu", 1, "working")
    assert sorted(path.name for path in (done.folder / "pictures").iterdir()) == ["a.png", "b.png"]
    assert (here / "images" / "a.png").stat().st_mode & 0o200, "the user's own files keep their rights"
    assert leftovers(here / "out") == []


@pytest.mark.parametrize(("device", "seen"), [(None, "cpu,cpu"), ("cpu", "cpu")])
def test_the_users_device_reaches_the_script(
    here: Path, monkeypatch: pytest.MonkeyPatch, device: str | None, seen: str
) -> None:
    monkeypatch.setenv("KERNEL_DEVICE", "cpu,cpu")
    done = run_with(here, device=device, limit=1)
    assert json.loads((done.folder / "summary.json").read_text(encoding="utf-8"))["device"] == seen


def test_no_cells_and_an_unreadable_image(here: Path) -> None:
    (here / "images" / "b.png").write_bytes(b"broken")
    done = run_with(here, code=2)
    assert done.exit_code == 2 and done.cells == {"a": 0, "b": 0, "c": 0}
    assert sorted(path.name for path in (done.folder / "pictures").iterdir()) == ["a.png", "c.png"]


#: The script where reading or a network fails. FAILED: reasons by image; WRONG: images that are themselves at fault.
FAILING = SCRIPT.replace(
    "told = {",
    """failed = FAILED
images = {i: told for i, told in images.items() if i not in failed}
told = {"failed": failed, "wrong_images": WRONG, """,
)
FAULT = "AttributeError: module 'cv2.utils' has no attribute 'logging'"


def failing(failed: dict[str, str], wrong: list[str]) -> str:
    return FAILING.replace("FAILED", repr(failed)).replace("WRONG", repr(wrong))


@pytest.mark.parametrize("code", [0, 1])  # 0: a scoring run
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            [],
            "none of the 3 image\\(s\\) has a result, and for 3 the image is not at fault: AttributeError: module 'cv2",
        ),
        (["b"], "none of the 3 image\\(s\\) has a result, and for 2 the image is not at fault: AttributeError"),
    ],
)
def test_a_run_that_fails_on_every_image_is_a_failure(here: Path, code: int, wrong: list[str], told: str) -> None:
    before = run_with(here, row="1 3 61 3").folder
    kept = (before / "submission.csv").read_bytes()
    with pytest.raises(RunError, match=told):
        run_with(here, code=code, script=failing(dict.fromkeys("abc", FAULT), wrong))
    assert (before / "submission.csv").read_bytes() == kept
    assert leftovers(here / "out") == []


def test_images_that_failed_are_told_and_not_read_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_png_alone(path: Path) -> np.ndarray:
        if path.stem == "b":
            raise AttributeError("logging")
        return np.zeros((40, 60, 3), np.uint8)

    monkeypatch.setattr("kernel.images.reading.read_image", read_png_alone)
    done = run_with(here, code=1, script=failing({"b": FAULT}, []))
    assert done.exit_code == 1 and done.failed == {"b": FAULT} and done.cells == {"a": 0, "b": 0, "c": 0}
    assert sorted(path.name for path in (done.folder / "pictures").iterdir()) == ["a.png", "c.png"]
    with pytest.raises(RunError, match=r"b\.png cannot be read here, and is not at fault: AttributeError: logging"):
        run_with(here)


def test_wrong_images_alone_are_no_failure_of_the_run(here: Path) -> None:
    done = run_with(here, code=2, script=failing(dict.fromkeys("abc", "the PNG is truncated"), ["a", "b", "c"]))
    assert done.exit_code == 2 and set(done.failed) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("raise SystemExit(1)", "exit code 1 and left no submission"),
        (SCRIPT.replace("ROW", "0 3"), "the script's submission is not valid"),
        (SCRIPT.replace("json.dumps(told)", "'{'"), "summary.json is not JSON"),
    ],
)
def test_a_failed_run_leaves_the_last_results(here: Path, script: str, told: str) -> None:
    before = run_with(here).folder
    kept = (before / "submission.csv").read_bytes()
    with pytest.raises(RunError, match=told):
        run_with(here, script=script)
    assert (before / "submission.csv").read_bytes() == kept
    assert leftovers(here / "out") == []


def test_wrong_images_and_limit(here: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        choose_images(here / "gone")
    assert [path.name for path in choose_images(here / "images", 2)] == ["a.png", "b.png"]
    (here / "images" / "a.png").rename(here / "images" / 'a,"1.png')
    assert [path.name for path in choose_images(here / "images", 1)] == ['a,"1.png']


@pytest.mark.parametrize("device", ["bogus", "", "cpu,tpu", "cuda:", "cuda:x", "gpu", "cpu;rm"])
def test_a_device_that_no_machine_has_is_refused(here: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"--device {device}: allowed are cpu, cuda and cuda:N"):
        run_with(here, device=device)
    assert not (here / "out").exists()


def test_what_the_script_refuses_is_wrong_input(here: Path) -> None:
    with pytest.raises(InputError, match="exit code 2 and left no submission"):
        run_with(here, script="raise SystemExit(2)")


#: The script where it tells of all its places, on both streams, as a progress bar does too.
TELLING = """
import os, pathlib, sys
root, working = os.environ["KERNEL_INPUT_ROOT"], os.environ["KERNEL_WORKING"]
print(f"image {root}/competitions/cells/test/a.png, weights {root}/datasets/you/weights/run/a.pt", flush=True)
print(f"wheels {root}/datasets/me/wheels/mmcv-1.whl", flush=True)
sys.stderr.write(f"\\r 50% {working}/submission.csv\\r100% {working}/x")
sys.stderr.flush()
os.write(1, b"no text: Kan\\xe4le\\n")
"""


def test_messages_name_the_users_own_paths(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = {"b": "cannot read the image ' + str(root / 'competitions/cells/test/b.png') + ': truncated"}
    script = TELLING + failing(failed, ["b"]).replace('"cannot read the image', "'cannot read the image").replace(
        'truncated"', "truncated'"
    )
    done = run_with(here, code=2, script=script)
    told = capsys.readouterr()
    assert f"image {here / 'images' / 'a.png'}, weights {here / 'a.pt'}\n" in told.out
    assert f"wheels {here / 'wheels' / 'mmcv-1.whl'}\n" in told.out and "no text: Kan\\xe4le" in told.out
    assert f"\r 50% {here / 'out' / 'dry-run' / 'submission.csv'}\r100% " in told.err
    assert done.failed == {"b": f"cannot read the image {here / 'images' / 'b.png'}: truncated"}
    kept = json.loads((done.folder / "summary.json").read_text(encoding="utf-8"))
    assert kept["failed"] == done.failed
    assert ".dry-run-" not in told.out + told.err + str(kept["failed"])


# kernel/folders.py


def test_replacing_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for content in ("first", "second"):
        with scratch_folder(tmp_path, "new") as scratch:
            (scratch / "new").mkdir()
            (scratch / "new" / content).touch()
            replace_folder(scratch / "new", target)
        assert [path.name for path in tmp_path.iterdir()] == ["target"]
        assert [path.name for path in target.iterdir()] == [content]


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "new").mkdir()
    with pytest.raises(InputError, match="is a file"):
        replace_folder(tmp_path / "new", tmp_path / "target")
    with pytest.raises(InputError, match="cannot write into"), scratch_folder(tmp_path / "target", "x"):
        pass


def test_removing_nothing(tmp_path: Path) -> None:
    remove_folder(tmp_path / "gone")


def test_a_script_without_end_is_ended(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one that has stopped itself, which hears no other signal."""
    quick = replace(MANIFEST, time_limit_hours=2 / 3600)
    monkeypatch.setattr(sys.modules[__name__], "MANIFEST", quick)
    for script in ("import time; time.sleep(1e6)", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"):
        with pytest.raises(RunError, match=r"has not ended after 0\.000555556 h, the manifest's time_limit_hours"):
            run_with(here, script=script)
        assert leftovers(here / "out") == []
