"""Each benchmark that `make bench` runs, at its smallest size, to its end; of the others what they import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BENCHMARKS = sorted(path.stem for path in HERE.glob("bench_*.py"))
#: The benchmarks' arguments that take the least time, "OUT" standing for a folder; None: it needs a folder of cells.
SMALLEST = {
    "bench_cluster": "--images 1",
    "bench_inference": "--kinds maskrcnn,htc --size 64x64 --cells 4 --views 1 --no-growth --folder OUT",
    "bench_journal": "--images 2 --cells 2",
    "bench_large_image": "--side 64 --members maskrcnn --no-tta",
    "bench_loader": "1",
    "bench_memory": "1 OUT",
    "bench_metric": "50",
    "bench_other_tools": None,
    "bench_postprocess": "120",
    "bench_reading": "32",
    "bench_retrain": None,
    "bench_roi_align": "1",
    "bench_training": "2 OUT --crop-size 64 --batch-size 1",
    "bench_tuning": "1 10 1",
}


@pytest.mark.torture
@pytest.mark.skipif(sys.platform != "linux", reason="some read in /proc what memory a process takes")
@pytest.mark.parametrize("name", [name for name in BENCHMARKS if SMALLEST[name] is not None])
def test_it_comes_to_its_end(name: str, wheels_dir: Path, tmp_path: Path) -> None:
    arguments = str(SMALLEST[name]).replace("OUT", str(tmp_path)).split()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, HERE / f"{name}.py", *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout, ended.stdout + ended.stderr


def test_what_they_import_of_the_project_is_there() -> None:
    imported = [
        (name, node.lineno, str(node.module), alias.name)
        for name in BENCHMARKS
        for node in ast.walk(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("kernel.")
        for alias in node.names
    ]
    missing = [each for each in imported if not hasattr(import_module(each[2]), each[3])]
    assert len(imported) > len(BENCHMARKS) and not missing
