"""The installed package: one wheel, tried where there is no checkout."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import cv2
import pytest

import bundle.distribution
from bundle.distribution import renamed
from bundle.site import WHEELS
from kernel.__main__ import main
from kernel.data.synthetic.generate import generate_image
from kernel.images.reading import read_image
from kernel.vendored import site_folder

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "bundle" / "synthetic"

pytestmark = pytest.mark.xdist_group("script")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `pip wheel .` makes it, with the hatchling of the environment."""
    out = tmp_path_factory.mktemp("wheel")
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w", str(out)]
    done = subprocess.run([sys.executable, *command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.iterdir()
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    command = ["-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check", "--target", str(folder)]
    subprocess.run([sys.executable, *command, str(wheel)], check=True)
    return folder


def run_elsewhere(installed: Path, folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with the installed package, and without the checkout."""
    given = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env={**os.environ, **given}, capture_output=True, text=True, check=False
    )


#: Packages of the index by the name that is imported, where it is another.
INDEX_NAMES = {"cv2": "opencv-python-headless", "skimage": "scikit-image", "sklearn": "scikit-learn"}
#: What comes with an extra, each named with its remedy where it is missing; and mmdet, which the wheels hold.
WITH_REMEDY = {"bioio", "bioio_base", "distributed", "mmcv", "mmdet", "napari", "ome_zarr", "optuna", "qtpy", "roifile"}
WITH_REMEDY |= {"zarr"}


def test_what_is_imported_is_installed_with_it() -> None:
    """A command that ends in hours of work needs all that writes its result."""
    imported: set[str] = set()
    for path in (ROOT / "kernel").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {re.match(r"[\w.-]+", wanted)[0] for wanted in project["dependencies"]}  # type: ignore[index]
    foreign = imported - set(sys.stdlib_module_names) - {"kernel", "bundle"}
    assert {name for name in foreign if INDEX_NAMES.get(name, name) not in installed} == WITH_REMEDY


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"inside_ensemble"}
    for name in ("py.typed", "napari.yaml", "bundle/wheels.lock.json"):
        assert f"inside_ensemble/{name}" in names
    left_out = ("__pycache__", "bundle/synthetic")
    assert not [name for name in names if any(part in name for part in left_out) or "test" in Path(name).stem]


def test_its_modules_are_the_checkouts_but_for_names(installed: Path) -> None:
    """Each parses, none imports `kernel` or `bundle`, and what goes into mmdet's wheels is the same bytes."""
    modules = sorted((installed / "inside_ensemble").rglob("*.py"))
    assert len(modules) > 100
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in ("kernel", "bundle"), path
    for name in ("mmcv_ops.py", "fcn_mask_head.py", "wheels.lock.json"):
        packed = installed / "inside_ensemble" / "bundle" / name
        assert packed.read_bytes() == (ROOT / "bundle" / name).read_bytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from kernel.errors import InputError", "from inside_ensemble.errors import InputError"),
        ("from kernel import errors", "from inside_ensemble import errors"),
        ("    from bundle.lock import load_lock", "    from inside_ensemble.bundle.lock import load_lock"),
        ("é = 'é'; from kernel.log import LOG", "é = 'é'; from inside_ensemble.log import LOG"),
        ('command = [python, "-m", "bundle.site"]', 'command = [python, "-m", "inside_ensemble.bundle.site"]'),
        ("'run `python -m kernel tune`'", "'run `inside-ensemble tune`'"),
        ('named = "kernel.id"', 'named = "kernel.id"'),  # a manifest's key
        ('{"kernel": 1}', '{"kernel": 1}'),
        ("manifest.kernel.title", "manifest.kernel.title"),
        ("python -m kernels", "python -m kernels"),
    ],
)
def test_only_names_of_modules_and_of_the_command_change(before: str, after: str) -> None:
    indented = before.startswith(" ")
    source = f"if True:\n{before}\n" if indented else before if "-m kernels" not in before else f"'{before}'"
    expected = f"if True:\n{after}\n" if indented else after if "-m kernels" not in after else f"'{after}'"
    assert renamed(source) == expected


def test_an_import_that_cannot_be_renamed_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"from kernel\.errors import"):
        renamed("import kernel.errors\n")


def test_the_public_names_come_when_they_are_asked_for(installed: Path, tmp_path: Path) -> None:
    shown = "print('torch' in sys.modules, 'numpy' in sys.modules)"
    lines = ["import sys", "import inside_ensemble as it", shown]
    lines += ["print(*sorted(name for name in it.__all__ if getattr(it, name).__module__.startswith('inside_ens')))"]
    lines += [shown, "it.nothing_such"]
    done = run_elsewhere(installed, tmp_path, "-c", "\n".join(lines))
    assert done.stdout.splitlines() == ["False False", "Cells InputError RunError Segmenter load", "False True"]
    assert done.stderr.strip().endswith("AttributeError: module 'inside_ensemble' has no attribute 'nothing_such'")


