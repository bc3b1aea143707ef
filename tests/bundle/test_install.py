"""The environment's installation: which torch a machine gets, and what happens where PyTorch's index is out of reach.

The indexes are folders of empty wheels, and uv's stand-in is a wheel among them, so pip's part is real.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from bundle import install
from bundle.install import IMPATIENCE, ROOT, UV, fitting_build, has_nvidia_gpu
from bundle.repack import write_wheel
from kernel.errors import InputError

# Its environment takes seconds to make.
pytestmark = pytest.mark.xdist_group("install")

#: Runs the program as on Linux on x86_64 without a GPU, for the requirement files of another folder.
PROGRAM = """
import sys
from pathlib import Path
from bundle import install
install.ROOT = Path(sys.argv[1])
install.has_nvidia_gpu = lambda: False
install.platform.system, install.platform.machine = (lambda: "Linux"), (lambda: "x86_64")
raise SystemExit(install.main(sys.argv[2:]))
"""
#: Says "no" to what PyTorch's index cannot be asked for, else takes both packages from a folder, as uv would.
FAKE_UV = """
import json, os, subprocess, sys
arguments = sys.argv[1:]
with open(os.environ["FAKE_UV_LOG"], "a", encoding="utf-8") as log:
    log.write(json.dumps({"arguments": arguments, "retries": os.environ.get("UV_HTTP_RETRIES")}) + "\\n")
if os.environ["FAKE_UV"] == "unreachable":
    print("error: Failed to fetch\\n  cause: dns error", file=sys.stderr)
    raise SystemExit(2)
if "--dry-run" not in arguments:
    if os.environ["FAKE_UV"] == "broken off":
        raise SystemExit(1)
    python, wanted = arguments[arguments.index("--python") + 1], arguments[arguments.index("--constraint"):]
    index = os.environ["FAKE_PYTORCH"]
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--index-url", index, *wanted], check=True)
"""


def put_wheel(index: Path, name: str, version: str, **files: str) -> None:
    """A wheel in a folder that pip takes for an index."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    wheel = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents = {f"{name}/{file}.py": text for file, text in {"__init__": "", **files}.items()}
    contents |= {f"{info}/METADATA": metadata, f"{info}/WHEEL": wheel}
    page = index / name
    page.mkdir(parents=True)
    file = f"{name}-{version}-py3-none-any.whl"
    write_wheel(page / file, {path: text.encode() for path, text in contents.items()})
    (page / "index.html").write_text(f'<a href="{file.replace("+", "%2B")}">{file}</a>', encoding="utf-8")


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two indexes, `packages` and `pytorch`, and the requirement files."""
    folder = tmp_path_factory.mktemp("indexes")
    for index, local in (("packages", ""), ("pytorch", "+cpu")):
        put_wheel(folder / index, "torch", f"2.10.0{local}")
        put_wheel(folder / index, "torchvision", f"0.25.0{local}")
    put_wheel(folder / "packages", "tool", "1.0")
    put_wheel(folder / "packages", "uv", UV.removeprefix("uv=="), __main__=FAKE_UV)
    (folder / "requirements.txt").write_text("torch==2.10.0\ntorchvision==0.25.0\n", encoding="utf-8")
    (folder / "requirements-dev.txt").write_text("-r requirements.txt\ntool==1.0\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def environment_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds pip alone."""
    folder = tmp_path_factory.mktemp("environment") / "env"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return next(path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists())


