"""The matrix's own logic: which interpreter and versions a leg gets, how a step fails, what counts as the same."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import matrix
import pytest
from matrix import Leg, LegError, Result
from packaging.requirements import Requirement

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
PINS = [
    Requirement("torch==2.10.0"),
    Requirement('numpy==2.0.2; python_version < "3.13"'),
    Requirement('numpy==2.2.6; python_version >= "3.13"'),
    Requirement("Pillow>=11"),
]


@pytest.fixture
def interpreter(tmp_path: Path) -> Callable[[str, str], Path]:
    """Makes a file, by its path below tmp_path, that does as a shell script says."""

    def make(name: str, script: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    return make


# The legs


def test_legs_are_told_apart_and_name_what_is_needed() -> None:
    names = [leg.name for leg in matrix.LEGS]
    assert len(set(names)) == len(names) and matrix.PINNED not in names
    for leg in matrix.LEGS:
        assert set(leg.versions) <= set(matrix.NEEDED), leg
        assert leg.python in ("", *matrix.SUPPORTED), leg
        # One release of torchvision goes with one of torch: pip could only look for it.
        assert ("torch" in leg.versions) == ("torchvision" in leg.versions), leg


def test_requirements_are_those_of_the_kernel_and_the_goldens() -> None:
    found = matrix.read_requirements()
    names = {requirement.name for requirement in found}
    assert {"torch", "torchvision", "numpy", "opencv-python-headless", "pandas", "pytest", "hypothesis"} <= names
    assert not names & {"kaggle", "optuna", "ruff"}
    assert all(name in matrix.NEEDED for name in names)
    assert matrix.deviations(found, matrix.installed_here()) == []


@pytest.mark.parametrize(
    ("leg", "python", "expected"),
    [
        (Leg("pins"), "3.12", ["torch==2.10.0", "numpy==2.0.2", "Pillow>=11", "pandas"]),
        (Leg("pins"), "3.13", ["torch==2.10.0", "numpy==2.2.6", "Pillow>=11", "pandas"]),
        (Leg("pins"), "3.14", ["numpy==2.2.6"]),
        (Leg("own", versions={"numpy": "2.1.*"}), "3.13", ["torch==2.10.0", "numpy==2.1.*"]),
        (Leg("newest", unpinned=True), "3.13", ["torch", "numpy", "Pillow"]),
        (Leg("newest", versions={"numpy": "3.*"}, unpinned=True), "3.13", ["torch", "numpy==3.*"]),
    ],
)
def test_requirements_of_a_leg(leg: Leg, python: str, expected: list[str]) -> None:
    found = matrix.leg_requirements(leg, python, PINS)
    assert set(expected) <= set(found)
    assert len(found) == len(matrix.NEEDED)


def test_deviations() -> None:
    as_required = {"torch": "2.10.0+cpu", "numpy": "2.2.6" if sys.version_info >= (3, 13) else "2.0.2", "Pillow": "13"}
    assert matrix.deviations(PINS, as_required) == []
    assert matrix.deviations([], {}) == []
    other = {"torch": "2.11.0", "numpy": as_required["numpy"]}
    assert matrix.deviations(PINS, other) == ["torch is 2.11.0, not ==2.10.0", "Pillow is not installed"]


@pytest.mark.parametrize(
    ("leg", "here", "expected"),
    [
        (Leg("a", "3.12"), ["3.11", "3.12"], "3.12"),
        (Leg("a", "3.14"), ["3.11", "3.12"], ""),
        (Leg("newest"), ["3.13", "3.11"], "3.13"),
        (Leg("newest"), ["3.14", "3.9"], "3.14"),
        (Leg("newest"), [], ""),
    ],
)
def test_interpreter_of_a_leg(leg: Leg, here: list[str], expected: str) -> None:
    assert matrix.python_of(leg, {version: Path(version) for version in here}) == expected


# The steps of a leg


def test_a_step_tells_its_last_word_and_leaves_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interpreter: Callable[[str, str], Path]
) -> None:
    log = tmp_path / "log.txt"
    monkeypatch.setenv("PYTHONPATH", "other")
    monkeypatch.setenv("KERNEL_DTYPE", "bfloat16")
    assert matrix.run("step", [interpreter("fine", 'echo "fine, $PYTHONPATH$KERNEL_DTYPE"')], log) >= 0
    with pytest.raises(LegError, match=r"^step: exit code 3: ERROR: no numpy$"):
        matrix.run("step", [interpreter("bad", "echo ERROR: no numpy >&2; echo hint: none; exit 3")], log)
    said = log.read_text(encoding="utf-8")
    assert "fine, \n" in said and "hint: none" in said


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("", "no output"),
        (" \n", "no output"),
        ("one\ntwo\n\n", "two"),
        (
            "ERROR: No matching distribution found for torch==9\n[notice] pip is old\n",
            "ERROR: No matching distribution found for torch==9",
        ),
        (
            "Traceback (most recent call last):\nModuleNotFoundError: No module named 'x'\nbye\n",
            "ModuleNotFoundError: No module named 'x'",
        ),
        ("12:01,969 ERROR image a: no pixels\n1 image failed\n\nnext:\n  push", "12:01,969 ERROR image a: no pixels"),
        ("error: 2 problem(s):\n  a.py:3: no\n  b.py:4: no\n", "error: 2 problem(s): a.py:3: no"),
        ("so it ends:\n", "so it ends:"),
        ("error: exception_in_a_name\nerrors there were\n", "error: exception_in_a_name"),
        (
            "FAILED tests/test_a.py::test[htc] - AssertionError\n1 failed\n",
            "FAILED tests/test_a.py::test[htc] - AssertionError",
        ),
    ],
)
def test_last_word(output: str, expected: str) -> None:
    assert matrix.last_word(output) == expected


def test_an_environment_is_reused_only_if_whole_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(what: str, command: list[object], log: Path) -> float:
        commands.append([str(word) for word in command])
        if command[1:3] == ["-m", "venv"]:
            (tmp_path / "leg" / "lib" / "python3.12" / "site-packages").mkdir(parents=True)
        elif "numpy==9" in command:
            raise LegError("installing: ERROR: No matching distribution found for numpy==9")
        return 0.0

    monkeypatch.setattr(matrix, "run", run)
    folder, log, python = tmp_path / "leg", tmp_path / "log.txt", Path("python3.12")

    def made(requirements: list[str], fresh: bool = False) -> bool:
        before = len(commands)
        assert matrix.make_environment(folder, python, requirements, log, fresh) == folder / "bin" / "python"
        return len(commands) == before + 3

    assert made(["numpy==2"])
    assert commands[1][0] == sys.executable and commands[1][-2:] == [
        str(folder / "lib/python3.12/site-packages"),
        "pip",
    ]
    assert commands[2][:4] == [str(folder / "bin" / "python"), "-m", "pip", "install"] and commands[2][-1] == "numpy==2"
    (folder / "kept").touch()
    assert not made(["numpy==2"]) and (folder / "kept").exists()
    assert made(["numpy==3"]) and not (folder / "kept").exists()
    assert made(["numpy==3"], fresh=True)
    with pytest.raises(LegError, match="No matching distribution found for numpy==9"):
        made(["numpy==9"])
    assert made(["numpy==3"])


def test_the_images_are_one_of_each_depth_and_format(tmp_path: Path) -> None:
    matrix.write_images(tmp_path)
    found = {path: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(tmp_path.iterdir())}
    assert [path.suffix for path in found] == [".png", ".png", ".tif"]
    assert [str(image.dtype) for image in found.values()] == ["uint8", "uint16", "uint16"]
    assert all(image.shape == (192, 192) and image.std() > 0 for image in found.values())


def test_a_leg_whose_steps_fail_tells_each(tmp_path: Path, interpreter: Callable[[str, str], Path]) -> None:
    python = interpreter(
        "python3.12", 'case "$*" in *"-m pytest"*) echo "ERROR: no pytest";; *) echo no;; esac; exit 1'
    )
    out = tmp_path / "out"
    out.mkdir()
    result = matrix.run_leg("next", python, tmp_path, out)
    assert [told.split(":")[0] for told in result.failures] == ["build", "dry run", "goldens", "versions"]
    assert "ERROR: no pytest" in result.failures[2] and result.goldens == "0 of ?"
    assert (out / "log.txt").read_text(encoding="utf-8").count("\nno\n") == 2


#: Stands for an interpreter; {bare}: what fails a build without packages, {kernel}: what one with
#: packages writes, {mask}: what a dry run finds, {golden}: what becomes of the second golden.
_INTERPRETER = """
import json, pathlib, sys
words = sys.argv[1:]
if "build_kernel.py" in words:
    out = pathlib.Path(words[words.index("--out") + 1])
    dry = "--dry-run" in words
    if "-S" in words and "{bare}":
        sys.exit("ModuleNotFoundError: {bare}")
    (out / "kernel").mkdir(parents=True)
    (out / "kernel" / "kernel.py").write_text("{kernel}" if dry else "kernel")
    if dry:
        (out / "dry-run").mkdir()
        (out / "dry-run" / "submission.csv").write_text("id,predicted\\na,{mask}\\nb,\\n")
