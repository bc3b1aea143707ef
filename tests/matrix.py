"""The same bytes and the goldens under other interpreters and other versions of the libraries, as a table.

    make matrix                                 # all legs
    .venv/bin/python tests/matrix.py oldest     # some
    .venv/bin/python tests/matrix.py --keep next newest

Each leg gets an environment of its own (up to 7 GB, most of it CUDA, removed afterwards unless --keep), and in it
builds the synthetic members' kernel, with no package in reach, runs it dry on small images, and checks the goldens.
Its kernel.py and submission.csv must be, byte for byte, those of the leg `pinned`: what requirements.txt says, on the
interpreter that runs this. A leg whose interpreter is not here is named and left out. The table is Markdown;
what a leg wrote and said is in dist/matrix/LEG.

Exit codes: 0 all legs that ran are the same, 1 one differs or failed, 2 something given was wrong.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from interpreters import SUPPORTED, find_interpreters, version_of

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

#: Of the two files of requirements, what the kernel, the dry run and the goldens need. The table shows the first ones.
SHOWN = ("torch", "torchvision", "numpy", "opencv-python-headless", "pandas")
NEEDED = (
    *SHOWN,
    *("timm", "pycocotools", "safetensors", "scipy", "tqdm", "tifffile", "imagecodecs"),
    *("matplotlib", "Pillow", "PyYAML", "packaging", "six"),  # mmcv and mmdet import them
    *("pytest", "hypothesis"),
)


@dataclass(frozen=True)
class Leg:
    """An interpreter and versions to try."""

    name: str
    python: str = ""  # "3.12"; empty: the newest supported one that is here
    versions: Mapping[str, str] = field(default_factory=dict)  # in the place of requirements.txt's
    unpinned: bool = False  # the newest of everything, whatever requirements.txt says


#: What all others are compared with: the environment of `make` as it is, on whatever interpreter it was made with.
PINNED = "pinned"
LEGS = (
    # Kaggle's image, docker-python 2026-06: requirements.txt has its versions.
    Leg("kaggle", "3.12"),
    # What it will probably be next.
    Leg(
        "next",
        "3.13",
        {"torch": "2.11.*", "torchvision": "0.26.*", "numpy": "2.1.*", "opencv-python-headless": "5.0.*"},
    ),
    Leg("newest", unpinned=True),
    # The oldest supported of everything.
    Leg(
        "oldest",
        "3.11",
        {
            "torch": "2.8.*",
            "torchvision": "0.23.*",
            "numpy": "1.26.*",
            "opencv-python-headless": "4.10.*",
            "pandas": "2.1.*",
            "imagecodecs": "2026.1.*",  # the last with numpy 1
        },
    ),
    # Like Kaggle's image at the end of 2025.
    Leg(
        "2025-12",
        "3.12",
        {"torch": "2.8.*", "torchvision": "0.23.*", "numpy": "2.0.*", "opencv-python-headless": "4.12.*"},
    ),
)


@dataclass
class Result:
    """What a leg came to; what it did not reach is empty."""

    leg: str
    python: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    build_seconds: float | None = None
    run_seconds: float | None = None
    kernel_sha256: str = ""
    submission_sha256: str = ""
    goldens: str = ""  # "7 of 7"
    failures: list[str] = field(default_factory=list)


#: Wheels alone: a version that has none for an interpreter fails at once, and not in a compiler.
PIP_INSTALL = (
    *(sys.executable, "-m", "pip", "install", "--only-binary", ":all:"),
    *("--disable-pip-version-check", "--no-input", "--quiet"),
)


class LegError(Exception):
    """A step of a leg failed."""


# Requirements


def read_requirements(root: Path = ROOT) -> list[Requirement]:
    """Those of the two files that are NEEDED, with their markers."""
    from packaging.requirements import Requirement

    needed = {name.lower() for name in NEEDED}
    lines = [
        re.sub(r"(^|\s)#.*", "", line).strip()
        for name in ("requirements.txt", "requirements-dev.txt")
        for line in (root / name).read_text(encoding="utf-8").splitlines()
    ]
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return [requirement for requirement in found if requirement.name.lower() in needed]


def leg_requirements(leg: Leg, python: str, requirements: Iterable[Requirement]) -> list[str]:
    """What pip is to install for a leg on an interpreter like "3.12", a line per package."""
    wanted = dict.fromkeys(NEEDED, "")
    if not leg.unpinned:
        by_lower = {name.lower(): name for name in NEEDED}
        for requirement in requirements:
            if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
                wanted[by_lower[requirement.name.lower()]] = str(requirement.specifier)
    wanted |= {name: f"=={version}" for name, version in leg.versions.items()}
    return [f"{name}{specifier}" for name, specifier in wanted.items()]


def deviations(requirements: Iterable[Requirement], installed: Mapping[str, str]) -> list[str]:
    """In what an environment on this interpreter is not as required; `installed`: versions by name."""
    told = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        version = installed.get(requirement.name)
        if version is None:
            told.append(f"{requirement.name} is not installed")
        elif not requirement.specifier.contains(version, prereleases=True):
            told.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    return told


def installed_here() -> dict[str, str]:
    """The versions of NEEDED in this environment."""
    found = {}
    for name in NEEDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# A leg


def python_of(leg: Leg, interpreters: Mapping[str, Path]) -> str:
    """The version that a leg runs on; empty where it is not here."""
    if leg.python:
        return leg.python if leg.python in interpreters else ""
    return next((version for version in reversed(SUPPORTED) if version in interpreters), "")


def cache_dir() -> Path:
    """Where environments are made: in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inside-ensemble" / "matrix"


