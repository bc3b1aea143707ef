"""Install what the project needs into this interpreter's environment, with a torch that fits the machine.

    python3 -m venv .venv
    .venv/bin/python -m bundle.install                # Windows: .venv\\Scripts\\python -m bundle.install
    .venv/bin/python -m bundle.install --torch cpu

pip installs everything from the index that it is configured for. Only torch differs: for Linux on x86_64 that index
has a build with CUDA (4 GB with NVIDIA's libraries, 7 GB when unpacked), for macOS, Windows and Linux on ARM a small
one without (80 to 150 MB). PyTorch keeps an index of its own with small builds for all of them. uv knows
where; it is fetched for that, and leaves no trace in the environment. torch and torchvision always come together,
from one index: a torch without CUDA has no torchvision from another one that loads.

What --torch takes:
    auto     `cpu` on Linux on x86_64 without an NVIDIA GPU, `index` elsewhere. Where PyTorch's index cannot be reached
             a warning is shown, and the package index's build is taken (the default)
    index    the package index's build
    cpu      PyTorch's build without CUDA, or none; so are the others that uv knows: cu126, cu128, cu130, rocm6.4, xpu
    ADDRESS  the build of this index, e.g. a mirror of PyTorch's: https://... or file:///...
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kernel.errors import InputError, RunError
from kernel.log import LOG, show_log
from kernel.output import code_of

ROOT = Path(__file__).resolve().parents[1]
UV = "uv==0.13.9"
#: PyTorch's index is asked once, and not waited for: the fallback should come in seconds.
IMPATIENCE = {"UV_HTTP_RETRIES": "0", "UV_HTTP_CONNECT_TIMEOUT": "5", "UV_HTTP_TIMEOUT": "15"}
#: What the package index has torch for. PyTorch has had none for Intel's Macs since 2.2.
TORCH_MACHINES = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"), ("Windows", "amd64")}


class UnreachableError(RunError):
    """PyTorch's own index does not answer, or has no such build."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m bundle.install", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", default="auto", metavar="BUILD", help="which torch (default: %(default)s)")
    options = parser.parse_args(arguments)
    show_log(sys.stderr, "%(message)s")
    return code_of(lambda: install(options.torch))


def install(torch: str) -> None:
    """Install what the requirement files name, with the `torch` that `--torch` chooses.

    Raises:
        InputError: a name that no build can have, or a machine that no torch is built for.
        RunError: an installation fails.
    """
    build = torch
    if torch == "auto":
        build = fitting_build(platform.system(), platform.machine(), has_nvidia_gpu())
    if "://" in build:
        run_pip(["--no-deps", "--index-url", build, *pinned_torch()], f"torch from {build}")
    elif build != "index":
        if not re.fullmatch(r"[a-z]+[0-9.]*", build):
            raise InputError(
                f"no build of torch is called {build!r}: auto, index, cpu, cu128 and the like, or an index's address"
            )
        try:
            install_from_pytorch(build, pinned_torch())
        except UnreachableError as error:
            if torch != "auto":
                raise
            LOG.warning(
                "%s: taking the package index's torch with CUDA instead, 7 GB of it. `--torch cpu` (make: TORCH=cpu) "
                "insists on the small one, `index` does not ask",
                error,
            )
    run_pip(["--requirement", str(ROOT / "requirements-dev.txt")], "the requirements")
    LOG.info("installed, with torch %s", importlib.metadata.version("torch"))


def fitting_build(system: str, machine: str, has_gpu: bool) -> str:
    """`auto` for a machine, as `platform` names it: the package index's torch has CUDA for Linux on x86_64 alone.

    Raises:
        InputError: no torch is built for the machine.
    """
    if (system, machine.lower()) not in TORCH_MACHINES:
        raise InputError(
            f"the package index has no torch for {system} on {machine}: building needs none (python build_kernel.py); "
            "for the rest name another build (--torch ADDRESS), or use another machine"
        )
    return "cpu" if system == "Linux" and machine == "x86_64" and not has_gpu else "index"


def has_nvidia_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether this process sees an NVIDIA GPU. A driver proves little: a container sees the host's, GPU or none."""
    program = shutil.which("nvidia-smi")
    if program:
        listed = subprocess.run([program, "-L"], capture_output=True, encoding="utf-8", errors="replace", check=False)
        if listed.returncode == 0 and re.search(r"^GPU \d", listed.stdout, re.MULTILINE):
            return True
    return any(devices.glob("nvidia[0-9]*"))


def pinned_torch() -> list[str]:
    """What to ask of an index of torch: both packages, and the file that holds their versions."""
    return ["--constraint", str(ROOT / "requirements.txt"), "torch", "torchvision"]


def install_from_pytorch(build: str, wanted: Sequence[str]) -> None:
    """Install both packages from PyTorch's own index, without what they depend on, which pip brings afterwards.

    Raises:
        UnreachableError: the index cannot be asked; nothing has changed.
        RunError: what fails later.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_pip(["--target", folder, UV], UV)
        except RunError as error:
            raise UnreachableError(f"PyTorch's index cannot be asked without uv ({error})") from error
        command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, "--system-certs"]
        command += ["--no-deps", "--reinstall", "--torch-backend", build, *wanted]
        environment = {**os.environ, "PYTHONPATH": folder}
        asked = run([*command, "--dry-run", "--quiet"], {**environment, **IMPATIENCE})
        if asked.returncode:
            reason = last_line(asked.stdout)
            raise UnreachableError(f"PyTorch's index of builds for {build} cannot be used here ({reason})")
        LOG.info("installing PyTorch's torch and torchvision for %s", build)
        if subprocess.run(command, env=environment, check=False).returncode:
            raise RunError(f"uv could not install PyTorch's builds for {build}; see above, and run the same again")


def run_pip(arguments: Sequence[str], what: str) -> None:
    """`pip install` into this environment.

    Raises:
        RunError: it fails; the message has pip's output.
    """
    options = ["--disable-pip-version-check", "--quiet", "--no-input"]
    done = run([sys.executable, "-m", "pip", "install", *options, *arguments], os.environ)
    if done.returncode:
        raise RunError(f"pip could not install {what}: {done.stdout.strip()}")


def run(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command; its output and errors are the result's `stdout`."""
    return subprocess.run(
        command,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def last_line(text: str) -> str:
    """The last line of a program's output, its innermost reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("cause: ") if lines else "uv said nothing"


if __name__ == "__main__":
    raise SystemExit(main())