elif "pytest" in words:
    (report,) = [word.split("=")[1] for word in words if word.startswith("--junitxml")]
    pathlib.Path(report).write_text("<testsuite><testcase/><testcase>{golden}</testcase></testsuite>")
else:
    print(json.dumps(["3.12.7", dict(torch="2.10.0")]))
"""


@pytest.mark.parametrize(
    ("changes", "goldens", "failures"),
    [
        ({}, "2 of 2", []),
        ({"kernel": "other"}, "2 of 2", ["dry run: its kernel.py is not that of the build without packages"]),
        ({"bare": "no cv2"}, "2 of 2", ["build: exit code 1: ModuleNotFoundError: no cv2"]),
        ({"mask": " "}, "2 of 2", ["dry run: no cell found, so that the submission says nothing"]),
        ({"golden": "<skipped/>"}, "1 of 2", ["goldens: 1 of 2 passed"]),
    ],
)
def test_what_a_leg_comes_to(
    tmp_path: Path, changes: dict[str, str], goldens: str, failures: list[str], interpreter: Callable[[str, str], Path]
) -> None:
    script = tmp_path / "script.py"
    text = _INTERPRETER
    for name, value in ({"bare": "", "kernel": "kernel", "mask": "1 2", "golden": ""} | changes).items():
        text = text.replace("{" + name + "}", value)
    script.write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    result = matrix.run_leg(
        "next", interpreter("python3.12", f'exec "{sys.executable}" "{script}" "$@"'), tmp_path, out
    )
    assert (result.goldens, result.failures) == (goldens, failures)
    assert (result.python, result.versions) == ("3.12.7", {"torch": "2.10.0"})
    assert result.kernel_sha256 == ("" if "bare" in changes else hashlib.sha256(b"kernel").hexdigest())
    assert (result.submission_sha256 != "") == ("kernel" not in changes)
    assert (result.build_seconds is None) == ("bare" in changes) and result.run_seconds is not None
    assert (out / "kernel.py").is_file() == ("bare" not in changes) and (out / "log.txt").is_file()


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ("", "0 of ?"),
        ("<testcase/><testcase/>", "2 of 2"),
        ("<testcase/><testcase><skipped message='no wheels'/></testcase>", "1 of 2"),
        ("<testcase/><testcase><skipped message='got empty parameter set for (pair)'/></testcase>", "1 of 1"),
        ("<testcase><failure/></testcase><testcase><error/></testcase><testcase><system-out/></testcase>", "1 of 3"),
    ],
)
def test_goldens_that_passed(tmp_path: Path, cases: str, expected: str) -> None:
    report = tmp_path / "report.xml"
    assert matrix.read_goldens(report) == "0 of ?"
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>", encoding="utf-8")
    assert matrix.read_goldens(report) == expected


# The comparison

WHOLE = Result("pinned", "3.11.7", {"torch": "2.10.0"}, 1.2, 20.0, "a" * 64, "b" * 64, "7 of 7")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "same"),
        ({"leg": "next", "python": "3.13.0", "goldens": ""}, "same"),
        ({"kernel_sha256": "c" * 64}, "kernel.py differs"),
        ({"submission_sha256": "c" * 64}, "submission.csv differs"),
        ({"failures": ["dry run: exit code 1: x"], "submission_sha256": ""}, "dry run: exit code 1: x"),
        (
            {"failures": ["goldens: 6 of 7 passed"], "submission_sha256": "c"},
            "goldens: 6 of 7 passed; submission.csv differs",
        ),
    ],
)
def test_verdict(changes: dict, expected: str) -> None:
    assert matrix.verdict(replace(WHOLE, **changes), WHOLE) == expected


def test_nothing_is_the_same_as_a_reference_that_failed() -> None:
    reference = replace(WHOLE, submission_sha256="", failures=["dry run: x"])
    assert matrix.verdict(reference, reference) == "dry run: x"
    other = replace(WHOLE, leg="next")
    assert matrix.verdict(other, reference) == "submission.csv: leg pinned made none to compare with"


def test_table() -> None:
    failed = Result("newest", "3.14", failures=["installing: a | b"])
    lines = matrix.table([WHOLE, failed]).splitlines()
    assert [len(line) for line in lines[:2]] == [len(lines[0])] * 2
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (lines[0], lines[2], lines[3])]
    whole = dict(zip(cells[0], cells[1], strict=True))
    assert whole == {
        "leg": "pinned",
        "Python": "3.11.7",
        "torch": "2.10.0",
        **dict.fromkeys(("torchvision", "numpy", "OpenCV", "pandas"), "-"),
        "build": "1 s",
        "dry run": "20 s",
        "kernel.py": "a" * 12,
        "submission.csv": "b" * 12,
        "goldens": "7 of 7",
        "verdict": "same",
    }
    assert cells[2][:3] == ["newest", "3.14", "-"] and lines[3].endswith("| installing: a \\| b |")


# The command line


@pytest.fixture
def legs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Legs that do nothing and come out the same, on a machine with Python 3.12 and 3.13 as well; the names of those
    that ran."""
    names: list[str] = []

    def run_leg(name: str, interpreter: Path, images: Path, out: Path, goldens: bool = True) -> Result:
        assert out.is_dir() and len(list(images.iterdir())) == 3
        names.append(name)
        return replace(WHOLE, leg=name)

    def make_environment(folder: Path, python: Path, *rest: object) -> Path:
        folder.mkdir(parents=True)
        return folder / "bin" / "python"

    monkeypatch.setattr(matrix, "run_leg", run_leg)
    monkeypatch.setattr(matrix, "make_environment", make_environment)
    monkeypatch.setattr(matrix, "find_interpreters", lambda: {name: Path(name) for name in ("3.12", "3.13")})
    monkeypatch.setattr(matrix, "new_folder", lambda leg: tmp_path)
    # As if none of the legs were what the tests' own interpreter is.
    monkeypatch.setattr(matrix, "LEGS", [replace(leg, versions=leg.versions or {"tqdm": "4"}) for leg in matrix.LEGS])
    return names


