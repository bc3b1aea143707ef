"""A compiled mmcv-full beside our repacked one: in another interpreter, since no process can hold both.

COMPILED_MMCV_PYTHON names an interpreter with torch, mmdet 2.x and a compiled mmcv-full 1.x; what compares both asks
`compiled_mmcv_python` for it. Where there is none, this makes one from mmcv-full's own sources, unchanged, for the CPU:

    PYTHONPATH=.:tests python tests/compiled_mmcv.py FOLDER

which takes a few minutes, a C++ compiler and 1 GB meanwhile; the interpreter is FOLDER/bin/python.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

#: One optimisation level for all: compiling takes a minute less than at -O2, and nothing is timed.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-w", "-DTORCH_EXTENSION_NAME=_ext", "-DTORCH_API_INCLUDE_EXTENSION_H")


def compiled_mmcv_python() -> str:
    """The interpreter that has a compiled mmcv-full; skips the test where none is named."""
    python = os.environ.get("COMPILED_MMCV_PYTHON")
    if not python:
        pytest.skip("no compiled mmcv-full: COMPILED_MMCV_PYTHON names no interpreter that has one")
    return python


def compile_operators(sources: Path, out: Path) -> None:
    """Compile mmcv's operators for the CPU, of its folder mmcv/ops/csrc, into the module `out`.

    torch's headers take most of the time of each of 80 files, so they are compiled once and included in front.
    """
    from torch.utils import cpp_extension

    work = out.parent / "objects"
    work.mkdir()
    folders = [str(sources / "common"), str(sources / "pytorch"), sysconfig.get_path("include")]
    compiler = [os.environ.get("CXX", "c++"), *FLAGS]
    compiler += [f"-I{folder}" for folder in (*folders, *cpp_extension.include_paths())]
    header = work / "front.h"
    header.write_text("#include <torch/extension.h>\n", encoding="utf-8")
    subprocess.run([*compiler, "-x", "c++-header", str(header), "-o", f"{header}.gch"], check=True)

    def compile_file(number_and_path: tuple[int, Path]) -> str:
        number, path = number_and_path
        target = str(work / f"{number}.o")
        subprocess.run([*compiler, "-include", str(header), "-c", str(path), "-o", target], check=True)
        return target

    files = sorted([*(sources / "pytorch").glob("*.cpp"), *(sources / "pytorch" / "cpu").glob("*.cpp")])
    # setup.py leaves this one out as well, where there is no NPU.
    files = [path for path in files if path.name != "bbox_overlaps_cpu.cpp"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_file, enumerate(files)))
    libraries = [
        option for folder in cpp_extension.library_paths() for option in (f"-L{folder}", f"-Wl,-rpath,{folder}")
    ]
    libraries += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
    subprocess.run([compiler[0], "-shared", *objects, "-o", str(out), *libraries], check=True)


def make_interpreter(folder: Path) -> None:
    """Make an environment with this one's packages and a compiled mmcv-full in `folder`."""
    from bundle.fetch import cache_dir, fetch
    from bundle.lock import load_lock
    from kernel.folders import replace_folder, scratch_folder
    from kernel.vendored import use_vendored_packages

    site = use_vendored_packages()  # with mmdet and what mmcv needs
    source = fetch(next(entry for entry in load_lock() if entry.name == "mmcv-full"), cache_dir())
    with scratch_folder(folder.parent, folder.name) as scratch:
        with tarfile.open(source) as archive:
            archive.extractall(scratch, filter="data")
        (unpacked,) = scratch.iterdir()
        module = scratch / f"_ext{sysconfig.get_config_var('EXT_SUFFIX')}"
        compile_operators(unpacked / "mmcv" / "ops" / "csrc", module)
        venv.create(scratch / "new", symlinks=True)
        (packages,) = (scratch / "new").glob("lib/python*/site-packages")
        # Before those of the two other folders, our repacked mmcv among them.
        (unpacked / "mmcv").replace(packages / "mmcv")
        module.replace(packages / "mmcv" / module.name)
        (packages / "others.pth").write_text(f"{site}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8")
        replace_folder(scratch / "new", folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    make_interpreter(Path(sys.argv[1]).resolve())
