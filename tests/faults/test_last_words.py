"""A run that cannot begin ends its log with the one thing to do: the built script, with mounts missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.build import write_kernel
from kernel.manifest.reader import read_manifest

DEMO = Path(__file__).resolve().parents[2] / "bundle" / "synthetic"


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("script") / "kernel"
    write_kernel(read_manifest(DEMO / "manifest.json"), folder)
    return folder / "kernel.py"


@pytest.mark.parametrize(
    ("mounted", "told"),
    [
        ((), "accept the competition's rules on its page"),
        (("competition",), "sends the dataset that is missing"),
        (("competition", "empty wheels"), "the dataset of wheels is not the one of this build"),
        (("competition", "wheels"), "sends the dataset that is missing"),
    ],
    ids=["nothing", "competition", "empty-wheels", "no-weights"],
)
def test_the_last_line_names_the_one_thing_to_do(
    script: Path, tmp_path: Path, wheels_dir: Path, mounted: tuple[str, ...], told: str
) -> None:
    manifest = read_manifest(DEMO / "manifest.json")
    inputs, working = tmp_path / "input", tmp_path / "working"
    inputs.mkdir()
    working.mkdir()
    if "competition" in mounted:
        home = inputs / "competitions" / manifest.kernel.competition
        home.mkdir(parents=True)
        (home / "test").symlink_to(DEMO / "images")
    if mounted[1:]:
        wheels = inputs / "datasets" / manifest.wheels_dataset
        wheels.parent.mkdir(parents=True)
        wheels.symlink_to(wheels_dir) if "wheels" in mounted else wheels.mkdir()
    environment = os.environ | {
        "KERNEL_INPUT_ROOT": str(inputs),
        "KERNEL_WORKING": str(working),
        "KERNEL_DEVICE": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-I", str(script)], env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("to do: ") and told in last, done.stdout
    assert ('"torch": ' in done.stdout) == ("competition" in mounted)  # the images come before all else
    assert "Traceback" not in done.stdout + done.stderr