def test_a_leg_without_its_interpreter_is_named_and_no_failure(
    tmp_path: Path, legs_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert matrix.main(["--environments", str(tmp_path / "legs")]) == 0
    assert legs_run == ["pinned", "kaggle", "next", "newest", "2025-12"]
    told = capsys.readouterr().out
    assert "not run: oldest: no Python 3.11" in told and "--python" in told
    assert list((tmp_path / "legs").iterdir()) == []


def test_chosen_legs_and_kept_environments(tmp_path: Path, legs_run: list[str]) -> None:
    assert matrix.main(["next", "kaggle", "--keep", "--environments", str(tmp_path / "legs")]) == 0
    assert legs_run == ["pinned", "kaggle", "next"]
    assert sorted(path.name for path in (tmp_path / "legs").iterdir()) == ["kaggle", "next"]


def test_the_pinned_leg_is_not_run_twice(
    legs_run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "LEGS", [Leg("kaggle", HERE)])
    monkeypatch.setattr(matrix, "find_interpreters", lambda: {HERE: Path(sys.executable)})
    assert matrix.main([]) == 0
    assert legs_run == ["pinned"] and "not run: kaggle: it is what pinned is" in capsys.readouterr().out


def test_a_failed_installation_fails_its_leg_alone(
    tmp_path: Path, legs_run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make_environment(folder: Path, *rest: object) -> Path:
        folder.mkdir(parents=True)
        if folder.name == "next":
            raise LegError("installing: exit code 1: ERROR: No matching distribution found for numpy==9")
        return folder / "bin" / "python"

    monkeypatch.setattr(matrix, "make_environment", make_environment)
    assert matrix.main(["kaggle", "next", "2025-12", "--environments", str(tmp_path / "legs")]) == 1
    assert legs_run == ["pinned", "kaggle", "2025-12"]
    assert "No matching distribution found for numpy==9 |" in capsys.readouterr().out
    assert list((tmp_path / "legs").iterdir()) == []


def test_a_leg_that_differs_fails(
    tmp_path: Path, legs_run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "run_leg", lambda name, *rest: replace(WHOLE, leg=name, kernel_sha256=name))
    assert matrix.main(["next", "--environments", str(tmp_path)]) == 1
    assert "kernel.py differs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone"], "no leg gone: choose from kaggle, next, newest, oldest, 2025-12"),
        (["--python", "gone"], "gone is no Python 3.11, 3.12"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: list[str], told: str, legs_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = matrix.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2 and told in capsys.readouterr().err
    assert legs_run == []


def test_an_environment_that_is_not_the_pinned_one_is_refused(
    legs_run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "installed_here", lambda: {"torch": "1.0"})
    assert matrix.main([]) == 2
    told = capsys.readouterr().err
    assert "torch is 1.0, not ==" in told and "make .venv/complete" in told
    assert legs_run == []
