"""The command line: what it writes, what it says, and how it fails. The real dry run is tested elsewhere."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import build_kernel
from bundle import build
from bundle.commands import common
from kernel.local_weights import FoundWeights
from kernel.manifest.reader import parse_manifest

ROOT = Path(__file__).resolve().parents[1]
WHEEL = {
    "name": "mmdet",
    "version": "1",
    "source": "mmdet-1.whl",
    "source_sha256": "0" * 64,
    "wheel": "mmdet-1.whl",
    "wheel_sha256": "0" * 64,
}


@pytest.fixture(autouse=True)
def no_manifest_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs these tests may have made one."""
    monkeypatch.setattr(common, "OWN_MANIFEST", tmp_path / "none.json")


@pytest.fixture
def built_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Wheels that need no network; the list grows by each folder that is written."""
    folders: list[Path] = []

    def build_wheels(out: Path, dataset_id: str) -> list[Path]:
        out.mkdir(parents=True, exist_ok=True)
        (out / "mmdet-1.whl").write_bytes(b"PK")
        metadata = {"id": dataset_id, "title": "Some wheels", "licenses": [{"name": "other"}]}
        (out / "dataset-metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
        folders.append(out)
        return [out / "mmdet-1.whl"]

    monkeypatch.setattr(build_kernel, "build_wheels", build_wheels)
    lock = tmp_path / "wheels.lock.json"
    lock.write_text(json.dumps({"packages": [WHEEL]}), encoding="utf-8")
    monkeypatch.setattr(build_kernel, "LOCK_PATH", lock)
    monkeypatch.setattr(build, "LOCK_PATH", lock)
    return folders


def test_build_of_the_published_ensemble(
    tmp_path: Path, built_wheels: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "dist"
    assert build_kernel.main(["--out", str(out)]) == 0
    assert sorted(path.name for path in (out / "kernel").iterdir()) == ["kernel-metadata.json", "kernel.py"]
    metadata = json.loads((out / "kernel" / "kernel-metadata.json").read_text(encoding="utf-8"))
    assert metadata["code_file"] == "kernel.py" and metadata["enable_internet"] is False
    assert built_wheels == [out / "wheels"]
    told = capsys.readouterr().out
    assert f"next: `python build_kernel.py push --out {out}` sends all of it" in told
    assert f"kaggle kernels push -p {out / 'kernel'}" in told and f"kaggle datasets create -p {out / 'wheels'}" in told
    assert "unverified:" in told and "13 member(s) name no weight file" in told


def test_two_builds_have_the_same_bytes(tmp_path: Path, built_wheels: list[Path]) -> None:
    written = []
    for name in ("one", "two", "one"):
        assert build_kernel.main(["--out", str(tmp_path / name)]) == 0
        written.append([path.read_bytes() for path in sorted((tmp_path / name / "kernel").iterdir())])
    assert written[0] == written[1] == written[2]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["kernel", "wheels"]


@pytest.mark.parametrize("name", ["write_wheels", "report_dry_run"])
def test_a_build_beside_another_in_the_same_folder_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    built_wheels: list[Path],
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """The other one starts while the first is at `name`; a push would send what the first has not finished."""
    demo = ROOT / "bundle" / "synthetic"
    words = ["--manifest", str(demo / "manifest.json"), "--weights-dir", str(demo / "weights")]
    out, other = ["--out", str(tmp_path / "dist")], ["--out", str(tmp_path / "other")]
    dry = ["--dry-run", "--device", "cpu"] if name == "report_dry_run" else []
    real, codes = getattr(build_kernel, name), []

    def beside(*given: object) -> int:
        monkeypatch.setattr(build_kernel, name, real)
        script = (tmp_path / "dist" / "kernel" / "kernel.py").read_bytes()
        codes.extend(build_kernel.main([*start, *words[:2], *out]) for start in ([], ["push", "--yes"]))
        assert (tmp_path / "dist" / "kernel" / "kernel.py").read_bytes() == script
        codes.append(build_kernel.main([*words, *other]))
        return 0

    monkeypatch.setattr(build_kernel, name, beside)
    assert build_kernel.main([*words, *out, *dry]) == 0
    assert codes == [2, 2, 0]
    refused = f"another run (its process is {os.getpid()}) builds in {tmp_path / 'dist'}, or pushes what is there: wait"
    assert capsys.readouterr().err.count(refused) == 2
    assert not [*tmp_path.rglob("*.lock")]
    (tmp_path / "dist" / ".kernel.lock").write_text("1", encoding="utf-8")  # of a build that was killed
    assert build_kernel.main([*words, *out]) == 0


def test_the_script_carries_the_manifest(tmp_path: Path, built_wheels: list[Path]) -> None:
    assert build_kernel.main(["--out", str(tmp_path)]) == 0
    names: dict[str, object] = {}
    script = (tmp_path / "kernel" / "kernel.py").read_text(encoding="utf-8")
    head = script[script.index("MANIFEST_JSON =") : script.index("# ====", script.index("WHEELS_LOCK_JSON ="))]
    exec(head, names)  # two assignments of literals
    published = (ROOT / "weights_manifest.json").read_text(encoding="utf-8")
    assert parse_manifest(str(names["MANIFEST_JSON"]), "script") == parse_manifest(published, "published")
    assert json.loads(str(names["WHEELS_LOCK_JSON"])) == {"packages": [WHEEL]}


def test_weights_are_filled_in(tmp_path: Path, built_wheels: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "mine.json"
    member = {"name": "one", "kind": "maskrcnn", "encoder": "resnet18_narrow", "use_for": ["shsy5y", "astro", "cort"]}
    data = {
        "kernel": {"id": "me/some-kernel", "title": "Some kernel", "competition": "cells"},
        "wheels_dataset": "me/wheels",
        "weight_datasets": ["me/weights"],
        "members": [member | {"file": "a.safetensors"}],
    }
    manifest.write_text(json.dumps(data), encoding="utf-8")
    (tmp_path / "files" / "weights").mkdir(parents=True)
    weights = build_kernel.ROOT / "bundle" / "synthetic" / "weights" / "maskrcnn.safetensors"
    shutil.copy(weights, tmp_path / "files" / "weights" / "a.safetensors")
    arguments = ["--manifest", str(manifest), "--out", str(tmp_path / "dist")]
    assert build_kernel.main([*arguments, "--weights-dir", str(tmp_path / "files")]) == 0
    filled = parse_manifest((tmp_path / "dist" / "manifest.json").read_text(encoding="utf-8"), "filled")
    assert filled.members[0].dataset == "me/weights" and filled.members[0].sha256
    assert "filled in" in capsys.readouterr().out
    assert '"dataset": "me/weights"' in (tmp_path / "dist" / "kernel" / "kernel.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["weights", ""])
def test_a_dry_run_takes_the_weights_from_where_members_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_wheels: list[Path], place: str
) -> None:
    """As `train-members` leaves them, in `weights` or beside the manifest."""
    taken: list[Path] = []

    def note(options: object, manifest: object, weights: list[FoundWeights]) -> int:
        taken.extend(found.path for found in weights)
        return 0

    demo = build_kernel.ROOT / "bundle" / "synthetic"
    shutil.copytree(demo / "weights", tmp_path / place, dirs_exist_ok=True)
    shutil.copy(demo / "manifest.json", tmp_path / "mine.json")
    monkeypatch.setattr(build_kernel, "report_dry_run", note)
    given = ["--manifest", str(tmp_path / "mine.json"), "--out", str(tmp_path / "dist"), "--dry-run"]
    assert build_kernel.main([*given, "--device", "cpu"]) == 0
    assert taken and {path.parent for path in taken} == {(tmp_path / place).resolve()}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--manifest", "gone.json"], "error: no manifest gone.json: name one that is there"),
        (["--manifest", "."], "error: . is no manifest"),
        (["--manifest", "bad.json"], "bad.json:1:1: not JSON"),
        (["--weights-dir", "gone"], "error: no folder gone: --weights-dir"),
        (["--dry-run"], "error: --dry-run needs the members' weights: give their folder by --weights-dir"),
        (["--out", "bad.json"], "error: cannot write bad.json ("),
        (["--manifest", "folds.json"], "here each needs one file: name that of one fold, htc_0.pt for example"),
        (["--manifest", "folds.json", "--weights-dir", "."], "here each needs one file"),
    ],
)
def test_what_is_wrong_is_told_without_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    built_wheels: list[Path],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("no JSON", encoding="utf-8")
    published = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))
    published["members"][0]["file"] = "htc_{fold}.pt"
    (tmp_path / "folds.json").write_text(json.dumps(published), encoding="utf-8")
    out = [] if "--out" in arguments else ["--out", "dist"]
    assert build_kernel.main([*out, *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "dist" / "kernel").exists()


def test_a_broken_rule_of_the_package_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_wheels: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    entry = tmp_path / "kernel" / "main.py"
    entry.parent.mkdir()
    entry.write_text("import pandas\n\n\ndef main(manifest, lock):\n    return pandas\n", encoding="utf-8")
    monkeypatch.setattr(build, "ENTRY", entry)
    assert build_kernel.main(["--out", str(tmp_path / "dist")]) == 2
    assert "kernel/main.py:1: pandas is not in Kaggle's image" in capsys.readouterr().err


def test_it_runs_from_anywhere_with_the_standard_library_alone(tmp_path: Path) -> None:
    """-S leaves out every installed package, -I the current folder."""
    script = "import sys; sys.path.insert(0, sys.argv.pop(1)); import build_kernel; build_kernel.main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(ROOT), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "--weights-dir" in done.stdout, done.stderr


@pytest.mark.parametrize("entry", ["build_kernel.py", "kernel/__main__.py"])
def test_old_pythons_are_told_before_they_read_any_module(entry: str) -> None:
    """None of Python 3.10 can be imported that is of later versions alone, as tomllib."""
    script = (
        "import runpy, sys; sys.version_info = (3, 10, 1); sys.modules['tomllib'] = None; "
        f"runpy.run_path({str(ROOT / entry)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "needs Python 3.11 or later" in done.stderr and "Traceback" not in done.stderr
    ast.parse((ROOT / entry).read_text(encoding="utf-8"), feature_version=(3, 8))


def test_what_the_file_system_refuses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a disk that gets full while weights are copied."""

    def fill(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "kernel.py"))

    monkeypatch.setattr(build_kernel, "write_kernel", fill)
    assert build_kernel.main(["--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("failed: ") and "No space left on device" in told and str(tmp_path / "kernel.py") in told


@pytest.mark.parametrize("folder", ["kernel", "dry-run"])
def test_a_folder_of_somebody_else_is_never_replaced(
    tmp_path: Path, built_wheels: list[Path], capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    """--out . in the checkout would replace the package itself."""
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "main.py").write_text("mine", encoding="utf-8")
    assert build_kernel.main(["--out", str(tmp_path), "--dry-run"]) == 2
    assert "holds other files (main.py)" in capsys.readouterr().err
    assert (tmp_path / folder / "main.py").read_text(encoding="utf-8") == "mine" and not built_wheels


def test_a_manifest_of_somebody_else_is_never_replaced(
    tmp_path: Path, built_wheels: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """--out . where the user's own manifest.json lies; named by --manifest, it stays as it is."""
    mine = tmp_path / "manifest.json"
    mine.write_bytes((ROOT / "weights_manifest.json").read_bytes())
    before = mine.read_bytes()
    assert build_kernel.main(["--out", str(tmp_path)]) == 2
    assert "was not written by a build" in capsys.readouterr().err and not built_wheels
    for _ in range(2):
        assert build_kernel.main(["--out", str(tmp_path), "--manifest", str(mine)]) == 0
        assert "is the manifest that was given, and stays as it is" in capsys.readouterr().out
    (tmp_path / "link.json").symlink_to(mine)
    assert build_kernel.main(["--out", str(tmp_path), "--manifest", str(tmp_path / "link.json")]) == 0
    assert mine.read_bytes() == before


@pytest.mark.parametrize("name", ["kernel/manifest.json", "wheels/mine.json"])
def test_a_manifest_in_a_folder_that_is_replaced_is_kept(
    tmp_path: Path, built_wheels: list[Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    mine = tmp_path / name
    mine.parent.mkdir()
    mine.write_bytes((ROOT / "weights_manifest.json").read_bytes())
    (tmp_path / "elsewhere").symlink_to(mine.parent)
    for out in (tmp_path, tmp_path / "elsewhere" / ".."):
        given = str(tmp_path / "elsewhere" / mine.name)
        assert build_kernel.main(["--out", str(out), "--manifest", given]) == 2
        assert mine.is_file() and not built_wheels


def test_what_is_not_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: object) -> int:
        raise ModuleNotFoundError("No module named 'cv2'", name="cv2")

    monkeypatch.setattr(build_kernel, "run_build", fail)
    assert build_kernel.main(["--out", str(tmp_path)]) == 2
    assert "cv2 is not installed" in capsys.readouterr().err


def test_an_interruption_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_kernel, "run_build", interrupt)
    assert build_kernel.main([]) == 130
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--images", "gone"], "no folder gone: give a folder"),
        (["--images", "empty"], "empty"),
        (["--device", "gpu"], "--device gpu: allowed are"),
        (["--device", "cpu,cuda:99"], "--device cpu,cuda:99: this machine has cpu and"),
    ],
)
def test_a_dry_run_that_cannot_be_replaces_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    built_wheels: list[Path],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    demo = ROOT / "bundle" / "synthetic"
    given = ["--manifest", str(demo / "manifest.json"), "--weights-dir", str(demo / "weights"), "--out", "dist"]
    assert build_kernel.main([*given, "--dry-run", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"title": "x" * 51}, "kernel.title 'xxx"),
        ({"title": "Cells &amp; more"}, "holds '&amp;', which Kaggle reads as another character"),
        ({"title": "Other cells"}, "has the slug 'other-cells', kernel.id says"),
        ({"wheels_dataset": "ada/some-wheels-"}, "'ada/some-wheels-' is no Kaggle dataset"),
        ({"weight_datasets": ["ada/the-wheels"]}, "ada/the-wheels is to hold the wheels and weights as well"),
        ({"weight_datasets": ["ada/cells-1", "Ada/cells-1"]}, "ada/cells-1 and Ada/cells-1 are one dataset to Kaggle"),
    ],
)
def test_names_that_kaggle_refuses_replace_nothing(
    tmp_path: Path,
    built_wheels: list[Path],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, object],
    told: str,
) -> None:
    data = json.loads((ROOT / "bundle" / "synthetic" / "manifest.json").read_text(encoding="utf-8"))
    data["kernel"] |= {"id": "ada/my-cell-kernel", "title": "My cell kernel"}
    data |= {"wheels_dataset": "ada/the-wheels", "weight_datasets": ["ada/cells-1"]}
    if "title" in change:
        data["kernel"] |= change
    else:
        data |= change
    (tmp_path / "mine.json").write_text(json.dumps(data), encoding="utf-8")
    assert build_kernel.main(["--manifest", str(tmp_path / "mine.json"), "--out", str(tmp_path / "dist")]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "dist").exists()


def test_a_license_for_no_dataset_is_refused(
    tmp_path: Path, built_wheels: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    demo = ROOT / "bundle" / "synthetic"
    data = json.loads((demo / "manifest.json").read_text(encoding="utf-8"))
    data["weight_datasets"] = ["bob/published-cells"]
    (tmp_path / "mine.json").write_text(json.dumps(data), encoding="utf-8")
    given = ["--manifest", str(tmp_path / "mine.json"), "--out", str(tmp_path / "dist"), "--license", "other"]
    assert build_kernel.main([*given, "--weights-dir", str(demo / "weights")]) == 2
    assert "--license: no dataset of weights is your-kaggle-name's" in capsys.readouterr().err
    assert not (tmp_path / "dist").exists()