def clean_environment() -> dict[str, str]:
    """This process's variables, without those that change what an interpreter or the kernel does."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "KERNEL_"))}


def run(what: str, command: Sequence[str | Path], log: Path) -> float:
    """Run a step of a leg, its output added to `log`. Returns seconds. Raises LegError with the output's last word."""
    print(f"  {what} ... ", end="", flush=True)
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    seconds = time.monotonic() - start
    print(f"{'failed after ' if done.returncode else ''}{seconds:.0f} s", flush=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(map(str, command))}\n{done.stdout}\n")
    if done.returncode:
        raise LegError(f"{what}: exit code {done.returncode}: {last_word(done.stdout)}")
    return seconds


def last_word(output: str) -> str:
    """The line that says what went wrong: the last with "error" or "failed" in front or ERROR in it, else the last.

    With what follows it, where it ends in a colon.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    errors = [at for at, line in enumerate(lines) if re.match(r"(?i:\w*error|failed)\b|.*\bERROR\b", line)]
    at = errors[-1] if errors else len(lines) - 1
    return " ".join(lines[at : at + 1 + lines[at].endswith(":")])


def make_environment(folder: Path, python: Path, requirements: Sequence[str], log: Path, fresh: bool = False) -> Path:
    """Make a leg's environment, or take the one that is there if it is whole and the same. Returns its interpreter.

    Raises LegError, with pip's last word, where a package cannot be installed.
    """
    interpreter, mark = folder / "bin" / "python", folder / "complete"
    content = "\n".join((str(python), *requirements, ""))
    if not fresh and mark.is_file() and mark.read_text(encoding="utf-8") == content:
        return interpreter
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not by ensurepip, which Debian leaves out or patches: pip is the same file for every interpreter.
    run("environment", [python, "-m", "venv", "--without-pip", folder], log)
    (packages,) = folder.glob("lib/python*/site-packages")
    run("pip", [*PIP_INSTALL, "--no-deps", "--target", packages, "pip"], log)
    installing = f"installing {', '.join(requirements[: len(SHOWN)])}"
    run(installing, [interpreter, *PIP_INSTALL[1:], *requirements], log)
    mark.write_text(content, encoding="utf-8")
    return interpreter


def write_images(folder: Path) -> None:
    """Parts of synthetic images, one of each cell type; as PNG of 8 and 16 bits and TIFF of 16 bits."""
    import cv2
    import numpy as np

    kinds = ((".png", 1), (".png", 257), (".tif", 257))
    sources = sorted((ROOT / "bundle" / "synthetic" / "images").iterdir())
    for source, (suffix, factor) in zip(sources, kinds, strict=True):
        gray = cv2.imdecode(np.frombuffer(source.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        part = gray[100:292, 100:292].astype(np.uint8 if factor == 1 else np.uint16) * factor
        (folder / f"{source.stem}{suffix}").write_bytes(cv2.imencode(suffix, part)[1].tobytes())


def run_leg(name: str, interpreter: Path, images: Path, out: Path, goldens: bool = True) -> Result:
    """Build, run dry and check the goldens with an interpreter; kernel.py, submission.csv and log.txt are in `out`.

    A step that fails is told in the result, and the ones after it are tried all the same.
    """
    result, log = Result(name), out / "log.txt"
    demo = ["build_kernel.py", "--manifest", "bundle/synthetic/manifest.json", "--out"]
    with tempfile.TemporaryDirectory(prefix="matrix-") as temporary:
        work = Path(temporary)

        def build_bare() -> None:
            # -S: no package is in reach.
            result.build_seconds = run("build", [interpreter, "-S", *demo, work / "bare"], log)
            shutil.copyfile(work / "bare" / "kernel" / "kernel.py", out / "kernel.py")
            result.kernel_sha256 = file_sha256(out / "kernel.py")

        def run_dry() -> None:
            dry = [interpreter, *demo, work / "dry", "--dry-run", "--images", images, "--device", "cpu"]
            result.run_seconds = run("dry run", dry, log)
            if result.kernel_sha256 not in ("", file_sha256(work / "dry" / "kernel" / "kernel.py")):
                raise LegError("dry run: its kernel.py is not that of the build without packages")
            shutil.copyfile(work / "dry" / "dry-run" / "submission.csv", out / "submission.csv")
            result.submission_sha256 = file_sha256(out / "submission.csv")
            if not count_cells(out / "submission.csv"):
                raise LegError("dry run: no cell found, so that the submission says nothing")

        def check_goldens() -> None:
            report = work / "goldens.xml"
            pytest = [interpreter, "-m", "pytest", "tests/test_goldens.py", "-k", "not on_a_gpu"]
            pytest += ["-p", "no:cacheprovider", f"--junitxml={report}"]
            try:
                run("goldens", pytest, log)
            finally:
                result.goldens = read_goldens(report)
            passed, _, all_of_them = result.goldens.split()
            if passed != all_of_them:
                raise LegError(f"goldens: {result.goldens} passed")

        for step in (build_bare, run_dry, *([check_goldens] if goldens else [])):
            try:
                step()
            except LegError as error:
                result.failures.append(str(error))
        try:
            ask = "import json, platform; from importlib.metadata import version\n"
            ask += f"print(json.dumps([platform.python_version(), {{name: version(name) for name in {SHOWN}}}]))"
            done = subprocess.run(
                [interpreter, "-I", "-c", ask], env=clean_environment(), capture_output=True, text=True, check=True
            )
            result.python, result.versions = json.loads(done.stdout)
        except subprocess.CalledProcessError as error:
            result.failures.append(f"versions: {last_word(error.stderr)}")
    return result


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def count_cells(submission: Path) -> int:
    """Rows of a submission.csv that hold a mask."""
    with submission.open(encoding="utf-8", newline="") as file:
        return sum(bool(row["predicted"].strip()) for row in csv.DictReader(file))


def read_goldens(report: Path) -> str:
    """pytest's report as "6 of 7": what passed of what was to run. A skipped one (no wheels) has not passed."""
    if not report.is_file():
        return "0 of ?"
    # A folder of goldens (GOLDENS_DIR) may have none of one sort; pytest calls that a skipped test.
    cases = [
        case
        for case in ElementTree.parse(report).iter("testcase")
        if not any("empty parameter set" in skipped.get("message", "") for skipped in case.iter("skipped"))
    ]
    passed = [case for case in cases if not any(child.tag in ("failure", "error", "skipped") for child in case)]
    return f"{len(passed)} of {len(cases) or '?'}"


