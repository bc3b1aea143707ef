"""Faults of weight files, put before the built script: each is named in a line, and never taken in silence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from built_script import DEMO, BuiltRun, write_cells
from odd_weights import ODD_TENSORS, State, load_demo, save_with_class, write_strays

import build_kernel

pytestmark = [pytest.mark.torture, pytest.mark.xdist_group("weights")]

MEMBER = {"name": "one", "kind": "maskrcnn", "encoder": "resnet18_narrow", "use_for": ["shsy5y", "astro", "cort"]}


@pytest.fixture(scope="module")
def state() -> State:
    """The demo's Mask R-CNN."""
    return load_demo(DEMO / "weights" / "maskrcnn.safetensors")


@pytest.fixture(scope="module")
def built(wheels_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Scripts of one member: that names its file, and that does not."""
    scripts = {}
    for name, file in (("named", "one.pth"), ("nameless", None)):
        out = tmp_path_factory.mktemp(name)
        manifest = json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))
        manifest["members"] = [MEMBER | {"file": file}]
        (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8", newline="\n")
        shutil.copytree(wheels_dir, out / "wheels")
        assert build_kernel.main(["--manifest", str(out / "manifest.json"), "--out", str(out)]) == 0
        scripts[name] = out / "kernel" / "kernel.py"
    return scripts


def run_with(script: Path, home: Path, wheels: Path, write: Callable[[Path], Any]) -> tuple[int, str, BuiltRun]:
    """Run a script on one image, its weights' folder holding what `write` puts there."""
    run = BuiltRun(script, home, wheels)
    write_cells(run.images, 1, side=64)
    for path in run.weights.iterdir():
        path.unlink()
    write(run.weights)
    code, log = run.run()
    return code, log, run


@pytest.mark.parametrize("odd", ["sparse", "meta", "float8", "complex", "zero"])
def test_weights_that_are_none_are_named(
    odd: str, built: dict[str, Path], state: State, wheels_dir: Path, tmp_path: Path
) -> None:
    change, told = ODD_TENSORS[odd]
    code, log, _ = run_with(
        built["named"], tmp_path, wheels_dir, lambda folder: torch.save(change(state), folder / "one.pth")
    )
    assert code == 2 and re.search(rf"one\.pth\b.*{told}", log) and "Traceback" not in log


def test_a_class_in_a_pickle_is_named_with_the_way_round_it(
    built: dict[str, Path], state: State, wheels_dir: Path, tmp_path: Path
) -> None:
    code, log, _ = run_with(
        built["named"], tmp_path, wheels_dir, lambda folder: save_with_class({"state_dict": state}, folder / "one.pth")
    )
    assert code == 2 and "mmengine.logging.history_buffer.HistoryBuffer; it is refused; `python -m kernel conv" in log
    assert "Traceback" not in log and "\x1b" not in log


def test_stray_files_beside_a_member_without_file_cost_nothing(
    built: dict[str, Path], state: State, wheels_dir: Path, tmp_path: Path
) -> None:
    def write(folder: Path) -> None:
        torch.save({"model": {f"_orig_mod.{key}": value for key, value in state.items()}}, folder / "right.pth")
        write_strays(folder / "strays")
        for name, (change, _) in ODD_TENSORS.items():
            torch.save(change(state), folder / f"{name}.pt")

    code, log, run = run_with(built["nameless"], tmp_path, wheels_dir, write)
    assert code == 0 and "from right.pth" in log and "Traceback" not in log
    assert run.submission.is_file()


def test_what_is_missing_in_the_image_is_named_at_once(
    built: dict[str, Path], wheels_dir: Path, tmp_path: Path
) -> None:
    """Packages without which nothing works, all in one line; those that inference never calls are not missed."""
    hidden = """
import sys


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class Missing:
    def find_spec(name):
        return None if name in MISSING else original(name)


sys.meta_path.insert(0, Hidden())
import importlib.util

original, importlib.util.find_spec = importlib.util.find_spec, Missing.find_spec
"""
    run = BuiltRun(built["nameless"], tmp_path, wheels_dir)
    write_cells(run.images, 1, side=64)
    for path in run.weights.iterdir():
        if path.stem != "maskrcnn":
            path.unlink()
    text = run.script.read_text(encoding="utf-8")
    start = "if missing_packages := "
    run.script = tmp_path / "kernel.py"

    def write_script(missing: str) -> None:
        head = hidden.replace("HIDDEN", "('matplotlib', 'yaml', 'setuptools')").replace("MISSING", missing)
        run.script.write_text(text.replace(start, f"{head}\n{start}", 1), encoding="utf-8", newline="\n")

    write_script("('timm', 'tqdm')")
    code, log = run.run()
    assert code == 2 and log.strip() == "not installed here, and needed: timm, tqdm; choose an image that has them"
    write_script("()")
    code, log = run.run()
    assert code == 0 and run.submission.is_file(), log


def test_a_member_with_the_usual_stem_is_run_as_such(
    built: dict[str, Path], state: State, wheels_dir: Path, tmp_path: Path
) -> None:
    def write(folder: Path) -> None:
        safetensors.torch.save_file(state, folder / "right.safetensors", {"stem_stride": "2"})

    code, log, _ = run_with(built["nameless"], tmp_path, wheels_dir, write)
    assert code == 0 and "member one: its stem has stride 2" in log