def test_the_version_is_told(installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    done = run_elsewhere(installed, tmp_path, "-m", "inside_ensemble", "--version")
    assert (done.returncode, done.stdout) == (0, f"inside-ensemble {expected}\n"), done.stderr
    done = run_elsewhere(installed, tmp_path, "-c", "import inside_ensemble; print(inside_ensemble.__version__)")
    assert done.stdout == f"{expected}\n", done.stderr
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"inside-ensemble {expected}, a checkout\n"
    shutil.copytree(installed / "inside_ensemble", tmp_path / "copy" / "inside_ensemble")
    (tmp_path / "copy" / "pyproject.toml").write_text("[tool.ruff]\n", encoding="utf-8")  # another project's
    done = run_elsewhere(tmp_path / "copy", tmp_path, "-m", "inside_ensemble", "--version")
    assert done.stdout == "inside-ensemble, of a version that is not known\n", done.stderr


def test_help_comes_quickly_and_without_torch(installed: Path, tmp_path: Path) -> None:
    code = "import sys; from inside_ensemble.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, 'kernel' in sys.modules)"
    done = run_elsewhere(installed, tmp_path, "-c", code)
    assert done.returncode == 0 and done.stdout.endswith("False False\n"), done.stderr
    assert "usage: inside-ensemble [-h]" in done.stdout and "python -m kernel" not in done.stdout


@pytest.fixture(scope="module")
def cache(wheels_site: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """mmdet comes from the user's cache; here the cache has what the checkout has built."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "inside-ensemble" / "site").mkdir(parents=True)
    (cache / "inside-ensemble" / "wheels").symlink_to(WHEELS)
    (cache / "inside-ensemble" / "site" / site_folder().name).symlink_to(wheels_site)
    return str(cache)


def test_the_documented_lines_of_python(installed: Path, cache: str, tmp_path: Path) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "biologist.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "members").symlink_to(ROOT / "bundle" / "members")
    done = run_elsewhere(installed, tmp_path, "-c", lines, XDG_CACHE_HOME=cache)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[1-9]\d* \w+ \(511, 512\) 0\.\d+\n", done.stdout), done.stdout


def test_it_predicts_what_the_checkout_predicts(installed: Path, cache: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image = generate_image("cort", 3, (160, 224)).image
    (tmp_path / "images" / "cort.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    given = ["--manifest", str(DEMO / "manifest.json"), "--weights-dir", str(DEMO / "weights"), "--device", "cpu"]
    for out, module, path in (("here", "kernel", ROOT), ("there", "inside_ensemble", installed)):
        command = ["-m", module, "predict", str(tmp_path / "images"), "--out", str(tmp_path / out), *given]
        done = run_elsewhere(path, tmp_path, *command, XDG_CACHE_HOME=cache)
        assert done.returncode == 0, done.stderr
    labels = [read_image(tmp_path / out / "labels" / "cort.tif") for out in ("here", "there")]
    assert labels[0].max() > 0 and (labels[0] == labels[1]).all()


def test_the_members_are_installed_with_the_package(
    installed: Path, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = "from inside_ensemble.manifest.presets import shipped_members, read_presets\nfound = shipped_members()\n"
    found += "print(found.folder, *read_presets(found))"
    done = run_elsewhere(installed, tmp_path, "-c", found)
    folder = installed / "inside_ensemble" / "bundle" / "members"
    assert done.stdout.split() == [str(folder), "best", "balanced", "fast"], done.stderr
    assert (folder / "LICENSE").is_file() and (folder / "model_card.json").is_file()
    sample = folder / "images" / "t98g_set1.png"
    command = ["-m", "inside_ensemble", "predict", str(sample), "--preset", "fast", "--device", "cpu", "--out", "out"]
    done = run_elsewhere(installed, tmp_path, *command, XDG_CACHE_HOME=cache)
    assert done.returncode == 0, done.stderr
    assert read_image(tmp_path / "out" / "labels" / "t98g_set1.tif").max() > 0

    monkeypatch.setattr(bundle.distribution, "MEMBERS", "bundle/none")
    bundle.distribution.write_package(tmp_path / "without" / "inside_ensemble")
    done = run_elsewhere(tmp_path / "without", tmp_path, "-c", found)
    assert "no members come with this installation" in done.stderr