# Comparison


def verdict(result: Result, reference: Result) -> str:
    """ "same", or what is wrong."""
    told = list(result.failures)
    for what in ("kernel_sha256", "submission_sha256"):
        name = "kernel.py" if what == "kernel_sha256" else "submission.csv"
        ours, theirs = getattr(result, what), getattr(reference, what)
        if ours and not theirs:
            told.append(f"{name}: leg {reference.leg} made none to compare with")
        elif ours != theirs and ours:
            told.append(f"{name} differs")
    return "; ".join(told) or "same"


def table(results: Sequence[Result]) -> str:
    """Markdown, with columns as wide as they need to be to be read as it stands; the first one is the reference."""
    rows = [["leg", "Python", *SHOWN, "build", "dry run", "kernel.py", "submission.csv", "goldens", "verdict"]]
    rows[0][rows[0].index("opencv-python-headless")] = "OpenCV"
    for result in results:
        seconds = [result.build_seconds, result.run_seconds]
        cells = [result.leg, result.python, *(result.versions.get(name, "") for name in SHOWN)]
        cells += ["" if value is None else f"{value:.0f} s" for value in seconds]
        cells += [result.kernel_sha256[:12], result.submission_sha256[:12], result.goldens]
        cells += [verdict(result, results[0]).replace("|", "\\|")]
        rows.append([cell or "-" for cell in cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    widths[-1] = len(rows[0][-1])  # the last column may run on
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


# The command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the legs and print the table. Returns the exit code."""
    options = parse_arguments(arguments)
    try:
        requirements = read_requirements()
    except ModuleNotFoundError as error:
        return refuse(f"{error.name} is not installed")
    if told := deviations(requirements, installed_here()):
        return refuse("; ".join(told))
    given = {version_of(path): path.absolute() for path in options.python}
    if others := [str(path) for version, path in given.items() if version not in SUPPORTED]:
        return refuse(f"--python {', '.join(others)} is no Python {', '.join(SUPPORTED)}", "name an interpreter's file")
    interpreters = find_interpreters() | given

    missing = []
    with tempfile.TemporaryDirectory(prefix="matrix-images-") as temporary:
        images = Path(temporary)
        write_images(images)
        print(PINNED, flush=True)
        results = [run_leg(PINNED, Path(sys.executable), images, new_folder(PINNED), not options.no_pinned_goldens)]
        for leg in LEGS:
            if leg.name not in options.legs:
                continue
            python = python_of(leg, interpreters)
            if not python:
                missing.append(f"{leg.name}: no Python {leg.python} on PATH or among pyenv's; name one by --python")
                continue
            if leg == Leg(leg.name, f"{sys.version_info[0]}.{sys.version_info[1]}"):
                missing.append(f"{leg.name}: it is what {PINNED} is on this interpreter")
                continue
            print(f"{leg.name}, {interpreters[python]}", flush=True)
            out, folder = new_folder(leg.name), options.environments / leg.name
            try:
                wanted = leg_requirements(leg, python, requirements)
                interpreter = make_environment(folder, interpreters[python], wanted, out / "log.txt", options.fresh)
                results.append(run_leg(leg.name, interpreter, images, out))
            except LegError as error:
                results.append(Result(leg.name, python, failures=[str(error)]))
            finally:
                if not options.keep:
                    shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{table(results)}")
    for told in missing:
        print(f"\nnot run: {told}")
    if all(verdict(result, results[0]) == "same" for result in results):
        return 0
    print(f"\nwhat the legs wrote and said is in {ROOT / 'dist' / 'matrix'}")
    return 1


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="matrix.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [leg.name for leg in LEGS]
    parser.add_argument(
        "legs", nargs="*", metavar="LEG", help=f"{', '.join(names)} (default: all); {PINNED} always runs"
    )
    parser.add_argument(
        "--python",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an interpreter to use, may be repeated",
    )
    parser.add_argument(
        "--environments", type=Path, default=cache_dir(), help="where environments are made (default: %(default)s)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the environments, for the next time")
    parser.add_argument("--fresh", action="store_true", help="make environments anew, also where whole ones were kept")
    parser.add_argument(
        "--no-pinned-goldens", action="store_true", help=f"leave out {PINNED}'s goldens, which `make test` checks too"
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.legs if name not in (*names, PINNED)]:
        parser.error(f"no leg {', '.join(unknown)}: choose from {', '.join(names)}")
    options.legs = options.legs or names
    options.environments = options.environments.absolute()
    return options


def refuse(
    what: str, advice: str = "run this in the environment: `make .venv/complete`, then `.venv/bin/python ...`"
) -> int:
    """Say what is wrong with what was given. Returns the exit code."""
    print(f"error: {what}; {advice}", file=sys.stderr)
    return 2


def new_folder(leg: str) -> Path:
    """An empty folder for what a leg writes."""
    folder = ROOT / "dist" / "matrix" / leg
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