class Machine:
    """A machine with an empty environment, and a PyTorch index that is there, out of reach, or breaks off."""

    def __init__(self, python: Path, indexes: Path, log: Path):
        self.python, self.indexes, self.log = python, indexes, log

    def environment(self, pytorch: str) -> Mapping[str, str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_", "PYTHON"))}
        return own | {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": (self.indexes / "packages").as_uri(),
            "FAKE_PYTORCH": (self.indexes / "pytorch").as_uri(),
            "FAKE_UV": pytorch,
            "FAKE_UV_LOG": str(self.log),
        }

    def install(self, *options: str, pytorch: str = "there") -> subprocess.CompletedProcess[str]:
        command = [str(self.python), "-c", PROGRAM, str(self.indexes), *options]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment(pytorch), capture_output=True, text=True, check=False
        )

    def installed(self) -> dict[str, str]:
        command = [str(self.python), "-m", "pip", "list", "--format", "json"]
        listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return {package["name"]: package["version"] for package in listed if package["name"] not in BROUGHT}

    def asked(self) -> list[dict]:
        """What uv was asked, call by call."""
        return (
            [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
            if self.log.exists()
            else []
        )


#: What an environment of Python's own is made with.
BROUGHT = ("pip", "setuptools", "wheel")
SMALL = {"torch": "2.10.0+cpu", "torchvision": "0.25.0+cpu", "tool": "1.0"}
LARGE = {"torch": "2.10.0", "torchvision": "0.25.0", "tool": "1.0"}


@pytest.fixture
def machine(environment_python: Path, indexes: Path, tmp_path: Path) -> Machine:
    command = [str(environment_python), "-m", "pip", "uninstall", "-q", "-y", "torch", "torchvision", "tool"]
    subprocess.run(command, capture_output=True, check=True)
    return Machine(environment_python, indexes, tmp_path / "uv.jsonl")


def test_without_a_gpu_both_come_from_pytorch_and_the_rest_from_the_package_index(machine: Machine) -> None:
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert machine.installed() == SMALL
    assert "installed, with torch 2.10.0+cpu" in done.stderr
    first, second = machine.asked()
    assert first["arguments"] == [*second["arguments"], "--dry-run", "--quiet"]
    assert " ".join(second["arguments"]).count("--torch-backend cpu") == 1
    # Only the question whether the index is there is impatient; a large file may take its tries.
    assert (first["retries"], second["retries"]) == (IMPATIENCE["UV_HTTP_RETRIES"], None)


def test_where_pytorch_is_out_of_reach_it_is_said_and_the_package_index_serves(machine: Machine) -> None:
    done = machine.install(pytorch="unreachable")
    assert done.returncode == 0, done.stderr
    assert machine.installed() == LARGE
    said = done.stderr.splitlines()[0]
    assert "cannot be used here (dns error)" in said and "7 GB" in said and "TORCH=cpu" in said
    assert len(machine.asked()) == 1  # it is not asked again


def test_the_small_build_asked_for_is_not_replaced(machine: Machine) -> None:
    done = machine.install("--torch", "cpu", pytorch="unreachable")
    assert done.returncode == 1 and "failed: PyTorch's index" in done.stderr and "dns error" in done.stderr
    assert machine.installed() == {}


@pytest.mark.parametrize("build", ["auto", "cpu"])
def test_an_installation_that_breaks_off_does_not_turn_into_the_large_one(machine: Machine, build: str) -> None:
    done = machine.install("--torch", build, pytorch="broken off")
    assert done.returncode == 1 and "run the same again" in done.stderr
    assert machine.installed() == {}


def test_another_build_is_asked_of_pytorch(machine: Machine) -> None:
    assert machine.install("--torch", "cu128").returncode == 0
    assert all("--torch-backend cu128" in " ".join(call["arguments"]) for call in machine.asked())
    assert len(machine.asked()) == 2


def test_the_package_index_alone(machine: Machine) -> None:
    assert machine.install("--torch", "index").returncode == 0
    assert machine.installed() == LARGE and machine.asked() == []


def test_both_from_an_index_of_ones_own(machine: Machine) -> None:
    done = machine.install("--torch", (machine.indexes / "pytorch").as_uri())
    assert done.returncode == 0, done.stderr
    assert machine.installed() == SMALL and machine.asked() == []


def test_an_index_that_is_none(machine: Machine) -> None:
    done = machine.install("--torch", (machine.indexes / "none").as_uri())
    assert done.returncode == 1 and "failed: pip could not install torch from file:///" in done.stderr
    assert machine.installed() == {}


@pytest.mark.parametrize("name", ["CPU only", "--quiet", "../wheels", ""])
def test_a_name_that_no_build_has(machine: Machine, name: str) -> None:
    done = machine.install(f"--torch={name}")
    assert done.returncode == 2 and "no build of torch is called" in done.stderr
    assert machine.installed() == {}


@pytest.mark.parametrize(
    ("system", "machine", "has_gpu", "build"),
    [
        ("Linux", "x86_64", False, "cpu"),
        ("Linux", "x86_64", True, "index"),
        ("Linux", "aarch64", False, "index"),
        ("Linux", "aarch64", True, "index"),
        ("Darwin", "arm64", False, "index"),
        ("Windows", "AMD64", False, "index"),
        ("Windows", "AMD64", True, "index"),
    ],
)
def test_what_fits_a_machine(system: str, machine: str, has_gpu: bool, build: str) -> None:
    assert fitting_build(system, machine, has_gpu) == build


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "x86_64"), ("Linux", "armv7l"), ("Windows", "ARM64")])
def test_machines_without_a_torch_are_told_what_they_can_do(system: str, machine: str) -> None:
    with pytest.raises(InputError, match=rf"no torch for {system} on {machine}: building needs none"):
        fitting_build(system, machine, False)


def test_make_hands_the_choice_on_and_builds_without_an_environment() -> None:
    def planned(*words: str) -> list[str]:
        command = ["make", "--no-print-directory", "--dry-run", "--what-if=requirements.txt", *words]
        # Under `make test` a make inside takes over options and variables of the one outside.
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        environment = {name: value for name, value in own.items() if name not in ("PYTHON", "TORCH")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=True)
        return done.stdout.splitlines()

    assert ".venv/bin/python -m bundle.install --torch=auto" in planned("demo")
    assert ".venv/bin/python -m bundle.install --torch=cu128" in planned("demo", "TORCH=cu128")
    assert planned("build", "PYTHON=python3.12") == ["python3.12 build_kernel.py"]


@pytest.mark.parametrize(
    ("says", "code", "devices", "found"),
    [
        ("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)", 0, [], True),
        ("No devices found.", 0, [], False),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9, [], False),
        ("NVIDIA-SMI has failed", 9, ["nvidia0"], True),  # of another version than the driver, say
        (None, 0, ["nvidia7", "nvidiactl"], True),
        (None, 0, ["nvidiactl", "nvidia-uvm"], False),
        (None, 0, [], False),
    ],
)
def test_whether_there_is_a_gpu(
    says: str | None, code: int, devices: list[str], found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, dev = tmp_path / "bin", tmp_path / "dev"
    programs.mkdir()
    dev.mkdir()
    for name in devices:
        (dev / name).touch()
    if says is not None:
        program = programs / "nvidia-smi"
        program.write_text(f'#!/bin/sh\necho "{says}"\nexit {code}\n', encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    assert has_nvidia_gpu(dev) is found


def test_what_the_system_refuses_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As a disk that gets full, or a pip that cannot be started."""

    def refuse(torch: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(install, "install", refuse)
    assert install.main([]) == 1
    told = capsys.readouterr().err
    assert told.startswith("failed: ") and "No space left on device: mend that, and run the same again" in told
